"""The column matrix, and the way back, in one to three dimensions."""

from math import prod

import torch
from torch import Tensor

from torchconv import autograd, reference
from torchconv.functional.arguments import (
    IntOrInts,
    check_addressable,
    check_fits,
    check_pixels,
    ints,
    is_batched,
    window_of,
)


def unfold(
    input: Tensor, kernel_size: IntOrInts, dilation: IntOrInts = 1, padding: IntOrInts = 0, stride: IntOrInts = 1
) -> Tensor:
    """The column matrix: every window of a picture, as one column. Also called im2col.

    Equivalent to `torch.nn.functional.unfold` in two dimensions, and does the same in one and three: there are as many
    as `kernel_size` has values; a plain int stands for two.

    Args:
        input: (N, C, H, W) or (C, H, W); (N, C, L) or (C, L) for a kernel_size of one value, (N, C, D, H, W) or
            (C, D, H, W) for three.
        kernel_size, dilation, padding, stride: in pixels, one int or one for each dimension.

    Returns:
        (N, C * taps, positions), or without the batch; the taps of a channel are in raster order, and so are positions.

    Raises:
        RuntimeError: sizes that don't go together.
        TypeError: an argument of another type.
    """
    rank = _rank("unfold", kernel_size)
    batched = is_batched("unfold", "input", input, rank)
    window = window_of("unfold", rank, kernel_size, stride, padding, dilation)
    check_pixels("unfold", input, rank)
    check_fits("unfold", window, input.shape[-rank:])
    size = reference.output_size(input.shape[-rank:], *window)
    rows = input.shape[-rank - 1] * prod(window.kernel_size)
    check_addressable("unfold", input, [*input.shape[: -rank - 1], rows, prod(size)], window)
    columns = autograd.im2col(input if batched else input.unsqueeze(0), window)
    return columns if batched else columns.squeeze(0)


def fold(
    input: Tensor,
    output_size: IntOrInts,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    padding: IntOrInts = 0,
    stride: IntOrInts = 1,
) -> Tensor:
    """Adds the columns of a column matrix up into a picture: the adjoint of `unfold`. Also called col2im.

    Equivalent to `torch.nn.functional.fold` in two dimensions, and does the same in one and three: there are as many as
    `kernel_size` has values; a plain int stands for two.

    Args:
        input: (N, C * taps, positions), or without the batch.
        output_size: the picture's spatial size in pixels, one int or one for each dimension.
        kernel_size, dilation, padding, stride: in pixels, one int or one for each dimension.

    Returns:
        (N, C, *output_size), or without the batch.

    Raises:
        RuntimeError: sizes that don't go together.
        TypeError: an argument of another type.
    """
    rank = _rank("fold", kernel_size)
    batched = is_batched("fold", "input", input, 1)
    window = window_of("fold", rank, kernel_size, stride, padding, dilation)
    size = torch.Size(ints("fold", "output_size", output_size, rank, 1))
    check_fits("fold", window, size)
    rows, positions = input.shape[-2:]
    taps = prod(window.kernel_size)
    expected = reference.output_size(size, *window)
    if rows % taps != 0 or rows == 0 or positions != prod(expected):
        raise RuntimeError(
            f"fold: input has shape {tuple(input.shape)}, expected a multiple of {taps} (the kernel's taps) rows, and "
            f"{' * '.join(map(str, expected))} columns (the window's positions in {tuple(size)})"
        )
    check_addressable("fold", input, [*input.shape[:-2], rows // taps, *size], window)
    image = autograd.col2im(input if batched else input.unsqueeze(0), size, window)
    return image if batched else image.squeeze(0)


im2col, col2im = unfold, fold  # the literature's names


def _rank(function: str, kernel_size: IntOrInts) -> int:
    rank = len(kernel_size) if isinstance(kernel_size, (tuple, list, torch.Size)) else 2
    if not 1 <= rank <= 3:
        raise RuntimeError(f"{function}: kernel_size is {kernel_size!r}, expected an int, or one to three of them")
    return rank
