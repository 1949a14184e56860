"""Checks of arguments: what every function needs, with torch's kinds of error."""

from collections.abc import Sequence
from math import prod
from operator import index
from typing import Any

import torch
from torch import Tensor

from torchconv import ops, reference
from torchconv.autograd import Window

IntOrInts = int | Sequence[int]

ADDRESSABLE = 2**47  # bytes: what a process can address on today's 64-bit processors


def ints(function: str, name: str, value: Any, rank: int, smallest: int) -> tuple[int, ...]:
    """An argument that may be one int for all dimensions, as one per dimension."""
    if type(value) is int and smallest <= value < 2**31:
        return (value,) * rank
    values = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    if len(values) == 1:
        values *= rank
    for v in values:
        if type(v) is not int or not smallest <= v < 2**31:
            _check_ints(function, name, value, values, rank, smallest)
            break
    if len(values) != rank:
        raise RuntimeError(f"{function}: {name} is {value!r}, expected one int or {rank}")
    return values


def _check_ints(function: str, name: str, value: Any, values: tuple[Any, ...], rank: int, smallest: int) -> None:
    """What is wrong with these, or nothing: ints may come as symbols, or as another type that stands for one."""
    # isinstance(v, int) first: Dynamo, where v may be symbolic, knows no hasattr of it.
    if any(isinstance(v, (bool, float, str)) or not (isinstance(v, int) or hasattr(v, "__index__")) for v in values):
        shown = type(value).__name__ if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{function}: {name} is {shown}, expected an int or {rank} of them")
    if any(v < smallest for v in values):
        raise RuntimeError(f"{function}: {name} is {value!r}, expected {smallest} or more")
    if any(v >= 2**31 for v in values):
        raise RuntimeError(f"{function}: {name} is {value!r}, expected less than 2**31")


def is_batched(function: str, name: str, tensor: Tensor, rank: int) -> bool:
    """Whether a tensor of channels and `rank` dimensions has a batch in front of them."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{function}: {name} is {type(tensor).__name__}, expected a Tensor")
    if tensor.dim() not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"{function}: {name} has shape {tuple(tensor.shape)}, expected {rank + 2} dimensions, "
            f"or {rank + 1} without a batch"
        )
    return tensor.dim() == rank + 2


def check_fits(function: str, window: Window, size: Sequence[int], ceil_mode: bool = False) -> None:
    """The window must fit into the padded input; with ceil_mode it may jut out by less than a stride."""
    for i, (n, k, s, p, d) in enumerate(zip(size, *window, strict=True)):
        if d * (k - 1) + 1 > n + 2 * p + (s - 1 if ceil_mode else 0):
            raise RuntimeError(
                f"{function}: the kernel spans {d * (k - 1) + 1} pixels along spatial dimension {i}, "
                f"more than the padded input's {n + 2 * p} (input {tuple(size)}, {window})"
            )


def fitting_size(function: str, window: Window, size: Sequence[int], ceil_mode: bool = False) -> list[int]:
    """The number of the window's positions along each dimension, of which there must be one."""
    positions = reference.output_size(size, *window, ceil_mode)
    for n in positions:
        if n < 1:
            check_fits(function, window, size, ceil_mode)
    return positions


def check_pixels(function: str, input: Tensor, rank: int) -> None:
    """A pooling has something to choose from: no dimension but the batch is empty."""
    if 0 in input.shape[-rank - 1 :]:
        raise RuntimeError(
            f"{function}: input has shape {tuple(input.shape)}, expected no empty dimension but the batch"
        )


def check_addressable(function: str, like: Tensor, shape: Sequence[int], window: Window) -> None:
    """The output must fit into what can be addressed: a slip in an argument asks for no memory."""
    # Not while tracing: the comparison would bound the sizes that an exported program takes.
    if not torch.compiler.is_compiling() and prod(shape) * like.element_size() > ADDRESSABLE:
        raise RuntimeError(
            f"{function}: the output would have shape {tuple(shape)}, more than can be addressed "
            f"(input {tuple(like.shape)}, {window})"
        )


def window_of(
    function: str, rank: int, kernel_size: IntOrInts, stride: IntOrInts, padding: IntOrInts, dilation: IntOrInts
) -> Window:
    """A window of arguments that may be one int for all dimensions."""
    return Window(
        ints(function, "kernel_size", kernel_size, rank, 1),
        ints(function, "stride", stride, rank, 1),
        ints(function, "padding", padding, rank, 0),
        ints(function, "dilation", dilation, rank, 1),
    )


def pool_window(
    function: str,
    rank: int,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    dilation: IntOrInts,
) -> Window:
    """A pooling's window: the stride is by default the kernel's size, padding is at most half of that."""
    no_stride = stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0)
    window = window_of(function, rank, kernel_size, kernel_size if no_stride else stride, padding, dilation)  # type: ignore[arg-type]
    for k, p in zip(window.kernel_size, window.padding, strict=True):
        if 2 * p > k:
            expected = f"at most half of kernel_size, {kernel_size!r}"
            raise RuntimeError(f"{function}: padding is {padding!r}, expected {expected}")
    return window


