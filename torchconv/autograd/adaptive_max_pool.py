"""Adaptive max pooling. What its derivatives do is indexing, which torch has, with all derivatives of its own."""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops
from torchconv.autograd.transforms import differentiable, into_batch, out_of_batch


class AdaptiveMaxPool(Function):
    """The maxima of all boxes, and their indices in the flattened spatial dimensions: all that backward needs."""

    @staticmethod
    def forward(input: Tensor, output_size: torch.Size) -> tuple[Tensor, Tensor]:
        return ops.adaptive_max_pool(input, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.input_size, ctx.channels_last = inputs[0].shape[2:], ops.is_channels_last(inputs[0])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # or the indices would get a gradient of zeros
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if grad_output is None:
            return None, None
        (indices,) = ctx.saved_tensors
        values, places = _pixels(grad_output, ctx.channels_last), _pixels(indices, ctx.channels_last)
        dim = 1 if ctx.channels_last else 2
        size = [prod(ctx.input_size) if i == dim else n for i, n in enumerate(values.shape)]
        grad_input = torch.ops.aten.gather_backward(values, values.new_zeros(()).expand(size), dim, places, False)
        return _spatial(grad_input, ctx.input_size, ctx.channels_last), None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor, _: None) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        places = _pixels(indices, ctx.channels_last)
        found = _pixels(d_input, ctx.channels_last).gather(1 if ctx.channels_last else 2, places)
        return _spatial(found, indices.shape[2:], ctx.channels_last), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, output_size: torch.Size
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        output, indices = adaptive_max_pool(into_batch(input, in_dims[0], info.batch_size), output_size)
        return (out_of_batch(output, info.batch_size), out_of_batch(indices, info.batch_size)), (0, 0)


def _pixels(tensor: Tensor, channels_last: bool) -> Tensor:
    """(N, C, *spatial) as it lies: (N, P, C), or (N, C, P)."""
    batch, channels, *spatial = tensor.shape
    if channels_last:
        return tensor.movedim(1, -1).reshape(batch, prod(spatial), channels)
    return tensor.reshape(batch, channels, prod(spatial))


def _spatial(tensor: Tensor, size: torch.Size, channels_last: bool) -> Tensor:
    """Undoes `_pixels`."""
    if channels_last:
        return tensor.view(tensor.shape[0], *size, tensor.shape[2]).movedim(-1, 1)
    return tensor.view(*tensor.shape[:2], *size)


adaptive_max_pool = differentiable(AdaptiveMaxPool)
