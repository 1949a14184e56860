"""The column matrix, and the way back."""

from math import prod

import torch
from torch import Tensor

from torchconv import autograd, reference
from torchconv.functional.arguments import IntOrInts, check_addressable, check_fits, ints, is_batched, window_of


def im2col(
    input: Tensor, kernel_size: IntOrInts, dilation: IntOrInts = 1, padding: IntOrInts = 0, stride: IntOrInts = 1
) -> Tensor:
    """The column matrix: every window of an image, as one column. Equivalent to `torch.nn.functional.unfold`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size, dilation, padding, stride: in pixels, one int or (height, width).

    Returns:
        (N, C * kH * kW, positions), or without the batch.

    Raises:
        RuntimeError: sizes that don't go together.
        TypeError: an argument of another type.
    """
    rank = 2
    batched = is_batched("im2col", "input", input, rank)
    window = window_of("im2col", rank, kernel_size, stride, padding, dilation)
    if 0 in input.shape[-rank - 1 :]:
        raise RuntimeError(f"im2col: input has shape {tuple(input.shape)}, expected no empty dimension but the batch")
    check_fits("im2col", window, input.shape[-rank:])
    size = reference.output_size(input.shape[-rank:], *window)
    rows = input.shape[-rank - 1] * prod(window.kernel_size)
    check_addressable("im2col", input, [*input.shape[: -rank - 1], rows, prod(size)], window)
    columns = autograd.im2col(input if batched else input.unsqueeze(0), window)
    return columns if batched else columns.squeeze(0)


def col2im(
    input: Tensor,
    output_size: IntOrInts,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    padding: IntOrInts = 0,
    stride: IntOrInts = 1,
) -> Tensor:
    """Adds the columns of a column matrix up into an image. Equivalent to `torch.nn.functional.fold`.

    Args:
        input: (N, C * kH * kW, positions), or without the batch.
        output_size: (height, width) of the image, in pixels.
        kernel_size, dilation, padding, stride: in pixels, one int or (height, width).

    Returns:
        (N, C, height, width), or without the batch.

    Raises:
        RuntimeError: sizes that don't go together.
        TypeError: an argument of another type.
    """
    rank = 2
    batched = is_batched("col2im", "input", input, 1)
    window = window_of("col2im", rank, kernel_size, stride, padding, dilation)
    size = torch.Size(ints("col2im", "output_size", output_size, rank, 1))
    check_fits("col2im", window, size)
    rows, positions = input.shape[-2:]
    taps = window.kernel_size[0] * window.kernel_size[1]
    expected = reference.output_size(size, *window)
    if rows % taps != 0 or rows == 0 or positions != expected[0] * expected[1]:
        raise RuntimeError(
            f"col2im: input has shape {tuple(input.shape)}, expected a multiple of {taps} (the kernel's taps) rows, "
            f"and {expected[0]} * {expected[1]} columns (the window's positions in {tuple(size)})"
        )
    check_addressable("col2im", input, [*input.shape[:-2], rows // taps, *size], window)
    image = autograd.col2im(input if batched else input.unsqueeze(0), size, window)
    return image if batched else image.squeeze(0)
