"""Convolution and transposed convolution over one, two and three dimensions."""

from typing import Any

import torch
from torch import Tensor

from torchconv import autograd, ops, reference
from torchconv.autograd import ConvGeometry, Window
from torchconv.functional.arguments import (
    IntOrInts,
    check_addressable,
    check_channels,
    check_operands,
    conv_window,
    ints,
    is_batched,
)
from torchconv.functional.known_calls import KnownCalls, is_plain

# The geometries of calls with a batch.
_known: KnownCalls[ConvGeometry] = KnownCalls()


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: str | IntOrInts = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
) -> Tensor:
    """One-dimensional convolution. Equivalent to `torch.nn.functional.conv1d`.

    Args:
        input: (N, C, L) or (C, L).
        weight: (O, C / groups, k).
        bias: (O), or None.
        stride, dilation: in positions, an int.
        padding: zeros on each side; or "valid" (none), or "same" (as many as keep the size; stride 1 only).
        groups: channels are split into this many groups that don't see each other.

    Returns:
        (N, O, L'), or (O, L') for an input without a batch, L' = (L + 2 padding - dilation (k - 1) - 1) // stride + 1.

    Raises:
        RuntimeError: shapes, sizes or dtypes that don't go together, or an unknown padding string.
        TypeError: an argument of another type.
    """
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: str | IntOrInts = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
) -> Tensor:
    """Two-dimensional convolution. Equivalent to `torch.nn.functional.conv2d`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (O, C / groups, kH, kW).
        bias: (O), or None.
        stride, dilation: in pixels, one int or (height, width).
        padding: zeros on each side, in pixels; or "valid" (none), or "same" (as many as keep the size; stride 1 only).
        groups: channels are split into this many groups that don't see each other.

    Returns:
        (N, O, H', W'), or (O, H', W') for an input without a batch, H' = (H + 2 padding - dilation (kH - 1) - 1) //
        stride + 1; channels-last if the input or the weight is.

    Raises:
        RuntimeError: shapes, sizes or dtypes that don't go together, or an unknown padding string.
        TypeError: an argument of another type.
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: str | IntOrInts = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
) -> Tensor:
    """Three-dimensional convolution. Equivalent to `torch.nn.functional.conv3d`.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W).
        weight: (O, C / groups, kD, kH, kW).
        bias: (O), or None.
        stride, dilation: in pixels, one int or (depth, height, width).
        padding: zeros on each side, in pixels; or "valid" (none), or "same" (as many as keep the size; stride 1 only).
        groups: channels are split into this many groups that don't see each other.

    Returns:
        (N, O, D', H', W'), or (O, D', H', W') without a batch,
        H' = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1; channels-last if the input or the weight is.

    Raises:
        RuntimeError: shapes, sizes or dtypes that don't go together, or an unknown padding string.
        TypeError: an argument of another type.
    """
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
) -> Tensor:
    """One-dimensional transposed convolution, the adjoint of `conv1d` in its input.

    Equivalent to `torch.nn.functional.conv_transpose1d`.

    Args:
        input: (N, C, L) or (C, L).
        weight: (C, O / groups, k).
        bias: (O), or None.
        stride, padding, dilation: of the convolution that it is the adjoint of, an int.
        output_padding: how much larger than the least possible the output is; less than stride or dilation.
        groups: channels are split into this many groups that don't see each other.

    Returns:
        (N, O, L'), or (O, L') without a batch,
        L' = (L - 1) stride - 2 padding + dilation (k - 1) + output_padding + 1.

    Raises:
        RuntimeError: shapes, sizes or dtypes that don't go together.
        TypeError: an argument of another type.
    """
    return _conv_transpose(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
) -> Tensor:
    """Two-dimensional transposed convolution, the adjoint of `conv2d` in its input.

    Equivalent to `torch.nn.functional.conv_transpose2d`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (C, O / groups, kH, kW).
        bias: (O), or None.
        stride, padding, dilation: of the convolution that it is the adjoint of, one int or (height, width).
        output_padding: how much larger than the least possible the output is; less than stride or dilation.
        groups: channels are split into this many groups that don't see each other.

    Returns:
        (N, O, H', W'), or (O, H', W') without a batch,
        H' = (H - 1) stride - 2 padding + dilation (kH - 1) + output_padding + 1.

    Raises:
        RuntimeError: shapes, sizes or dtypes that don't go together.
        TypeError: an argument of another type.
    """
    return _conv_transpose(
        "conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
) -> Tensor:
    """Three-dimensional transposed convolution, the adjoint of `conv3d` in its input.

    Equivalent to `torch.nn.functional.conv_transpose3d`.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W).
        weight: (C, O / groups, kD, kH, kW).
        bias: (O), or None.
        stride, padding, dilation: of the convolution that it is the adjoint of, one int or (depth, height, width).
        output_padding: how much larger than the least possible the output is; less than stride or dilation.
        groups: channels are split into this many groups that don't see each other.

    Returns:
        (N, O, D', H', W'), or (O, D', H', W') without a batch,
        D' = (D - 1) stride - 2 padding + dilation (kD - 1) + output_padding + 1.

    Raises:
        RuntimeError: shapes, sizes or dtypes that don't go together.
        TypeError: an argument of another type.
    """
    return _conv_transpose(
        "conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def lowered(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast, the operands in its dtype, as torch's convolutions take them."""
    dtype = ops.autocast_dtype(input) if isinstance(input, Tensor) else None
    if dtype is None:
        return input, weight, bias

    def lower(tensor: Any) -> Any:
        eligible = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible and tensor.device.type == input.device.type else tensor

    return lower(input), lower(weight), lower(bias)


