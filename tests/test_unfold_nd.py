"""unfold and fold in one and three dimensions: convolution with one-hot kernels, and its adjoint."""

from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch
from grid import BACKENDS, filled, gradients, leaf, rounds_every_sum
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv
from torchconv import functional, ops
from torchconv.functional import fold, unfold

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# The picture's shape, and the window.
PROBLEMS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 3, 9), {"kernel_size": (3,)}),
    "1d_everything": ((2, 3, 17), {"kernel_size": (3,), "dilation": 2, "padding": 3, "stride": 2}),
    "1d_no_batch": ((3, 8), {"kernel_size": [2], "padding": (1,)}),
    "1d_batch_of_none": ((0, 3, 8), {"kernel_size": (2,)}),
    "1d_many_channels": ((2, 70, 21), {"kernel_size": (5,), "stride": 3}),
    "2d": ((2, 3, 6, 7), {"kernel_size": (3, 2), "padding": (1, 0), "stride": (2, 1)}),
    "2d_a_number": ((2, 3, 6, 7), {"kernel_size": 3}),
    "3d": ((2, 3, 4, 5, 6), {"kernel_size": (2, 2, 2)}),
    "3d_everything": (
        (2, 3, 6, 7, 9),
        {"kernel_size": (2, 3, 2), "dilation": (2, 1, 3), "padding": (0, 2, 1), "stride": (1, 2, 3)},
    ),
    "3d_no_batch": ((3, 4, 5, 6), {"kernel_size": (3, 1, 2), "padding": 1}),
    "3d_batch_of_none": ((0, 3, 4, 5, 6), {"kernel_size": (3, 1, 2)}),
}


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


def rank_of(kernel_size: Any) -> int:
    return 2 if isinstance(kernel_size, int) else len(kernel_size)


def unfold_by_convolution(picture: Tensor, kernel_size: Any, **window: Any) -> Tensor:
    """Each channel convolved with as many kernels as there are taps, of which each picks one."""
    rank = rank_of(kernel_size)
    kernel = [kernel_size] * rank if isinstance(kernel_size, int) else kernel_size
    one_hot = torch.eye(prod(kernel), dtype=picture.dtype).reshape(prod(kernel), 1, *kernel)
    *batch, channels = picture.shape[:-rank]
    columns = CONVS[rank](picture.reshape(prod(batch) * channels, 1, *picture.shape[-rank:]), one_hot, **window)
    return columns.reshape(*batch, channels * prod(kernel), prod(columns.shape[2:]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_unfold_and_fold_are_convolution_with_one_hot_kernels_and_its_adjoint(
    name: str, dtype: torch.dtype, algorithm: str
) -> None:
    shape, window = PROBLEMS[name]
    mine, exact = leaf(filled(shape, dtype)), leaf(filled(shape, dtype).double())
    columns, expected = unfold(mine, **window), unfold_by_convolution(exact, **window)
    assert columns.dtype == dtype
    assert columns.is_contiguous()
    assert torch.equal(columns.double(), expected)
    other = filled(columns.shape, dtype, 1)
    (picture,) = gradients(expected, [exact], other.double())
    size = shape[-rank_of(window["kernel_size"]) :]
    # Where each sum is rounded: at most 12 values of size 1 are added.
    loose = {"rtol": 0.0, "atol": 12 * 2 * torch.finfo(dtype).eps} if rounds_every_sum(dtype, algorithm) else {}
    for ours in (fold(other, size, **window), *gradients(columns, [mine], other)):
        assert_close(ours, picture.to(dtype), **loose)


@pytest.mark.parametrize("name", ["1d_everything", "3d_everything"])
def test_any_strides(name: str) -> None:
    shape, window = PROBLEMS[name]
    picture, size = filled(shape), shape[2:]
    columns = unfold(picture, **window)
    for other in (
        picture.transpose(0, 1).contiguous().transpose(0, 1),
        picture.repeat_interleave(2, -1)[..., ::2],
        picture.movedim(1, -1).contiguous().movedim(-1, 1),
    ):
        assert torch.equal(unfold(other, **window), columns)
    image = fold(columns, size, **window)
    assert torch.equal(fold(columns.mT.contiguous().mT, size, **window), image)


@pytest.mark.parametrize("name", PROBLEMS)
def test_adjoint(name: str) -> None:
    shape, window = PROBLEMS[name]
    picture = filled(shape)
    columns = unfold(picture, **window)
    other = filled(columns.shape, seed=1)
    back = fold(other, shape[-rank_of(window["kernel_size"]) :], **window)
    assert_close((columns * other).sum(), (picture * back).sum())


@pytest.mark.parametrize("name", PROBLEMS)
def test_fold_of_unfold_counts_the_windows_that_hold_a_pixel(name: str) -> None:
    shape, window = PROBLEMS[name]
    picture, size = filled(shape), shape[-rank_of(window["kernel_size"]) :]
    counts = fold(unfold(torch.ones(shape), **window), size, **window)
    assert torch.equal(counts, counts.round())
    assert_close(fold(unfold(picture, **window), size, **window), picture * counts)
    apart = {**window, "stride": window["kernel_size"], "padding": 0, "dilation": 1}
    counts = fold(unfold(torch.ones(shape), **apart), size, **apart)
    assert torch.equal(counts, (counts > 0).float())  # windows side by side hold each pixel once, or not at all


@pytest.mark.parametrize("name", ["1d_everything", "3d"])
def test_gradcheck(name: str) -> None:
    shape, window = PROBLEMS[name]
    picture = leaf(filled((1, 1, *[min(n, 8) for n in shape[2:]])))
    columns = leaf(unfold(picture, **window))
    calls = (lambda t: unfold(t, **window), picture), (lambda t: fold(t, picture.shape[2:], **window), columns)
    for function, argument in calls:
        assert gradcheck(function, [argument], check_forward_ad=True, check_batched_grad=True, fast_mode=True)
        assert gradgradcheck(function, [argument], check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("name", ["1d_everything", "3d_everything"])
def test_modules(name: str) -> None:
    shape, window = PROBLEMS[name]
    columns = torchconv.Unfold(**window)(filled(shape))
    assert torch.equal(columns, unfold(filled(shape), **window))
    picture = torchconv.Fold(shape[2:], **window)(columns)
    assert torch.equal(picture, fold(columns, shape[2:], **window))


def test_the_literatures_names_are_the_same_functions() -> None:
    assert functional.im2col is unfold
    assert functional.col2im is fold


@pytest.mark.parametrize("kernel_size", [(), (2, 2, 2, 2)], ids=str)
def test_no_other_number_of_dimensions(kernel_size: tuple[int, ...]) -> None:
    with pytest.raises(
        RuntimeError, match=r"^unfold: kernel_size is \(.*\), expected an int, or one to three of them$"
    ):
        unfold(filled((2, 3, 4, 4)), kernel_size)
    with pytest.raises(RuntimeError, match=r"^fold: kernel_size is \(.*\), expected an int, or one to three of them$"):
        fold(filled((2, 16, 9)), 4, kernel_size)


def test_the_inputs_dimensions_go_with_the_kernels() -> None:
    with pytest.raises(RuntimeError, match=r"^unfold: input has shape \(2, 3, 4, 4\), expected 3 dimensions, or 2 "):
        unfold(filled((2, 3, 4, 4)), (2,))
    with pytest.raises(RuntimeError, match=r"^unfold: input has shape \(2, 3, 4\), expected 5 dimensions, or 4 "):
        unfold(filled((2, 3, 4)), (2, 2, 2))
