"""Max pooling: bit for bit what torch gives, forward, indices and gradients."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from grid import BACKENDS, LAYOUTS, assert_all_close, filled, gradients, leaf, rounds_every_sum
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.testing import assert_close

from torchconv import MaxPool2d, ops, reference
from torchconv.functional import max_pool2d

# torch's own, at the first use of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")

# The input's shape, and the window.
PROBLEMS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "2x2": ((2, 3, 8, 10), {"kernel_size": 2}),
    "2x2_with_a_rest": ((2, 3, 7, 9), {"kernel_size": 2}),
    "2x2_ceil": ((2, 3, 7, 9), {"kernel_size": 2, "ceil_mode": True}),
    "3x3_stride_2": ((2, 3, 9, 8), {"kernel_size": 3, "stride": 2}),
    "3x3_stride_1": ((2, 3, 9, 8), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "3x3_stride_2_padded_ceil": ((2, 3, 8, 9), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "1x1": ((2, 3, 5, 6), {"kernel_size": 1}),
    "1x1_strided": ((2, 3, 5, 6), {"kernel_size": 1, "stride": (3, 2)}),
    "stride_beyond_the_kernel": ((2, 3, 11, 13), {"kernel_size": (2, 3), "stride": (4, 5)}),
    "stride_beyond_the_kernel_ceil": ((2, 3, 12, 11), {"kernel_size": 2, "stride": (5, 4), "ceil_mode": True}),
    "last_window_would_start_in_the_padding": (
        (2, 3, 5, 5),
        {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True},
    ),
    "dilated": ((2, 3, 9, 10), {"kernel_size": 3, "stride": 1, "dilation": 2}),
    "dilated_padded_ceil": (
        (2, 3, 11, 10),
        {"kernel_size": (2, 3), "stride": (2, 3), "padding": 1, "dilation": (3, 2), "ceil_mode": True},
    ),
    "uneven": ((2, 3, 9, 14), {"kernel_size": (2, 5), "stride": (1, 3), "padding": (1, 2)}),
    "as_large_as_the_input": ((2, 3, 5, 4), {"kernel_size": (5, 4)}),
    "one_pixel": ((1, 1, 1, 1), {"kernel_size": 1}),
    "one_pixel_all_padding_around": ((1, 2, 1, 1), {"kernel_size": 3, "padding": 1}),
    "256_taps": ((1, 2, 20, 19), {"kernel_size": 16, "stride": 2}),
    "289_taps": ((1, 2, 20, 19), {"kernel_size": 17, "stride": 1, "padding": 8}),
    "batch_of_none": ((0, 3, 7, 9), {"kernel_size": 2}),
    "no_batch": ((3, 7, 9), {"kernel_size": 2, "padding": 1}),
    "many_channels": ((2, 70, 7, 9), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "wide": ((1, 3, 6, 150), {"kernel_size": 2, "stride": (2, 3)}),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
KINDS = ("distinct", "ties", "special")


def values(shape: tuple[int, ...], kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values that are distinct, often equal, or often NaN, an infinity or a zero of either sign."""
    normal = filled(shape, dtype)
    if kind == "distinct":
        return normal
    if kind == "ties":
        return normal.round()
    chosen = filled(shape, seed=9).mul(4).round().remainder(8).long()
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, -torch.inf, -torch.inf, 1.0], dtype=dtype)
    return special[chosen]


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ours.signbit() & ~ours.isnan(), theirs.signbit() & ~theirs.isnan())  # a zero keeps its sign


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_torch(name: str, layout: str, kind: str, dtype: torch.dtype) -> None:
    shape, window = PROBLEMS[name]
    input = values(shape, kind, dtype)
    if input.dim() == 4:
        input = LAYOUTS[layout](input)
    expected, indices = F.max_pool2d(input, **window, return_indices=True)
    output, places = max_pool2d(input, **window, return_indices=True)
    assert_same_bits(output, expected)
    assert torch.equal(places, indices)
    assert places.dtype == torch.int64
    assert_same_bits(max_pool2d(input, **window), expected)
    assert_same_bits(max_pool2d(leaf(input), **window).detach(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_equal_torch(name: str, layout: str, kind: str, dtype: torch.dtype, algorithm: str) -> None:
    shape, window = PROBLEMS[name]
    input = values(shape, kind, dtype)
    if input.dim() == 4:
        input = LAYOUTS[layout](input)
    mine, theirs = leaf(input), leaf(input.double())
    output, expected = max_pool2d(mine, **window), F.max_pool2d(theirs, **window)
    grad_output = filled(output.shape, dtype, 3)
    (ours,), (exact,) = gradients(output, [mine], grad_output), gradients(expected, [theirs], grad_output.double())
    if rounds_every_sum(dtype, algorithm):
        # As many values of size 1 are added as windows hold a pixel, at most, and their sum is rounded each time.
        terms = 289 if name == "289_taps" else 9
        assert_close(ours, exact.to(dtype), rtol=0, atol=terms * 2 * torch.finfo(dtype).eps)
    else:
        assert_close(ours, exact.to(dtype))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_keep_the_memory_format(layout: str) -> None:
    input = leaf(LAYOUTS[layout](filled((2, 3, 8, 10))))
    for output in (max_pool2d(input, 2), max_pool2d(input.detach(), 2)):
        assert output.stride() == LAYOUTS[layout](output).stride()
    for grad_layout in ("contiguous", "channels_last"):
        output = max_pool2d(input, 2)
        (grad,) = gradients(output, [input], LAYOUTS[grad_layout](filled(output.shape)))
        assert grad.stride() == input.stride()


def test_global_maximum_of_channels_last_has_a_channels_last_gradient() -> None:
    input = leaf(LAYOUTS["channels_last"](filled((2, 3, 4, 5))))
    # The output's one pixel has no format, and an expanded gradient no strides.
    (grad,) = torch.autograd.grad(max_pool2d(input, (4, 5)).sum(), input)
    assert grad.stride() == input.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["3x3_stride_2_padded_ceil", "dilated", "2x2"])
def test_any_strides_of_input_and_gradient(name: str, layout: str) -> None:
    shape, window = PROBLEMS[name]
    input = LAYOUTS[layout](filled(shape))
    mine, theirs = leaf(input), leaf(input.contiguous())
    (output, places), (expected, indices) = (
        pool(t, **window, return_indices=True) for pool, t in ((max_pool2d, mine), (F.max_pool2d, theirs))
    )
    assert_same_bits(output, expected)
    assert torch.equal(places, indices)
    grad_output = LAYOUTS[layout](filled(output.shape, seed=3))
    assert_all_close(gradients(output, [mine], grad_output), gradients(expected, [theirs], grad_output.contiguous()))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_integers(dtype: torch.dtype) -> None:
    input = filled((2, 3, 7, 8)).mul(3).round().to(dtype)
    for window in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}):
        ours, theirs = (pool(input, **window, return_indices=True) for pool in (max_pool2d, F.max_pool2d))
        assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["3x3_stride_2_padded_ceil", "dilated_padded_ceil", "uneven", "no_batch"])
