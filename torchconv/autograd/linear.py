"""Linear maps of pictures that come in pairs: im2col and col2im, average poolings and their adjoints."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops
from torchconv.autograd.transforms import Window, differentiable, into_batch, out_of_batch

# What an op takes besides tensors and sizes.
Geometry = tuple[Any, ...]

# What is applied to (input, *geometry), and its adjoint, which is applied to (output, input_size, *geometry).
_PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "im2col": (ops.im2col, ops.col2im),
    "avg_pool": (ops.avg_pool, ops.avg_pool_input),
    "adaptive_avg_pool": (ops.adaptive_avg_pool, ops.adaptive_avg_pool_input),
}


class LinearMap(Function):
    """The first op of a pair."""

    @staticmethod
    def forward(input: Tensor, name: str, geometry: Geometry) -> Tensor:
        return _PAIRS[name][0](input, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, ctx.name, ctx.geometry = inputs
        ctx.input_size = input.shape[2:]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return linear_adjoint(grad_output, ctx.input_size, ctx.name, ctx.geometry), None, None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor, *_: None) -> Tensor:
        return linear_map(d_input, ctx.name, ctx.geometry)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, name: str, geometry: Geometry
    ) -> tuple[Tensor, int]:
        flat = linear_map(into_batch(input, in_dims[0], info.batch_size), name, geometry)
        return out_of_batch(flat, info.batch_size), 0


class LinearAdjoint(Function):
    """The second."""

    @staticmethod
    def forward(output: Tensor, input_size: torch.Size, name: str, geometry: Geometry) -> Tensor:
        return _PAIRS[name][1](output, input_size, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.input_size, ctx.name, ctx.geometry = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return linear_map(grad, ctx.name, ctx.geometry), None, None, None

    @staticmethod
    def jvp(ctx: Any, d_output: Tensor, *_: None) -> Tensor:
        return linear_adjoint(d_output, ctx.input_size, ctx.name, ctx.geometry)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        output: Tensor,
        input_size: torch.Size,
        name: str,
        geometry: Geometry,
    ) -> tuple[Tensor, int]:
        flat = linear_adjoint(into_batch(output, in_dims[0], info.batch_size), input_size, name, geometry)
        return out_of_batch(flat, info.batch_size), 0


linear_map = differentiable(LinearMap)
linear_adjoint = differentiable(LinearAdjoint)


def im2col(input: Tensor, window: Window) -> Tensor:
    """See `torchconv.reference.im2col`."""
    return linear_map(input, "im2col", window)


def col2im(columns: Tensor, output_size: torch.Size, window: Window) -> Tensor:
    """See `torchconv.reference.col2im`."""
    return linear_adjoint(columns, output_size, "im2col", window)


def avg_pool(
    input: Tensor, window: Window, ceil_mode: bool, count_include_pad: bool, divisor_override: int | None
) -> Tensor:
    """See `torchconv.reference.avg_pool`."""
    kernel_size, stride, padding, _ = window
    counting = ceil_mode, count_include_pad, divisor_override
    geometry = (kernel_size, stride, padding, *counting, ops.is_channels_last(input))
    return linear_map(input, "avg_pool", geometry)


def adaptive_avg_pool(input: Tensor, output_size: torch.Size) -> Tensor:
    """See `torchconv.reference.adaptive_avg_pool`."""
    return linear_map(input, "adaptive_avg_pool", (output_size, ops.is_channels_last(input)))
