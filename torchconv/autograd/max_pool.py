"""Max pooling, and the two linear maps that its saved positions define."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops
from torchconv.autograd.transforms import Window, differentiable, into_batch, out_of_batch


class MaxPool(Function):
    """The maxima of all windows, and their positions, which are all that backward needs."""

    @staticmethod
    def forward(input: Tensor, window: Window, ceil_mode: bool, save_positions: bool) -> tuple[Tensor, Tensor]:
        kernel_size, stride, padding, dilation = window
        return ops.max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, save_positions)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, ctx.window, *_ = inputs
        ctx.input_size, ctx.channels_last = input.shape[2:], ops.is_channels_last(input)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # or the positions would get a gradient of zeros
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return None, None, None, None
        (positions,) = ctx.saved_tensors
        grad_input = max_pool_scatter(grad_output, positions, ctx.input_size, ctx.window, ctx.channels_last)
        return grad_input, None, None, None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor, *_: None) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        return max_pool_gather(d_input, positions, ctx.window), None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        window: Window,
        ceil_mode: bool,
        save_positions: bool,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
        size = info.batch_size
        output, positions = max_pool(into_batch(input, in_dims[0], size), window, ceil_mode, save_positions)
        if not save_positions:
            return (out_of_batch(output, size), positions), (0, None)
        return (out_of_batch(output, size), out_of_batch(positions, size)), (0, 0)


class MaxPoolScatter(Function):
    """Adds each value up where it was picked."""

    @staticmethod
    def forward(
        grad_output: Tensor, positions: Tensor, input_size: torch.Size, window: Window, channels_last: bool
    ) -> Tensor:
        kernel_size, stride, padding, dilation = window
        return ops.max_pool_scatter(
            grad_output, positions, input_size, kernel_size, stride, padding, dilation, channels_last
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, positions, ctx.input_size, ctx.window, ctx.channels_last = inputs
        ctx.save_for_backward(positions)
        ctx.save_for_forward(positions)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (positions,) = ctx.saved_tensors
        return max_pool_gather(grad, positions, ctx.window), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, d_output: Tensor, *_: None) -> Tensor:
        (positions,) = ctx.saved_tensors
        return max_pool_scatter(d_output, positions, ctx.input_size, ctx.window, ctx.channels_last)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad_output: Tensor,
        positions: Tensor,
        input_size: torch.Size,
        window: Window,
        channels_last: bool,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        flat = into_batch(grad_output, in_dims[0], size), into_batch(positions, in_dims[1], size)
        return out_of_batch(max_pool_scatter(*flat, input_size, window, channels_last), size), 0


class MaxPoolGather(Function):
    """Picks what stands at saved positions."""

    @staticmethod
    def forward(input: Tensor, positions: Tensor, window: Window) -> Tensor:
        return ops.max_pool_gather(input, positions, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, positions, ctx.window = inputs
        ctx.input_size, ctx.channels_last = input.shape[2:], ops.is_channels_last(input)
        ctx.save_for_backward(positions)
        ctx.save_for_forward(positions)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (positions,) = ctx.saved_tensors
        return max_pool_scatter(grad_output, positions, ctx.input_size, ctx.window, ctx.channels_last), None, None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor, *_: None) -> Tensor:
        (positions,) = ctx.saved_tensors
        return max_pool_gather(d_input, positions, ctx.window)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, positions: Tensor, window: Window
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        flat = into_batch(input, in_dims[0], size), into_batch(positions, in_dims[1], size)
        return out_of_batch(max_pool_gather(*flat, window), size), 0


max_pool = differentiable(MaxPool)
max_pool_scatter = differentiable(MaxPoolScatter)
max_pool_gather = differentiable(MaxPoolGather)
