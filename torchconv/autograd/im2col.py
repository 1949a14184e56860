"""im2col and col2im, each the other's adjoint."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops
from torchconv.autograd.transforms import Window, differentiable, into_batch, out_of_batch


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
        return col2im(grad_output, ctx.input_size, ctx.window), None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor, _: None) -> Tensor:
        return im2col(d_input, ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], input: Tensor, window: Window) -> tuple[Tensor, int]:
        flat = im2col(into_batch(input, in_dims[0], info.batch_size), window)
        return out_of_batch(flat, info.batch_size), 0


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
        return im2col(grad_output, ctx.window), None, None

    @staticmethod
    def jvp(ctx: Any, d_columns: Tensor, *_: None) -> Tensor:
        return col2im(d_columns, ctx.output_size, ctx.window)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], columns: Tensor, output_size: torch.Size, window: Window
    ) -> tuple[Tensor, int]:
        flat = col2im(into_batch(columns, in_dims[0], info.batch_size), output_size, window)
        return out_of_batch(flat, info.batch_size), 0


im2col = differentiable(Im2Col)
col2im = differentiable(Col2Im)
