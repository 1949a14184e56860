"""Adaptive average and max pooling in one to three dimensions, beside torch's."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from grid import BACKENDS, LAYOUTS, assert_all_close, filled, gradients, leaf, rounds_every_sum, strides
from pooling import DTYPES, FORMATS, Pooling, assert_same_pooling
from torch import Tensor, nn
from torch.testing import assert_close

import torchconv
from torchconv import functional, ops

SIZES: dict[str, tuple[tuple[int, ...], Any]] = {
    "1d": ((2, 3, 17), 5),
    "1d_no_batch": ((3, 6), (7,)),
    "2d_a_number": ((2, 3, 9, 8), 3),
    "2d_uneven": ((2, 3, 11, 7), (5, 3)),
    "2d_divides": ((2, 3, 8, 12), (4, 3)),
    "2d_larger_than_the_input": ((2, 3, 4, 5), (9, 13)),
    "2d_larger_and_smaller": ((2, 3, 3, 11), (5, 4)),
    "2d_none_keeps_the_size": ((2, 3, 7, 8), (None, 3)),
    "2d_none_for_both": ((2, 3, 4, 5), (None, None)),
    "2d_to_one_pixel": ((2, 70, 7, 9), 1),
    "2d_of_one_pixel": ((2, 1, 1, 1), 3),
    "2d_many_channels": ((2, 70, 7, 9), (3, 4)),
    "2d_no_batch": ((3, 7, 9), (2, 5)),
    "2d_batch_of_none": ((0, 3, 7, 9), (2, 5)),
    "3d": ((2, 3, 5, 6, 7), (2, 4, 3)),
    "3d_larger": ((1, 3, 2, 3, 4), (3, None, 5)),
    "3d_to_one_pixel": ((2, 3, 4, 3, 5), 1),
    "3d_no_batch": ((3, 5, 4, 6), 2),
    "3d_batch_of_none": ((0, 3, 5, 4, 6), 2),
}


def pooling(kind: str, name: str) -> Pooling:
    shape, size = SIZES[name]
    return Pooling(f"adaptive_{kind}_pool{name[0]}d", shape, {"output_size": size})


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_equals_torch_in_every_format(kind: str, name: str, dtype: torch.dtype, algorithm: str) -> None:
    problem = pooling(kind, name)
    # Sums of up to 63 values of size 1 are rounded at each: the reference's means, and then divided by their number,
    # and gradients of pixels in many boxes, in max pooling, where torch.gather's backward adds.
    adds = rounds_every_sum(dtype, algorithm) if kind == "avg" else dtype.itemsize == 2
    loose = {"rtol": 0.0, "atol": 16 * torch.finfo(dtype).eps} if adds else {}
    for format in FORMATS if dtype == torch.float64 else FORMATS[:2]:
        assert_same_pooling(problem, filled(problem.input, dtype), format, **loose)


def values(kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Values that are often equal, or often NaN, an infinity or a zero of either sign."""
    if kind == "ties":
        return filled(shape, dtype).round()
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, -torch.inf, -torch.inf, 1.0], dtype=dtype)
    return special[filled(shape, seed=9).mul(4).round().remainder(8).long()]


@pytest.mark.parametrize("kind", ["ties", "special"])
@pytest.mark.parametrize("name", SIZES)
def test_maxima_and_their_indices_equal_torch_bit_for_bit(name: str, kind: str) -> None:
    problem = pooling("max", name)
    for dtype, bits in ((torch.float32, torch.int32), (torch.bfloat16, torch.int16)):
        for format in FORMATS:
            input = problem.in_format(values(kind, problem.input, dtype), format)
            output, indices = problem.ours(input, return_indices=True)
            expected, places = problem.theirs(input, return_indices=True)
            # A zero keeps its sign; there are many NaN, and torch's is sometimes another than the input's.
            theirs = torch.where(expected.isnan(), 7, expected).contiguous().view(bits)
            for result in (output, problem.ours(input)):
                assert torch.equal(torch.where(result.isnan(), 7, result).contiguous().view(bits), theirs)
            assert torch.equal(indices, places)
            problem.assert_in_format(indices, format)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["2d_uneven", "2d_larger_and_smaller"])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_any_strides_of_input_and_gradient(kind: str, name: str, layout: str) -> None:
    problem = pooling(kind, name)
    input = LAYOUTS[layout](filled(problem.input))
    mine, theirs = leaf(input), leaf(input.contiguous())
    output, expected = problem.ours(mine), problem.theirs(theirs)
    grad_output = LAYOUTS[layout](filled(output.shape, seed=3))
    assert_all_close([output], [expected])
    assert_all_close(gradients(output, [mine], grad_output), gradients(expected, [theirs], grad_output.contiguous()))


