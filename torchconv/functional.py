"""Convolution and pooling with the signatures of torch.nn.functional. Arguments are checked here, once.

A wrong argument raises what torch raises: RuntimeError for shapes, sizes, dtypes and unknown strings,
NotImplementedError for a dtype that is not served, TypeError for a wrong type. Messages name the function, the
argument, its value and what was expected.
"""

from collections.abc import Sequence
from math import prod
from operator import index
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchconv import ops, reference
from torchconv.autograd import Col2Im, Conv, ConvGeometry, Im2Col, MaxPool, Window

IntOrInts = int | Sequence[int]

ADDRESSABLE = 2**47  # bytes: what a process can address on today's 64-bit processors


def _ints(function: str, name: str, value: Any, rank: int, smallest: int) -> tuple[int, ...]:
    """An argument that may be one int for all dimensions, as one per dimension."""
    values = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    if len(values) == 1:
        values *= rank
    # isinstance(v, int) first: Dynamo, where v may be symbolic, knows no hasattr of it.
    if any(isinstance(v, (bool, float, str)) or not (isinstance(v, int) or hasattr(v, "__index__")) for v in values):
        raise TypeError(f"{function}: {name} is {value!r}, expected an int or {rank} of them")
    if len(values) != rank:
        raise RuntimeError(f"{function}: {name} is {value!r}, expected one int or {rank}")
    if any(v < smallest for v in values):
        raise RuntimeError(f"{function}: {name} is {value!r}, expected {smallest} or more")
    if any(v >= 2**31 for v in values):
        raise RuntimeError(f"{function}: {name} is {value!r}, expected less than 2**31")
    return values


def _batched(function: str, name: str, tensor: Tensor, rank: int) -> bool:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{function}: {name} is {type(tensor).__name__}, expected a Tensor")
    if tensor.dim() not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"{function}: {name} has shape {tuple(tensor.shape)}, expected {rank + 2} dimensions, "
            f"or {rank + 1} without a batch"
        )
    return tensor.dim() == rank + 2


def _check_fits(function: str, window: Window, size: Sequence[int]) -> None:
    """The window must fit into the padded input, and the output into memory's addresses."""
    for i, (n, k, p, d) in enumerate(zip(size, window.kernel_size, window.padding, window.dilation, strict=True)):
        if d * (k - 1) + 1 > n + 2 * p:
            raise RuntimeError(
                f"{function}: the kernel spans {d * (k - 1) + 1} pixels along spatial dimension {i}, "
                f"more than the padded input's {n + 2 * p} (input {tuple(size)}, {window})"
            )


def _check_addressable(function: str, like: Tensor, shape: Sequence[int], window: Window) -> None:
    """The output must fit into what can be addressed: a slip in an argument asks for no memory."""
    if prod(shape) * like.element_size() > ADDRESSABLE:
        raise RuntimeError(
            f"{function}: the output would have shape {tuple(shape)}, more than can be addressed "
            f"(input {tuple(like.shape)}, {window})"
        )


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
    batched = _batched(function, "input", input, rank)
    channels = input.shape[-rank - 1]
    if not isinstance(weight, Tensor):
        raise TypeError(f"{function}: weight is {type(weight).__name__}, expected a Tensor")
    if weight.dim() != rank + 2:
        raise RuntimeError(f"{function}: weight has shape {tuple(weight.shape)}, expected {rank + 2} dimensions")
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"{function}: bias is {type(bias).__name__}, expected a Tensor or None")
    if isinstance(groups, bool) or not hasattr(groups, "__index__"):
        raise TypeError(f"{function}: groups is {groups!r}, expected an int")
    groups = index(groups)
    if groups <= 0:
        raise RuntimeError(f"{function}: groups is {groups}, expected 1 or more")
    kernel_size = tuple(weight.shape[2:])
    if weight.shape[1] * groups != channels or weight.shape[0] % groups != 0:
        raise RuntimeError(
            f"{function}: weight of shape {tuple(weight.shape)} with groups={groups} needs an input of "
            f"{weight.shape[1] * groups} channels, and out_channels that groups divides; "
            f"input has shape {tuple(input.shape)}"
        )
    if 0 in kernel_size:
        raise RuntimeError(f"{function}: weight has shape {tuple(weight.shape)}, expected a kernel of 1 pixel or more")
    if weight.dtype != input.dtype or (bias is not None and bias.dtype != input.dtype):
        kinds = f"input {input.dtype}, weight {weight.dtype}" + ("" if bias is None else f", bias {bias.dtype}")
        raise RuntimeError(f"{function}: {kinds}: expected one dtype")
    if weight.device != input.device or (bias is not None and bias.device != input.device):
        raise RuntimeError(f"{function}: input is on {input.device} and weight on {weight.device}, expected one device")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(f"{function}: bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},)")
    stride = _ints(function, "stride", stride, rank, 1)
    dilation = _ints(function, "dilation", dilation, rank, 1)
    if isinstance(padding, str):
        input, padding = _padded(function, input, padding, kernel_size, stride, dilation)
    else:
        padding = _ints(function, "padding", padding, rank, 0)
    window = Window(kernel_size, stride, padding, dilation)
    _check_fits(function, window, input.shape[-rank:])
    output_size = reference.output_size(input.shape[-rank:], *window)
    _check_addressable(function, input, [*input.shape[: -rank - 1], weight.shape[0], *output_size], window)
    geometry = ConvGeometry(stride, padding, dilation, groups, ops.current_algorithm())
    output = Conv.apply(input if batched else input.unsqueeze(0), weight, bias, geometry)
    return output if batched else output.squeeze(0)


