"""Power-average pooling in one to three dimensions, beside torch's."""

from collections.abc import Iterator
from math import inf
from typing import Any

import pytest
import torch
from grid import BACKENDS, filled, gradients, leaf
from pooling import FORMATS, Pooling, assert_same_pooling
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv
from torchconv import ops
from torchconv.functional import lp_pool2d

WINDOWS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 3, 9), {"kernel_size": 2}),
    "1d_no_batch_ceil": ((3, 10), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    "2x2": ((2, 3, 7, 9), {"kernel_size": 2}),
    "2x2_ceil": ((2, 3, 7, 9), {"kernel_size": 2, "ceil_mode": True}),
    "uneven": ((2, 40, 6, 9), {"kernel_size": (2, 3), "stride": (1, 2)}),
    "larger_than_the_input": ((2, 3, 6, 2), {"kernel_size": (5, 4), "stride": (4, 3), "ceil_mode": True}),
    "2d_no_batch": ((3, 7, 9), {"kernel_size": 3}),
    "2d_batch_of_none": ((0, 3, 7, 9), {"kernel_size": 3}),
    "3d": ((2, 3, 4, 5, 6), {"kernel_size": 2}),
    "3d_ceil": ((2, 3, 5, 6, 5), {"kernel_size": (3, 2, 2), "stride": 2, "ceil_mode": True}),
}
NORMS = (1, 2.0, 3, 2.5, inf, -inf)


def pooling(name: str, norm_type: float) -> Pooling:
    shape, window = WINDOWS[name]
    rank = name[0] if name[1] == "d" else "2"
    return Pooling(f"lp_pool{rank}d", shape, {"norm_type": norm_type, **window})


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("name", WINDOWS)
def test_equals_torch_in_every_format(name: str, norm_type: float) -> None:
    problem = pooling(name, norm_type)
    for format in FORMATS:
        assert_same_pooling(problem, filled(problem.input).abs() + 0.1, format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("name", ["1d_no_batch_ceil", "uneven", "3d"])
def test_other_dtypes(name: str, norm_type: float, dtype: torch.dtype) -> None:
    problem, eps = pooling(name, norm_type), torch.finfo(dtype).eps
    # Power, mean (in the reference: each of up to 8 sums), product and root round once each, and so do the gradient's.
    close = {"rtol": 12 * eps, "atol": 4 * eps} if dtype.itemsize == 2 else {}
    for format in FORMATS[:2]:
        assert_same_pooling(problem, filled(problem.input, dtype).abs() + 0.1, format, **close)


@pytest.mark.parametrize("norm_type", [1, 2.0, 3, inf, -inf])
def test_values_of_either_sign(norm_type: float) -> None:
    problem = pooling("2x2_ceil", norm_type)
    expected = problem.theirs(filled(problem.input))
    assert_close(problem.ours(filled(problem.input)), expected, equal_nan=True)
    mine, theirs = leaf(filled(problem.input)), leaf(filled(problem.input))
    assert_close(
        torch.autograd.grad(problem.ours(mine).nansum(), mine),
        torch.autograd.grad(problem.theirs(theirs).nansum(), theirs),
        equal_nan=True,
    )


@pytest.mark.parametrize("norm_type", NORMS)
def test_infinities_and_nan_stay_inside_their_windows(norm_type: float) -> None:
    problem = pooling("uneven", norm_type)
    input = filled(problem.input).abs() + 0.1
    input[0, 1, 2, 3], input[1, 0, 0, 0] = inf, torch.nan
    assert 0 < problem.theirs(input).isfinite().sum() < problem.theirs(input).numel()
    assert_close(problem.ours(input), problem.theirs(input), equal_nan=True)


@pytest.mark.parametrize("norm_type", [2.0, 3])
def test_the_gradient_of_zeros_is_zero(norm_type: float) -> None:
    input = filled((2, 3, 6, 6))
    input[:, :, :4, :4] = 0
    mine, theirs = leaf(input), leaf(input.clone())
    output, expected = lp_pool2d(mine, norm_type, 2), F.lp_pool2d(theirs, norm_type, 2)
    grad_output = filled(output.shape, seed=3)
    # Not so where the sum is negative: its root is no number in torch either.
    (grad,), (exact,) = gradients(output, [mine], grad_output), gradients(expected, [theirs], grad_output)
    assert_close(grad, exact, equal_nan=True)
    assert not grad[:, :, :4, :4].any()


@pytest.mark.parametrize("before", [(2, 3), (3,), (0, 3)], ids=["batch", "no_batch", "batch_of_none"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_module_equals_torch(rank: int, before: tuple[int, ...]) -> None:
    arguments: dict[str, Any] = {"norm_type": 3, "kernel_size": 2, "stride": 1, "ceil_mode": True}
    ours, theirs = (getattr(library, f"LPPool{rank}d")(**arguments) for library in (torchconv, nn))
    assert repr(ours) == repr(theirs)
    input: Tensor = filled((*before, *[4, 5, 6][:rank])).abs()
    assert_close(ours(input), theirs(input))
