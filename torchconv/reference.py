"""The textbook: every op in plain PyTorch, to be read, checked and changed.

A window of `kernel_size` taps slides over an image. im2col writes down, for every tap, the image as that tap sees it:
one strided slice of the padded image. Convolution is then a matrix product, and all that follows is its adjoint.

Shapes: images are (N, C, *spatial) with one, two or three spatial dimensions, `taps` is the product of `kernel_size`
and `positions` that of the output size. `stride`, `padding`, `dilation` and `kernel_size` hold one int per spatial
dimension. Nothing here checks its arguments (torchconv.functional does), and nothing calls torch's own convolution,
pooling, unfold or fold: the compiled kernels are tested against this file, and without them the package runs on it.

Source: Chellapilla, Puri & Simard 2006, "High performance convolutional neural networks for document processing"
(im2col); Dumoulin & Visin 2016, arXiv:1603.07285 (sizes, strides, padding, the transposed map).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod
from types import EllipsisType

import torch
from torch import Tensor

Ints = Sequence[int]


def output_size(
    input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool = False
) -> list[int]:
    """Number of positions of the window along each dimension.

    floor((input + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1; `ceil_mode` (pooling) also counts a last
    window that juts out, unless it would start in the padding behind the image.
    """
    sizes = []
    for n, k, s, p, d in zip(input_size, kernel_size, stride, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        size = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (size - 1) * s >= n + p:
            size -= 1
        sizes.append(size)
    return sizes


def region(spatial: Iterable[slice]) -> tuple[slice | EllipsisType, ...]:
    """The index of a box in the spatial dimensions."""
    return (..., *spatial)


def pad(input: Tensor, padding: Ints, value: float = 0.0, extra: Ints | None = None) -> Tensor:
    """Surround an image with `padding` pixels of `value` on every side, and `extra` more behind its end."""
    spatial = input.shape[2:]
    behind = [p + e for p, e in zip(padding, extra or [0] * len(padding), strict=True)]
    if not any(padding) and not any(behind):
        return input
    padded = input.new_full(
        [*input.shape[:2], *(p + n + b for p, n, b in zip(padding, spatial, behind, strict=True))], value
    )
    padded[region(slice(p, p + n) for p, n in zip(padding, spatial, strict=True))] = input
    return padded


def tap_views(padded: Tensor, size: Ints, kernel_size: Ints, stride: Ints, dilation: Ints) -> Iterator[Tensor]:
    """For every tap of the window, in raster order, a view of what it meets at all positions: (N, C, *size)."""
    for tap in product(*map(range, kernel_size)):
        starts = [k * d for k, d in zip(tap, dilation, strict=True)]
        stops = [start + s * (n - 1) + 1 for start, s, n in zip(starts, stride, size, strict=True)]
        yield padded[region(slice(*where) for where in zip(starts, stops, stride, strict=True))]


def im2col(input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """(N, C, *spatial) to the column matrix (N, C * taps, positions)."""
    size = output_size(input.shape[2:], kernel_size, stride, padding, dilation)
    views = tap_views(pad(input, padding), size, kernel_size, stride, dilation)
    columns = torch.stack(list(views), dim=2)  # (N, C, taps, *size)
    return columns.reshape(input.shape[0], input.shape[1] * prod(kernel_size), prod(size))


def col2im(
    columns: Tensor, output_size_: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """The adjoint of im2col: every entry of the column matrix is added to the pixel that it was copied from.

    (N, C * taps, positions) to (N, C, *output_size_).
    """
    size = output_size(output_size_, kernel_size, stride, padding, dilation)
    taps = prod(kernel_size)
    batch, channels = columns.shape[0], columns.shape[1] // taps
    padded = columns.new_zeros([batch, channels, *(n + 2 * p for n, p in zip(output_size_, padding, strict=True))])
    by_tap = columns.reshape(batch, channels, taps, *size).unbind(2)
    for view, values in zip(tap_views(padded, size, kernel_size, stride, dilation), by_tap, strict=True):
        view += values
    return padded[region(slice(p, p + n) for p, n in zip(padding, output_size_, strict=True))].contiguous()


def conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """Convolution (cross-correlation): the weight as a matrix, times the column matrix.

    input (N, C, *spatial), weight (O, C / groups, *kernel_size), bias (O) to (N, O, *size).
    """
    kernel_size = weight.shape[2:]
    size = output_size(input.shape[2:], kernel_size, stride, padding, dilation)
    batch, out_channels = input.shape[0], weight.shape[0]
    columns = im2col(input, kernel_size, stride, padding, dilation)
    rows = weight.shape[1] * prod(kernel_size)
    output = weight.reshape(groups, out_channels // groups, rows) @ columns.reshape(batch, groups, rows, prod(size))
    output = output.reshape(batch, out_channels, *size)
    return output if bias is None else output + bias.reshape(-1, *[1] * len(size))


def conv_input(
    grad_output: Tensor, weight: Tensor, input_size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """The adjoint of conv in its input: the transposed weight matrix, then col2im. Also called transposed convolution.

    grad_output (N, O, *size), weight (O, C / groups, *kernel_size) to (N, C, *input_size).
    """
    batch, out_channels, *size = grad_output.shape
    kernel_size = weight.shape[2:]
    rows = weight.shape[1] * prod(kernel_size)
    matrix = weight.reshape(groups, out_channels // groups, rows).transpose(1, 2)
    columns = matrix @ grad_output.reshape(batch, groups, out_channels // groups, prod(size))
    columns = columns.reshape(batch, groups * rows, prod(size))
    return col2im(columns, input_size, kernel_size, stride, padding, dilation)


def conv_weight(
    input: Tensor, grad_output: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """The adjoint of conv in its weight: the output gradient times the transposed column matrix, summed over the batch.

    input (N, C, *spatial), grad_output (N, O, *size) to (O, C / groups, *kernel_size).
    """
    batch, out_channels, *size = grad_output.shape
    rows = input.shape[1] // groups * prod(kernel_size)
    columns = im2col(input, kernel_size, stride, padding, dilation).reshape(batch, groups, rows, prod(size))
    grad = grad_output.reshape(batch, groups, out_channels // groups, prod(size)) @ columns.transpose(2, 3)
    return grad.sum(0).reshape(out_channels, input.shape[1] // groups, *kernel_size)


def lowest(dtype: torch.dtype) -> float:
    """What padding is worth to a maximum: -inf, or an integer type's least value."""
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def max_pool_views(
    input: Tensor, size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, value: float
) -> Iterator[Tensor]:
    """tap_views of an image padded for pooling: windows of `ceil_mode` may jut out behind its end."""
    extra = [
        max(0, s * (o - 1) + d * (k - 1) + 1 - n - 2 * p)
        for n, o, k, s, p, d in zip(input.shape[2:], size, kernel_size, stride, padding, dilation, strict=True)
    ]
    return tap_views(pad(input, padding, value, extra), size, kernel_size, stride, dilation)


def first_taps(size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """The first tap of each window that lies inside the image: (*size), int64."""
    taps = torch.zeros([1] * len(size), dtype=torch.int64)
    for i, (n, k, s, p, d) in enumerate(zip(size, kernel_size, stride, padding, dilation, strict=True)):
        start = torch.arange(n) * s - p
        first = torch.where(start < 0, (-start + d - 1) // d, 0).clamp(max=k - 1)
        taps = taps * k + first.reshape([-1 if j == i else 1 for j in range(len(size))])
    return taps


def position_dtype(kernel_size: Ints) -> torch.dtype:
    """What a tap's number is stored in: one byte for up to 256 of them."""
    return torch.uint8 if prod(kernel_size) <= 256 else torch.int32


def max_pool(
    input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """The largest value in each window, and its position: the number of the tap that won.

    Ties go to the first maximum; a NaN wins, the last one if there are several; padding never does.
    (N, C, *spatial) to two of (N, C, *size).
    """
    size = output_size(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    worst = lowest(input.dtype)
    best = input.new_full([*input.shape[:2], *size], worst)
    positions = first_taps(size, kernel_size, stride, padding, dilation).to(input.device).expand(best.shape)
    for tap, view in enumerate(max_pool_views(input, size, kernel_size, stride, padding, dilation, worst)):
        better = (view > best) | (view != view)
        best = torch.where(better, view, best)
        positions = torch.where(better, tap, positions)
    return best, positions.to(position_dtype(kernel_size))


def max_pool_gather(
    input: Tensor, positions: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """What stands in `input` at saved positions: max pooling made linear. (N, C, *spatial) to (N, C, *size)."""
    views = max_pool_views(input, positions.shape[2:], kernel_size, stride, padding, dilation, 0.0)
    output = input.new_zeros(positions.shape)
    for tap, view in enumerate(views):
        output = torch.where(positions == tap, view, output)
    return output


def max_pool_scatter(
    grad_output: Tensor,
    positions: Tensor,
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    """The adjoint of max_pool_gather: each value goes back to where it came from.

    (N, C, *size) to (N, C, *input_size).
    """
    size = grad_output.shape[2:]
    behind = [
        max(n + p, s * (o - 1) + d * (k - 1) + 1 - p)
        for n, o, k, s, p, d in zip(input_size, size, kernel_size, stride, padding, dilation, strict=True)
    ]
    padded = grad_output.new_zeros([*grad_output.shape[:2], *(p + b for p, b in zip(padding, behind, strict=True))])
    for tap, view in enumerate(tap_views(padded, size, kernel_size, stride, dilation)):
        view += grad_output * (positions == tap)
    return padded[region(slice(p, p + n) for p, n in zip(padding, input_size, strict=True))].contiguous()


def max_pool_indices(
    positions: Tensor, input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """Saved positions as torch's `return_indices=True` has them: int64 indices into the flattened spatial input."""
    rest = positions.to(torch.int64)
    index = torch.zeros_like(rest)
    scale = 1
    for i in reversed(range(len(input_size))):
        tap = rest % kernel_size[i]
        rest = rest // kernel_size[i]
        start = torch.arange(positions.shape[2 + i], device=positions.device) * stride[i] - padding[i]
        start = start.reshape([-1 if j == i else 1 for j in range(len(input_size))])
        index += (start + tap * dilation[i]) * scale
        scale *= input_size[i]
    return index