def _conv(
    function: str,
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: str | IntOrInts,
    dilation: IntOrInts,
    groups: int,
) -> Tensor:
    input, weight, bias, geometry, batched = conv_operands(
        function, rank, input, weight, bias, stride, padding, dilation, groups
    )
    output = autograd.conv(input, weight, bias, geometry)
    return output if batched else output.squeeze(0)


def conv_operands(
    function: str,
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: str | IntOrInts,
    dilation: IntOrInts,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor | None, ConvGeometry, bool]:
    """A convolution's checked operands, the input with a batch; its geometry; and whether there was a batch."""
    key = _key(rank, input, weight, bias, stride, padding, dilation, groups)
    known = _known.find(key)
    if known is not None:
        return input, weight, bias, known, True
    input, weight, bias = lowered(input, weight, bias)
    batched = is_batched(function, "input", input, rank)
    given_groups, groups = groups, check_operands(function, rank, input, weight, bias, groups)
    if weight.shape[0] == 0:
        raise RuntimeError(f"{function}: weight has shape {tuple(weight.shape)}, expected one output channel or more")
    if 0 in input.shape[-rank:] and 0 not in input.shape[:-rank]:
        raise RuntimeError(f"{function}: input has shape {tuple(input.shape)}, expected no empty spatial dimension")
    check_channels(function, rank, input, weight, bias, groups)
    input, window, _ = conv_window(function, input, weight, stride, padding, dilation)
    geometry = ConvGeometry(window.stride, window.padding, window.dilation, groups, ops.current_algorithm())
    if batched:
        _known.add(key, geometry, (stride, padding, dilation, given_groups))
    return input if batched else input.unsqueeze(0), weight, bias, geometry, batched


def _key(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: str | IntOrInts,
    dilation: IntOrInts,
    groups: int,
) -> Any:
    """All that the checks ask for, or None where that can't be told, or where more is done than to check."""
    try:
        if type(padding) is str or not (is_plain(input) and weight.is_cpu and (bias is None or bias.is_cpu)):
            return None
        biases = None if bias is None else (bias.shape, bias.dtype)
        window = (id(stride), id(padding), id(dilation), id(groups))
        return rank, input.shape, input.dtype, weight.shape, weight.dtype, biases, window, ops.current_algorithm()
    except AttributeError:  # no tensor
        return None


def _conv_transpose(
    function: str,
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: IntOrInts,
    output_padding: IntOrInts,
    groups: int,
    dilation: IntOrInts,
) -> Tensor:
    input, weight, bias = lowered(input, weight, bias)
    batched = is_batched(function, "input", input, rank)
    groups = check_operands(function, rank, input, weight, bias, groups)
    out_channels = weight.shape[1] * groups
    if 0 in weight.shape[:2]:
        raise RuntimeError(f"{function}: weight has shape {tuple(weight.shape)}, expected one channel or more")
    if 0 in input.shape[-rank:]:
        raise RuntimeError(f"{function}: input has shape {tuple(input.shape)}, expected no empty spatial dimension")
    if weight.shape[0] != input.shape[-rank - 1] or weight.shape[0] % groups != 0:
        raise RuntimeError(
            f"{function}: weight of shape {tuple(weight.shape)} with groups={groups} needs an input of "
            f"{weight.shape[0]} channels that groups divides; input has shape {tuple(input.shape)}"
        )
    if bias is not None and bias.shape != (out_channels,):
        raise RuntimeError(f"{function}: bias has shape {tuple(bias.shape)}, expected ({out_channels},)")
    window = Window(
        tuple(weight.shape[2:]),
        ints(function, "stride", stride, rank, 1),
        ints(function, "padding", padding, rank, 0),
        ints(function, "dilation", dilation, rank, 1),
    )
    extra = ints(function, "output_padding", output_padding, rank, 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, window.stride, window.dilation, strict=True)):
        raise RuntimeError(
            f"{function}: output_padding is {output_padding!r}, expected less than stride {window.stride} "
            f"or dilation {window.dilation}"
        )
    size = torch.Size(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, k, s, p, d, e in zip(input.shape[-rank:], *window, extra, strict=True)
    )
    if any(n < 1 for n in size):
        raise RuntimeError(
            f"{function}: the output would have spatial shape {tuple(size)}, expected 1 or more "
            f"(input {tuple(input.shape)}, {window})"
        )
    check_addressable(function, input, [*input.shape[: -rank - 1], out_channels, *size], window)
    # An output padding of a stride and more makes room for positions that the input doesn't have: they are zero.
    missing = [o - n for o, n in zip(reference.output_size(size, *window), input.shape[-rank:], strict=True)]
    if any(missing):
        input = torch.nn.functional.pad(input, [side for m in reversed(missing) for side in (0, m)])
    geometry = ConvGeometry(window.stride, window.padding, window.dilation, groups, ops.current_algorithm())
    output = autograd.conv_input(input if batched else input.unsqueeze(0), weight, size, geometry)
    if bias is not None:
        shift = bias.reshape(-1, *[1] * rank)
        if output.dtype == torch.complex32:  # torch can't add those up in the bias's gradient
            output = (output.to(torch.complex64) + shift.to(torch.complex64)).to(output.dtype)
        elif torch._C._are_functorch_transforms_active():  # the bias may have a batch that the output hasn't
            output = output + shift
        else:
            output.add_(shift)
    return output if batched else output.squeeze(0)
