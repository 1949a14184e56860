"""Gram matrices."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _Gram(Function):
    """features (N, C, P) to features @ features^T / P. Backward is one product, (G + G^T) @ features / P."""

    @staticmethod
    def forward(features: Tensor) -> Tensor:
        return (features @ features.mT).div_(features.shape[2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        symmetric = (grad_output + grad_output.mT) / features.shape[2]
        # Multiplied in the features' own layout, so that the gradient comes out in it.
        return symmetric @ features if features.is_contiguous() else (features.mT @ symmetric).mT


def gram_matrix(features: Tensor) -> Tensor:
    """How often each two channels are active together: F F^T / (H W), with F the features as (C, H W).

    The style of a picture in Gatys, Ecker & Bethge 2016 (arXiv:1508.06576, equation 3), there without the divisor,
    which makes pictures of different sizes comparable. Differentiable to any order.

    Args:
        features: (N, C, H, W); channels-last is as good as contiguous, neither is copied.

    Returns:
        (N, C, C).

    Raises:
        ValueError: features of another shape, or without pixels.
    """
    if features.dim() != 4 or 0 in features.shape[2:]:
        raise ValueError(f"features: expected the shape (N, C, H, W) with 1 pixel or more, got {tuple(features.shape)}")
    if features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous():
        return _Gram.apply(features.permute(0, 2, 3, 1).flatten(1, 2).mT)
    return _Gram.apply(features.flatten(2))
