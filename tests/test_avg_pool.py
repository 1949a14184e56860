"""Average pooling in one to three dimensions, beside torch's."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from grid import BACKENDS, LAYOUTS, assert_all_close, filled, gradients, leaf, rounds_every_sum, strides
from pooling import DTYPES, FORMATS, Pooling, assert_same_pooling
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv
from torchconv import ops
from torchconv.functional import avg_pool2d

PROBLEMS: dict[str, Pooling] = {
    "2": Pooling("avg_pool1d", (2, 3, 8), {"kernel_size": 2}),
    "5_ceil": Pooling("avg_pool1d", (2, 3, 18), {"kernel_size": 5, "stride": 3, "padding": 2, "ceil_mode": True}),
    "5_inside_only": Pooling("avg_pool1d", (3, 17), {"kernel_size": 5, "padding": 2, "count_include_pad": False}),
    "2x2": Pooling("avg_pool2d", (2, 3, 8, 10), {"kernel_size": 2}),
    "2x2_with_a_rest": Pooling("avg_pool2d", (2, 3, 7, 9), {"kernel_size": 2}),
    "2x2_ceil": Pooling("avg_pool2d", (2, 3, 7, 9), {"kernel_size": 2, "ceil_mode": True}),
    "3x3_stride_1": Pooling("avg_pool2d", (2, 3, 9, 8), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "3x3_inside_only_ceil": Pooling(
        "avg_pool2d",
        (2, 3, 8, 9),
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    ),
    "1x1_strided": Pooling("avg_pool2d", (2, 3, 5, 6), {"kernel_size": 1, "stride": (3, 2)}),
    "stride_beyond_the_kernel_ceil": Pooling(
        "avg_pool2d", (2, 3, 12, 11), {"kernel_size": 2, "stride": (5, 4), "ceil_mode": True}
    ),
    "last_window_would_start_in_the_padding": Pooling(
        "avg_pool2d", (2, 3, 5, 5), {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True}
    ),
    "larger_than_the_padded_input": Pooling(
        "avg_pool2d", (2, 3, 3, 2), {"kernel_size": (6, 5), "stride": (3, 4), "padding": (1, 0), "ceil_mode": True}
    ),
    "larger_than_the_padded_input_inside_only": Pooling(
        "avg_pool2d",
        (2, 3, 3, 2),
        {"kernel_size": 6, "stride": 4, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    ),
    "uneven": Pooling("avg_pool2d", (2, 3, 9, 14), {"kernel_size": (2, 5), "stride": (1, 3), "padding": (1, 2)}),
    "divided_by_5": Pooling(
        "avg_pool2d", (2, 3, 7, 9), {"kernel_size": 3, "stride": 2, "padding": 1, "divisor_override": 5}
    ),
    "divided_by_less_than_nothing": Pooling(
        "avg_pool2d",
        (2, 3, 7, 9),
        {"kernel_size": 3, "stride": 2, "ceil_mode": True, "count_include_pad": False, "divisor_override": -4},
    ),
    "all_of_it": Pooling("avg_pool2d", (2, 35, 5, 4), {"kernel_size": (5, 4)}),
    "one_pixel_all_padding_around": Pooling("avg_pool2d", (1, 2, 1, 1), {"kernel_size": 3, "padding": 1}),
    "batch_of_none": Pooling("avg_pool2d", (0, 3, 7, 9), {"kernel_size": 2}),
    "no_batch": Pooling("avg_pool2d", (3, 7, 9), {"kernel_size": 2, "padding": 1}),
    "many_channels": Pooling("avg_pool2d", (2, 70, 7, 9), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "wide": Pooling("avg_pool2d", (1, 3, 6, 150), {"kernel_size": 2, "stride": (2, 3)}),
    "2x2x2": Pooling("avg_pool3d", (2, 3, 4, 6, 5), {"kernel_size": 2}),
    "volume_uneven_ceil": Pooling(
        "avg_pool3d",
        (2, 3, 5, 6, 8),
        {"kernel_size": (3, 2, 3), "stride": (2, 3, 2), "padding": (1, 0, 1), "ceil_mode": True},
    ),
    "volume_inside_only": Pooling(
        "avg_pool3d", (2, 3, 4, 5, 4), {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}
    ),
    "volume_divided_by_less_than_nothing": Pooling(
        "avg_pool3d", (2, 3, 4, 5, 4), {"kernel_size": 2, "padding": 1, "divisor_override": -3}
    ),
    "volume_no_batch": Pooling("avg_pool3d", (3, 4, 5, 6), {"kernel_size": 2, "stride": 1}),
    "volume_batch_of_none": Pooling("avg_pool3d", (0, 3, 4, 5, 6), {"kernel_size": 2}),
}


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_torch_in_every_format(name: str, dtype: torch.dtype, algorithm: str) -> None:
    # The reference adds up to 27 values of size 1 in the type itself, and divides the sum by 3 or more.
    loose = {"rtol": 0.0, "atol": 8 * torch.finfo(dtype).eps} if rounds_every_sum(dtype, algorithm) else {}
    for format in FORMATS if dtype == torch.float64 else FORMATS[:2]:
        assert_same_pooling(PROBLEMS[name], filled(PROBLEMS[name].input, dtype), format, **loose)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["3x3_inside_only_ceil", "uneven", "divided_by_5"])
def test_any_strides_of_input_and_gradient(name: str, layout: str) -> None:
    pooling = PROBLEMS[name]
    input = LAYOUTS[layout](filled(pooling.input))
    mine, theirs = leaf(input), leaf(input.contiguous())
    output, expected = pooling.ours(mine), pooling.theirs(theirs)
    grad_output = LAYOUTS[layout](filled(output.shape, seed=3))
    assert_all_close([output], [expected])
    assert_all_close(gradients(output, [mine], grad_output), gradients(expected, [theirs], grad_output.contiguous()))


@pytest.mark.parametrize("format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["5_ceil", "3x3_inside_only_ceil", "divided_by_5", "volume_uneven_ceil"])
def test_infinities_and_nan_stay_inside_their_windows(name: str, format: str) -> None:
    pooling = PROBLEMS[name]
    input = filled(pooling.input)
    for place, value in enumerate((torch.inf, -torch.inf, torch.nan)):
        input[place % 2, place, ..., 2 + place] = value
    assert 0 < pooling.theirs(input).isfinite().sum() < pooling.theirs(input).numel()
    assert_same_pooling(pooling, input, format)
    # Backward the same: an infinite gradient reaches the pixels of its window and no others.
    mine, theirs = leaf(pooling.in_format(input, format)), leaf(input)
    output, expected = pooling.ours(mine), pooling.theirs(theirs)
    grad_output = filled(output.shape, seed=3)
    grad_output[0, 1, ..., 1], grad_output[1, 0, ..., 2] = torch.inf, torch.nan
    (grad,), (exact,) = gradients(output, [mine], grad_output), gradients(expected, [theirs], grad_output)
    assert 0 < exact.isfinite().sum() < exact.numel()
    assert_close(grad, exact, equal_nan=True)


@pytest.mark.parametrize("name", [name for name, p in PROBLEMS.items() if p.input[0] != 0])
def test_integers_are_divided_towards_zero(name: str) -> None:
    pooling = PROBLEMS[name]
    input = filled(pooling.input).mul(50).long()
    assert torch.equal(pooling.ours(input), pooling.theirs(input))


@pytest.mark.parametrize("name", [name for name, p in PROBLEMS.items() if p.input[0] != 0])
def test_backward_is_the_adjoint(name: str) -> None:
    pooling = PROBLEMS[name]
    input = leaf(filled(pooling.input))
    output = pooling.ours(input)
    other = filled(output.shape, seed=1)
    (grad,) = gradients(output, [input], other)
    assert_close((output * other).sum(), (input * grad).sum())


@pytest.mark.parametrize("rank", [2, 3])
def test_global_average_of_channels_last_has_a_channels_last_gradient(rank: int) -> None:
    pooling = Pooling(f"avg_pool{rank}d", (2, 3, *[4, 5, 6][:rank]), {"kernel_size": [4, 5, 6][:rank]})
    input = leaf(pooling.in_format(filled(pooling.input), "channels_last"))
    # The output's one pixel has no format, and an expanded gradient no strides.
    (grad,) = torch.autograd.grad(pooling.ours(input).sum(), input)
    assert strides(grad) == strides(input)
    assert_close(grad, torch.full_like(input, 1 / input[0, 0].numel()))


def test_stride_defaults_to_the_kernel() -> None:
    input = filled((2, 3, 9, 8))
    for stride in (None, (), []):
        assert_close(avg_pool2d(input, (2, 3), stride), F.avg_pool2d(input, (2, 3)))


MODULES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "AvgPool1d": ({"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}, (8,)),
    "AvgPool2d": ({"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "divisor_override": 5}, (9, 8)),
    "AvgPool3d": ({"kernel_size": 3, "stride": (1, 2, 3), "padding": 1, "count_include_pad": False}, (4, 5, 6)),
}


@pytest.mark.parametrize("before", [(2, 3), (3,), (0, 3)], ids=["batch", "no_batch", "batch_of_none"])
@pytest.mark.parametrize("name", MODULES)
def test_module_equals_torch(name: str, before: tuple[int, ...]) -> None:
    arguments, size = MODULES[name]
    input: Tensor = filled((*before, *size))
    for options in (arguments, {"kernel_size": 2}):
        ours, theirs = getattr(torchconv, name)(**options), getattr(nn, name)(**options)
        assert repr(ours) == repr(theirs)
        assert_close(ours(input), theirs(input))
