"""Adaptive max pooling: the places of the maxima, and what stands there."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops
from torchconv.autograd.transforms import differentiable, into_batch, out_of_batch


class AdaptiveMaxPoolIndices(Function):
    """Where the maxima stand. It has no derivative."""

    @staticmethod
    def forward(input: Tensor, output_size: torch.Size) -> Tensor:
        return ops.adaptive_max_pool_indices(input, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, _: None) -> tuple[None, None]:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], input: Tensor, output_size: torch.Size) -> tuple[Tensor, int]:
        flat = indices_of_maxima(into_batch(input, in_dims[0], info.batch_size), output_size)
        return out_of_batch(flat, info.batch_size), 0


indices_of_maxima = differentiable(AdaptiveMaxPoolIndices)


def adaptive_max_pool(input: Tensor, output_size: torch.Size) -> tuple[Tensor, Tensor]:
    """The maxima, and their indices. All derivatives are those of torch.gather."""
    indices = indices_of_maxima(input.detach(), output_size)
    rank = len(output_size)
    if ops.is_channels_last(input):  # gathered along the pixels where they lie, the result is channels-last too
        pixels, places = input.movedim(1, -1).flatten(1, rank), indices.movedim(1, -1).flatten(1, rank)
        return pixels.gather(1, places).unflatten(1, output_size).movedim(-1, 1), indices
    return input.flatten(2).gather(2, indices.flatten(2)).unflatten(2, output_size), indices