@pytest.mark.parametrize("format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["1d", "2d_uneven", "2d_larger_and_smaller", "3d"])
def test_infinities_and_nan_stay_inside_their_boxes(name: str, format: str) -> None:
    problem = pooling("avg", name)
    input = filled(problem.input)
    for place, value in enumerate((torch.inf, -torch.inf, torch.nan)):
        input[place % 2, place, ..., 2 + place] = value
    assert 0 < problem.theirs(input).isfinite().sum() < problem.theirs(input).numel()
    assert_same_pooling(problem, input, format)
    mine, theirs = leaf(problem.in_format(input, format)), leaf(input)
    output, expected = problem.ours(mine), problem.theirs(theirs)
    grad_output = filled(output.shape, seed=3)
    grad_output[0, 1, ..., 1], grad_output[1, 0, ..., 2] = torch.inf, torch.nan
    (grad,), (exact,) = gradients(output, [mine], grad_output), gradients(expected, [theirs], grad_output)
    assert 0 < exact.isfinite().sum() < exact.numel()
    assert_close(grad, exact, equal_nan=True)


@pytest.mark.parametrize("name", [name for name, (shape, _) in SIZES.items() if shape[0] != 0])
def test_backward_of_the_average_is_the_adjoint(name: str) -> None:
    problem = pooling("avg", name)
    input = leaf(filled(problem.input))
    output = problem.ours(input)
    other = filled(output.shape, seed=1)
    (grad,) = gradients(output, [input], other)
    assert_close((output * other).sum(), (input * grad).sum())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_of_no_pixels_all_gradients_are_zero(kind: str, rank: int) -> None:
    sizes = [0] if rank == 1 else [0, (3, 0) if rank == 2 else (2, 0, 3)]
    for size in sizes:
        problem = Pooling(f"adaptive_{kind}_pool{rank}d", (2, 3, *[4, 5, 6][:rank]), {"output_size": size})
        for format in FORMATS[:2]:
            input = leaf(problem.in_format(filled(problem.input), format))
            output = problem.ours(input)
            assert output.shape == problem.theirs(input.detach()).shape
            (grad,) = torch.autograd.grad(output.sum(), input)
            assert torch.equal(grad, torch.zeros_like(input))


@pytest.mark.parametrize("shape", [(2, 0, 7), (2, 0, 7, 5)], ids=str)
def test_no_channels_are_averaged_where_torch_does(shape: tuple[int, ...]) -> None:
    problem = Pooling(f"adaptive_avg_pool{len(shape) - 2}d", shape, {"output_size": 2})
    assert problem.ours(filled(shape)).shape == problem.theirs(filled(shape)).shape


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_one_pixel_of_channels_last_has_a_channels_last_gradient(kind: str, rank: int) -> None:
    problem = Pooling(f"adaptive_{kind}_pool{rank}d", (2, 3, *[4, 5, 6][:rank]), {"output_size": 1})
    input = leaf(problem.in_format(filled(problem.input), "channels_last"))
    # The output's one pixel has no format, and an expanded gradient no strides.
    (grad,) = torch.autograd.grad(problem.ours(input).sum(), input)
    assert strides(grad) == strides(input)
    expected = input == input.amax(list(range(2, rank + 2)), keepdim=True)
    assert_close(grad, expected.double() if kind == "max" else torch.full_like(grad, 1 / input[0, 0].numel()))


def test_indices_have_no_gradient_and_unpooling_takes_them() -> None:
    output, indices = functional.adaptive_max_pool2d(leaf(filled((2, 3, 6, 8))), (3, 4), True)
    assert output.requires_grad
    assert not indices.requires_grad
    assert_close(functional.max_unpool2d(output, indices, 2).sum(), output.sum())


MODULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "AdaptiveAvgPool1d": (3, (8,)),
    "AdaptiveAvgPool2d": ((3, None), (9, 8)),
    "AdaptiveAvgPool3d": ((2, 3, None), (4, 5, 6)),
    "AdaptiveMaxPool1d": (3, (8,)),
    "AdaptiveMaxPool2d": ((3, None), (9, 8)),
    "AdaptiveMaxPool3d": ((2, 3, None), (4, 5, 6)),
}


@pytest.mark.parametrize("before", [(2, 3), (3,), (0, 3)], ids=["batch", "no_batch", "batch_of_none"])
@pytest.mark.parametrize("name", MODULES)
def test_module_equals_torch(name: str, before: tuple[int, ...]) -> None:
    output_size, size = MODULES[name]
    input = filled((*before, *size))
    for options in ({}, {"return_indices": True}) if "Max" in name else ({},):
        ours, theirs = (getattr(library, name)(output_size, **options) for library in (torchconv, nn))
        assert repr(ours) == repr(theirs)
        assert_close(ours(input), theirs(input))
