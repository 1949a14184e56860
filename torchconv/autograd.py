"""The differentiable ops: each a torch.autograd.Function whose backward calls the others.

Convolution is bilinear: with y = conv(x, w), the gradients are conv_input(g, w) and conv_weight(x, g), which are
bilinear again, and the gradients of all three are, once more, these three. So every order of derivative comes out of
three small classes, and forward mode is two calls; `conj` matters to complex values only. im2col and col2im are each
other's adjoint in the same way; max pooling's backward scatters to the saved positions, and the adjoint of that
gathers from them.

Only what a gradient that was asked for needs is saved: with a frozen weight the input is not kept.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops


class Window(NamedTuple):
    """How im2col's or a pooling's window moves: one int per spatial dimension."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


class ConvGeometry(NamedTuple):
    """How a convolution's window moves (its size is the weight's), its groups, and the algorithm that computes it."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    algorithm: str


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two tangents, None standing for zero."""
    if first is None or second is None:
        return first if second is None else second
    return first + second


class Conv(Function):
    """y = conv(x, w) + b."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
        return ops.conv(input, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.geometry = inputs
        ctx.input_size, ctx.kernel_size, ctx.output_size = input.shape[2:], weight.shape[2:], output.shape
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        ctx.save_for_forward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            ConvInput.apply(grad_output, weight.conj(), ctx.input_size, ctx.geometry) if needs_input else None,
            ConvWeight.apply(input.conj(), grad_output, ctx.kernel_size, ctx.geometry) if needs_weight else None,
            grad_output.sum((0, *range(2, grad_output.dim()))) if needs_bias else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None, _: None) -> Tensor | None:
        input, weight = ctx.saved_tensors
        tangent = None if d_input is None else Conv.apply(d_input, weight, None, ctx.geometry)
        if d_weight is not None:
            tangent = _sum(tangent, Conv.apply(input, d_weight, None, ctx.geometry))
        if d_bias is not None:
            tangent = _sum(tangent, d_bias.reshape(-1, *[1] * len(ctx.input_size)).expand(ctx.output_size))
        return tangent


class ConvInput(Function):
    """The gradient of conv in its input, g -> x: transposed convolution."""

    @staticmethod
    def forward(grad_output: Tensor, weight: Tensor, input_size: torch.Size, geometry: ConvGeometry) -> Tensor:
        return ops.conv_input(grad_output, weight, input_size, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, weight, ctx.input_size, ctx.geometry = inputs
        ctx.kernel_size = weight.shape[2:]
        ctx.save_for_backward(
            grad_output if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None
        )
        ctx.save_for_forward(grad_output, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, weight = ctx.saved_tensors
        needs_output, needs_weight = ctx.needs_input_grad[:2]
        return (
            Conv.apply(grad, weight.conj(), None, ctx.geometry) if needs_output else None,
            ConvWeight.apply(grad, grad_output.conj(), ctx.kernel_size, ctx.geometry) if needs_weight else None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, d_output: Tensor | None, d_weight: Tensor | None, *_: None) -> Tensor | None:
        grad_output, weight = ctx.saved_tensors
        args = (ctx.input_size, ctx.geometry)
        by_output = None if d_output is None else ConvInput.apply(d_output, weight, *args)
        by_weight = None if d_weight is None else ConvInput.apply(grad_output, d_weight, *args)
        return _sum(by_output, by_weight)


class ConvWeight(Function):
    """The gradient of conv in its weight, (x, g) -> w."""

    @staticmethod
    def forward(input: Tensor, grad_output: Tensor, kernel_size: torch.Size, geometry: ConvGeometry) -> Tensor:
        return ops.conv_weight(input, grad_output, kernel_size, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, grad_output, ctx.kernel_size, ctx.geometry = inputs
        ctx.input_size = input.shape[2:]
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None, grad_output if ctx.needs_input_grad[0] else None
        )
        ctx.save_for_forward(input, grad_output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, grad_output = ctx.saved_tensors
        needs_input, needs_output = ctx.needs_input_grad[:2]
        return (
            ConvInput.apply(grad_output.conj(), grad, ctx.input_size, ctx.geometry) if needs_input else None,
            Conv.apply(input.conj(), grad, None, ctx.geometry) if needs_output else None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor | None, d_output: Tensor | None, *_: None) -> Tensor | None:
        input, grad_output = ctx.saved_tensors
        args = (ctx.kernel_size, ctx.geometry)
        by_input = None if d_input is None else ConvWeight.apply(d_input, grad_output, *args)
        by_output = None if d_output is None else ConvWeight.apply(input, d_output, *args)
        return _sum(by_input, by_output)


class Im2Col(Function):
    """The column matrix of an image."""

    @staticmethod
    def forward(input: Tensor, window: Window) -> Tensor:
        return ops.im2col(input, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, ctx.window = inputs
        ctx.input_size = input.shape[2:]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return Col2Im.apply(grad_output, ctx.input_size, ctx.window), None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor, _: None) -> Tensor:
        return Im2Col.apply(d_input, ctx.window)


class Col2Im(Function):
    """The adjoint of im2col."""

    @staticmethod
    def forward(columns: Tensor, output_size: torch.Size, window: Window) -> Tensor:
        return ops.col2im(columns, output_size, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.output_size, ctx.window = inputs

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return Im2Col.apply(grad_output, ctx.window), None, None

    @staticmethod
    def jvp(ctx: Any, d_columns: Tensor, *_: None) -> Tensor:
        return Col2Im.apply(d_columns, ctx.output_size, ctx.window)


class MaxPool(Function):
    """The maxima of all windows, and their positions, which are all that backward needs."""

    @staticmethod
    def forward(input: Tensor, window: Window, ceil_mode: bool) -> tuple[Tensor, Tensor]:
        return ops.max_pool(input, *window, ceil_mode, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, ctx.window, _ = inputs
        ctx.input_size = input.shape[2:]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        (positions,) = ctx.saved_tensors
        return MaxPoolScatter.apply(grad_output, positions, ctx.input_size, ctx.window), None, None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor, *_: None) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        return MaxPoolGather.apply(d_input, positions, ctx.window), None


class MaxPoolScatter(Function):
    """Adds each value up where it was picked."""

    @staticmethod
    def forward(grad_output: Tensor, positions: Tensor, input_size: torch.Size, window: Window) -> Tensor:
        return ops.max_pool_scatter(grad_output, positions, input_size, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, positions, ctx.input_size, ctx.window = inputs
        ctx.save_for_backward(positions)
        ctx.save_for_forward(positions)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (positions,) = ctx.saved_tensors
        return MaxPoolGather.apply(grad, positions, ctx.window), None, None, None

    @staticmethod
    def jvp(ctx: Any, d_output: Tensor, *_: None) -> Tensor:
        (positions,) = ctx.saved_tensors
        return MaxPoolScatter.apply(d_output, positions, ctx.input_size, ctx.window)


class MaxPoolGather(Function):
    """Picks what stands at saved positions."""

    @staticmethod
    def forward(input: Tensor, positions: Tensor, window: Window) -> Tensor:
        return ops.max_pool_gather(input, positions, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, positions, ctx.window = inputs
        ctx.input_size = input.shape[2:]
        ctx.save_for_backward(positions)
        ctx.save_for_forward(positions)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (positions,) = ctx.saved_tensors
        return MaxPoolScatter.apply(grad_output, positions, ctx.input_size, ctx.window), None, None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor, *_: None) -> Tensor:
        (positions,) = ctx.saved_tensors
        return MaxPoolGather.apply(d_input, positions, ctx.window)
