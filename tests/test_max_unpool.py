"""Max unpooling in one to three dimensions, beside torch's."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from grid import BACKENDS, LAYOUTS, filled, gradients, leaf
from pooling import DTYPES, FORMATS, Pooling
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv
from torchconv import functional, ops


@dataclass(frozen=True)
class Unpooling:
    """What was pooled, the window, and the size that is asked for (None for the default)."""

    pooled: tuple[int, ...]
    window: dict[str, Any]
    output_size: tuple[int, ...] | None = None
    rank: int = 2

    @property
    def pooling(self) -> Pooling:
        return Pooling(f"max_unpool{self.rank}d", self.pooled, {**self.window, "output_size": self.output_size})

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Maxima and their indices in what was pooled."""
        pool = getattr(F, f"max_pool{self.rank}d")
        return pool(filled(self.pooled, dtype), **self.window, return_indices=True)


PROBLEMS: dict[str, Unpooling] = {
    "1d": Unpooling((2, 3, 8), {"kernel_size": 2}, rank=1),
    "1d_sized_overlapping": Unpooling((2, 3, 12), {"kernel_size": 3, "stride": 2, "padding": 1}, (12,), 1),
    "1d_no_batch": Unpooling((3, 9), {"kernel_size": 3}, rank=1),
    "2x2": Unpooling((2, 3, 6, 8), {"kernel_size": 2}),
    "2x2_sized_one_more": Unpooling((2, 3, 7, 9), {"kernel_size": 2}, (7, 9)),
    "2x2_whole_shape": Unpooling((2, 3, 7, 9), {"kernel_size": 2}, (2, 3, 7, 9)),
    "overlapping": Unpooling((2, 3, 9, 7), {"kernel_size": 3, "stride": 2}),
    "overlapping_padded": Unpooling((2, 3, 8, 9), {"kernel_size": 3, "stride": 2, "padding": 1}, (8, 9)),
    "stride_beyond_the_kernel": Unpooling((2, 3, 11, 13), {"kernel_size": (2, 3), "stride": (4, 5)}, (11, 14)),
    "many_channels": Unpooling((2, 40, 6, 4), {"kernel_size": 2}),
    "no_batch": Unpooling((3, 6, 8), {"kernel_size": 2}),
    "batch_of_none": Unpooling((0, 3, 6, 8), {"kernel_size": 2}),
    "3d": Unpooling((2, 3, 4, 6, 4), {"kernel_size": 2}, rank=3),
    "3d_sized": Unpooling((2, 3, 5, 6, 7), {"kernel_size": (2, 3, 2), "stride": (2, 3, 2)}, (5, 6, 7), 3),
    "3d_no_batch": Unpooling((3, 4, 6, 4), {"kernel_size": 2}, rank=3),
}


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_torch_in_every_format(name: str, dtype: torch.dtype) -> None:
    problem = PROBLEMS[name]
    pooling, (maxima, indices) = problem.pooling, problem.tensors(dtype)
    theirs = leaf(maxima)
    expected = pooling.theirs(theirs, indices=indices)
    grad_output = filled(expected.shape, dtype, 3)
    (exact,) = gradients(expected, [theirs], grad_output)
    for format in FORMATS:
        mine, places = leaf(pooling.in_format(maxima, format)), pooling.in_format(indices, format)
        output = pooling.ours(mine, indices=places)
        assert torch.equal(output, expected)
        assert output.dtype == dtype
        pooling.assert_in_format(output, format)
        (grad,) = gradients(output, [mine], grad_output)
        assert torch.equal(grad, exact)
        pooling.assert_in_format(grad, format)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_of_values_indices_and_gradient(layout: str) -> None:
    problem = PROBLEMS["2x2_sized_one_more"]
    maxima, indices = problem.tensors()
    maxima = LAYOUTS[layout](maxima)
    if layout != "imaginary_part_of_a_conjugate":  # there are no complex integers
        indices = LAYOUTS[layout](indices)
    mine, theirs = leaf(maxima), leaf(maxima.contiguous())
    output = problem.pooling.ours(mine, indices=indices)
    expected = problem.pooling.theirs(theirs, indices=indices.contiguous())
    assert_close(output, expected, rtol=0, atol=0)
    grad_output = LAYOUTS[layout](filled(output.shape, seed=3))
    assert_close(gradients(output, [mine], grad_output), gradients(expected, [theirs], grad_output.contiguous()))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_pooling_finds_again_what_was_put_back(rank: int) -> None:
    input = filled((2, 3, *[4, 6, 8][:rank])).abs()
    pool, unpool = getattr(functional, f"max_pool{rank}d"), getattr(functional, f"max_unpool{rank}d")
    maxima, indices = pool(input, 2, return_indices=True)
    picture = unpool(maxima, indices, 2)
    assert torch.equal(pool(picture, 2), maxima)
    assert torch.equal(picture, torch.where(picture != 0, input, 0))


def test_infinities_and_nan_are_moved_as_they_are() -> None:
    maxima, indices = filled((2, 3, 3, 4)), PROBLEMS["2x2"].tensors()[1]
    maxima[0, 0, 0], maxima[1, 2, 1] = torch.inf, torch.nan
    assert_close(functional.max_unpool2d(maxima, indices, 2), F.max_unpool2d(maxima, indices, 2), equal_nan=True)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_indices_of_another_picture_are_errors(rank: int) -> None:
    unpool = getattr(functional, f"max_unpool{rank}d")
    maxima, indices = torch.ones(2, 3, *[2] * rank), torch.zeros(2, 3, *[2] * rank, dtype=torch.int64)
    assert unpool(maxima, indices + 4**rank - 1, 2).count_nonzero() == 6
    for wrong in (-1, 4**rank, 2**62):
        indices[1, 2, ..., 1] = wrong
        with pytest.raises(RuntimeError):
            unpool(maxima, indices, 2)


MODULES: dict[str, dict[str, Any]] = {
    "MaxUnpool1d": {"kernel_size": 3, "stride": 2, "padding": 1},
    "MaxUnpool2d": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    "MaxUnpool3d": {"kernel_size": 3, "stride": (1, 2, 3), "padding": 1},
}


@pytest.mark.parametrize("before", [(2, 3), (3,)], ids=["batch", "no_batch"])
@pytest.mark.parametrize("name", MODULES)
def test_module_equals_torch(name: str, before: tuple[int, ...]) -> None:
    rank = int(name[-2])
    ours, theirs = getattr(torchconv, name)(**MODULES[name]), getattr(nn, name)(**MODULES[name])
    assert repr(ours) == repr(theirs)
    input = filled((*before, *[7, 8, 9][:rank]))
    maxima, indices = getattr(F, f"max_pool{rank}d")(input, **MODULES[name], return_indices=True)
    size = input.shape[-rank:]
    assert torch.equal(ours(maxima, indices, output_size=size), theirs(maxima, indices, output_size=size))
