"""im2col, convolution on top of it, and the adjoints."""

from math import prod

import torch
from torch import Tensor

from torchconv.reference.windows import Ints, output_size, pad, region, tap_views


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
    # A copy of its own: forward mode asserts on a view in the place of a result.
    inside = region(padded, (slice(p, p + n) for p, n in zip(padding, output_size_, strict=True)))
    return inside.clone(memory_format=torch.contiguous_format)


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