def test_gradcheck(name: str) -> None:
    shape, window = PROBLEMS[name]
    # Distinct values far apart, so that no winner changes when one is nudged.
    input = leaf(torch.randperm(torch.Size(shape).numel(), generator=torch.Generator().manual_seed(0)).double())

    def pool(t: Tensor) -> Tensor:
        return max_pool2d(t.reshape(shape), **window)

    assert gradcheck(pool, [input], check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(pool, [input], check_fwd_over_rev=True, fast_mode=True)


def test_whole_jacobian() -> None:
    input = leaf(torch.randperm(30, generator=torch.Generator().manual_seed(0)).double().reshape(1, 1, 5, 6))

    def pool(t: Tensor) -> Tensor:
        return max_pool2d(t, 3, 2, 1, ceil_mode=True)

    assert gradcheck(pool, [input], check_forward_ad=True)
    assert gradgradcheck(pool, [input], check_fwd_over_rev=True, check_rev_over_rev=True)


def test_forward_mode_equals_torch() -> None:
    input, tangent = filled((2, 3, 7, 8)), filled((2, 3, 7, 8), seed=1)
    results = [
        torch.func.jvp(lambda t, pool=pool: pool(t, 3, 2, 1), (input,), (tangent,))
        for pool in (max_pool2d, F.max_pool2d)
    ]
    assert_close(*results)
    (_, places), (moved, still) = torch.func.jvp(
        lambda t: max_pool2d(t, 3, 2, 1, return_indices=True), (input,), (tangent,)
    )
    assert torch.equal(moved, tangent.flatten(2).gather(2, places.flatten(2)).reshape(moved.shape))
    assert not still.any()


@pytest.mark.parametrize(("kernel", "dtype"), [(2, torch.uint8), (16, torch.uint8), (17, torch.int32)])
def test_saves_a_byte_per_window_up_to_256_taps(kernel: int, dtype: torch.dtype) -> None:
    input, saved = leaf(filled((2, 3, 36, 36))), []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = max_pool2d(input, kernel, 2)
    assert [(t.dtype, t.shape) for t in saved] == [(dtype, output.shape)]
    saved.clear()
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        max_pool2d(input.detach(), kernel, 2, return_indices=True)
    assert saved == []


@pytest.mark.parametrize("needed", [True, False])
def test_finds_positions_only_where_a_gradient_needs_them(needed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    max_pool, asked = ops.max_pool, []
    monkeypatch.setattr(ops, "max_pool", lambda *args: asked.append(args[-1]) or max_pool(*args))
    max_pool2d(filled((2, 3, 7, 8)).requires_grad_(needed), 2)
    assert asked == [needed]


def test_lets_go_of_the_input() -> None:
    hidden = leaf(filled((2, 3, 7, 8))) * 2
    alive = weakref.ref(hidden)
    output = max_pool2d(hidden, 2)
    del hidden
    assert alive() is None
    assert output.requires_grad


def test_indices_have_no_gradient() -> None:
    output, indices = max_pool2d(leaf(filled((2, 3, 7, 8))), 2, return_indices=True)
    assert output.requires_grad
    assert not indices.requires_grad
    assert_close(F.max_unpool2d(output, indices, 2, output_size=(7, 8)).sum(), output.sum())


RANKS: dict[str, tuple[tuple[int, ...], tuple[list[int], ...], Any]] = {
    "1d": ((2, 3, 17), ([3], [2], [1], [2]), F.max_pool1d),
    "3d": ((2, 3, 6, 7, 8), ([2, 3, 2], [1, 2, 3], [1, 1, 0], [2, 1, 1]), F.max_pool3d),
    "3d_343_taps": ((1, 2, 9, 8, 8), ([7, 7, 7], [2, 1, 1], [1, 3, 2], [1, 1, 1]), F.max_pool3d),
}
# Torch has no channels-last format for one spatial dimension.
RANKS_AND_FORMATS = [("1d", False), ("3d", False), ("3d", True), ("3d_343_taps", False), ("3d_343_taps", True)]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("name", "channels_last"), RANKS_AND_FORMATS)
def test_ops_in_one_and_three_dimensions(name: str, ceil_mode: bool, channels_last: bool) -> None:
    shape, window, pool = RANKS[name]
    format = ops.memory_format_of(len(shape), channels_last)
    input = leaf(values(shape, "ties").contiguous(memory_format=format))
    expected, indices = pool(input, *window, ceil_mode=ceil_mode, return_indices=True)
    output, positions = ops.max_pool(input.detach(), *window, ceil_mode, True)
    assert_same_bits(output, expected.detach())
    assert torch.equal(reference.max_pool_indices(positions, shape[2:], *window), indices)
    grad_output = filled(output.shape, seed=3).contiguous(memory_format=format)
    scattered = ops.max_pool_scatter(grad_output, positions, shape[2:], *window, channels_last)
    assert_close(scattered, gradients(expected, [input], grad_output)[0])
    gathered = ops.max_pool_gather(input.detach(), positions, *window)
    assert_same_bits(gathered, expected.detach())
    assert output.stride() == gathered.stride() == output.contiguous(memory_format=format).stride()
    assert scattered.stride() == input.stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("taps", [9, 289])
def test_positions_that_no_pooling_gave_pick_and_add_what_the_reference_does(taps: int, layout: str) -> None:
    kernel = int(taps**0.5)
    window = ([kernel] * 2, [2, 3], [kernel // 2] * 2, [2, 1])
    input = LAYOUTS[layout](filled((2, 3, 20, 22)))
    _, positions = ops.max_pool(input, *window, False, True)
    info = torch.iinfo(positions.dtype)
    garbage = filled(positions.shape, seed=5).mul(taps).round().clamp(info.min, info.max).to(positions.dtype)
    garbage[0, 0], garbage[0, 1] = info.min, info.max
    garbage = LAYOUTS[layout](garbage)
    assert_close(ops.max_pool_gather(input, garbage, *window), reference.max_pool_gather(input, garbage, *window))
    grad = LAYOUTS[layout](filled(positions.shape, seed=6))
    ours = ops.max_pool_scatter(grad, garbage, [20, 22], *window, False)
    assert_close(ours, reference.max_pool_scatter(grad, garbage, [20, 22], *window))


MODULES: dict[str, dict[str, Any]] = {
    "defaults": {"kernel_size": 2},
    "all_arguments": {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "dilation": (1, 2), "ceil_mode": True},
    "indices": {"kernel_size": 3, "stride": 2, "return_indices": True},
}


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (3, 9, 8), (0, 3, 9, 8)], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_module_equals_torch(name: str, shape: tuple[int, ...]) -> None:
    ours, theirs = MaxPool2d(**MODULES[name]), nn.MaxPool2d(**MODULES[name])
    assert repr(ours) == repr(theirs)
    assert_close(ours(filled(shape)), theirs(filled(shape)), rtol=0, atol=0)