def pooled_size(function: str, input: Tensor, window: Window, ceil_mode: bool) -> list[int]:
    """The spatial size of a pooling's result, once all sizes are known to go together."""
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"{function}: ceil_mode is {ceil_mode!r}, expected a bool")
    rank = len(window.kernel_size)
    check_pixels(function, input, rank)
    size = fitting_size(function, window, input.shape[-rank:], ceil_mode)
    check_addressable(function, input, [*input.shape[:-rank], *size], window)
    return size


def in_float32(input: Tensor) -> Tensor:
    """For ops that autocast on the CPU runs in float32: a 16-bit input in that, where autocast is on."""
    lowered = input.device.type == "cpu" and ops.autocast_dtype(input) is not None
    return input.float() if lowered and input.dtype in (torch.bfloat16, torch.float16) else input


def check_operands(function: str, rank: int, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> int:
    """Types, dtypes and devices of a convolution's operands; groups as an int."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{function}: weight is {type(weight).__name__}, expected a Tensor")
    if weight.dim() != rank + 2:
        raise RuntimeError(f"{function}: weight has shape {tuple(weight.shape)}, expected {rank + 2} dimensions")
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"{function}: bias is {type(bias).__name__}, expected a Tensor or None")
    if isinstance(groups, bool) or not (isinstance(groups, int) or hasattr(groups, "__index__")):
        raise TypeError(f"{function}: groups is {groups!r}, expected an int")
    groups = groups if isinstance(groups, int) else index(groups)
    if groups <= 0:
        raise RuntimeError(f"{function}: groups is {groups}, expected 1 or more")
    if 0 in weight.shape[2:]:
        raise RuntimeError(f"{function}: weight has shape {tuple(weight.shape)}, expected a kernel of 1 pixel or more")
    if weight.dtype != input.dtype or (bias is not None and bias.dtype != input.dtype):
        kinds = f"input {input.dtype}, weight {weight.dtype}" + ("" if bias is None else f", bias {bias.dtype}")
        raise RuntimeError(f"{function}: {kinds}: expected one dtype")
    if weight.device != input.device or (bias is not None and bias.device != input.device):
        raise RuntimeError(f"{function}: input is on {input.device} and weight on {weight.device}, expected one device")
    return groups


def check_channels(function: str, rank: int, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    """The channels of a convolution's operands go together."""
    if weight.shape[1] * groups != input.shape[-rank - 1] or weight.shape[0] % groups != 0:
        raise RuntimeError(
            f"{function}: weight of shape {tuple(weight.shape)} with groups={groups} needs an input of "
            f"{weight.shape[1] * groups} channels, and out_channels that groups divides; "
            f"input has shape {tuple(input.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(f"{function}: bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},)")


def conv_window(
    function: str,
    input: Tensor,
    weight: Tensor,
    stride: IntOrInts,
    padding: str | IntOrInts,
    dilation: IntOrInts,
    value: float = 0.0,
) -> tuple[Tensor, Window, list[int]]:
    """A convolution's window and the spatial size of its result; and the input, padded where "same" is lopsided."""
    kernel_size = tuple(weight.shape[2:])
    rank = len(kernel_size)
    stride = ints(function, "stride", stride, rank, 1)
    dilation = ints(function, "dilation", dilation, rank, 1)
    if isinstance(padding, str):
        input, padding = padded(function, input, padding, kernel_size, stride, dilation, value)
    window = Window(kernel_size, stride, ints(function, "padding", padding, rank, 0), dilation)
    size = fitting_size(function, window, input.shape[-rank:])
    check_addressable(function, input, [*input.shape[: -rank - 1], weight.shape[0], *size], window)
    return input, window, size


def padded(
    function: str,
    input: Tensor,
    padding: str,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    value: float = 0.0,
) -> tuple[Tensor, tuple[int, ...]]:
    """The meaning of a padding string: pixels to add on every side, after one-sided ones were added to the input."""
    if padding == "valid":
        return input, (0,) * len(kernel_size)
    if padding != "same":
        raise RuntimeError(f"{function}: padding is {padding!r}, expected 'valid', 'same' or a number")
    if any(s != 1 for s in stride):
        raise RuntimeError(f"{function}: padding='same' needs stride 1, got stride {stride}")
    total = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    odd = [amount % 2 for amount in total]  # an even kernel gets one more behind than in front
    if any(odd):
        input = torch.nn.functional.pad(input, [side for o in reversed(odd) for side in (0, o)], value=value)
    return input, tuple(amount // 2 for amount in total)