def _padded(
    function: str,
    input: Tensor,
    padding: str,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Tensor, tuple[int, ...]]:
    """The meaning of a padding string: zeros to add on every side, after one-sided ones were added to the input."""
    if padding == "valid":
        return input, (0,) * len(kernel_size)
    if padding != "same":
        raise RuntimeError(f"{function}: padding is {padding!r}, expected 'valid', 'same' or a number")
    if any(s != 1 for s in stride):
        raise RuntimeError(f"{function}: padding='same' needs stride 1, got stride {stride}")
    total = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    odd = [amount % 2 for amount in total]  # an even kernel gets one more behind than in front
    if any(odd):
        input = torch.nn.functional.pad(input, [side for o in reversed(odd) for side in (0, o)])
    return input, tuple(amount // 2 for amount in total)


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum of each window. Equivalent to `torch.nn.functional.max_pool2d`, bit for bit.

    Ties go to the first maximum, a NaN wins, padding (at most half of the kernel) never does. What is saved for
    backward is one byte per window.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding, dilation: in pixels, one int or (height, width); stride defaults to kernel_size.
        ceil_mode: also pool a last window that juts out behind the input.
        return_indices: also return where each maximum was found.

    Returns:
        (N, C, H', W'), in the input's memory format; with return_indices a pair with the int64 indices into H * W.

    Raises:
        RuntimeError: sizes that don't go together.
        NotImplementedError: a dtype without an order.
        TypeError: an argument of another type.
    """
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _max_pool(
    function: str,
    rank: int,
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    dilation: IntOrInts,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    batched = _batched(function, "input", input, rank)
    kernel = _ints(function, "kernel_size", kernel_size, rank, 1)
    no_stride = stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0)
    window = Window(
        kernel,
        kernel if no_stride else _ints(function, "stride", stride, rank, 1),
        _ints(function, "padding", padding, rank, 0),
        _ints(function, "dilation", dilation, rank, 1),
    )
    for k, p in zip(window.kernel_size, window.padding, strict=True):
        if 2 * p > k:
            raise RuntimeError(
                f"{function}: padding is {padding!r}, expected at most half of kernel_size, {kernel_size!r}"
            )
    if 0 in input.shape[-rank - 1 :]:
        raise RuntimeError(
            f"{function}: input has shape {tuple(input.shape)}, expected no empty dimension but the batch"
        )
    if input.is_complex() or input.dtype == torch.bool or (input.is_floating_point() and input.element_size() == 1):
        raise NotImplementedError(
            f"{function}: input has dtype {input.dtype}, expected one whose values can be ordered"
        )
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"{function}: ceil_mode is {ceil_mode!r}, expected a bool")
    _check_fits(function, window, input.shape[-rank:])
    output_size = reference.output_size(input.shape[-rank:], *window, ceil_mode)
    _check_addressable(function, input, [*input.shape[:-rank], *output_size], window)
    batch = input if batched else input.unsqueeze(0)
    if return_indices or batch.requires_grad or forward_ad._current_level >= 0:
        output, positions = MaxPool.apply(batch, window, ceil_mode)
    else:
        output, positions = ops.max_pool(batch, *window, ceil_mode, False)
    if not return_indices:
        return output if batched else output.squeeze(0)
    indices = reference.max_pool_indices(positions, batch.shape[2:], *window)
    return (output, indices) if batched else (output.squeeze(0), indices.squeeze(0))


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
    batched = _batched("im2col", "input", input, rank)
    window = _window("im2col", rank, kernel_size, stride, padding, dilation)
    if 0 in input.shape[-rank - 1 :]:
        raise RuntimeError(f"im2col: input has shape {tuple(input.shape)}, expected no empty dimension but the batch")
    _check_fits("im2col", window, input.shape[-rank:])
    size = reference.output_size(input.shape[-rank:], *window)
    rows = input.shape[-rank - 1] * prod(window.kernel_size)
    _check_addressable("im2col", input, [*input.shape[: -rank - 1], rows, prod(size)], window)
    columns = Im2Col.apply(input if batched else input.unsqueeze(0), window)
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
    batched = _batched("col2im", "input", input, 1)
    window = _window("col2im", rank, kernel_size, stride, padding, dilation)
    size = torch.Size(_ints("col2im", "output_size", output_size, rank, 1))
    _check_fits("col2im", window, size)
    rows, positions = input.shape[-2:]
    taps = window.kernel_size[0] * window.kernel_size[1]
    expected = reference.output_size(size, *window)
    if rows % taps != 0 or rows == 0 or positions != expected[0] * expected[1]:
        raise RuntimeError(
            f"col2im: input has shape {tuple(input.shape)}, expected a multiple of {taps} (the kernel's taps) rows, "
            f"and {expected[0]} * {expected[1]} columns (the window's positions in {tuple(size)})"
        )
    _check_addressable("col2im", input, [*input.shape[:-2], rows // taps, *size], window)
    image = Col2Im.apply(input if batched else input.unsqueeze(0), size, window)
    return image if batched else image.squeeze(0)


def _window(
    function: str, rank: int, kernel_size: IntOrInts, stride: IntOrInts, padding: IntOrInts, dilation: IntOrInts
) -> Window:
    return Window(
        _ints(function, "kernel_size", kernel_size, rank, 1),
        _ints(function, "stride", stride, rank, 1),
        _ints(function, "padding", padding, rank, 0),
        _ints(function, "dilation", dilation, rank, 1),
    )
