"""Gram matrices."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from torchconv import ops


class _Gram(Function):
    """features (N, C, P) to features @ features^T / P. Backward is one product, (G + G^T) @ features / P."""

    @staticmethod
    def forward(features: Tensor) -> Tensor:
        return ops.gram(features).div_(features.shape[2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        symmetric = (grad_output + grad_output.mT) / features.shape[2]
        # Multiplied in the features' own layout, so that the gradient comes out in it.
        return symmetric @ features if features.is_contiguous() else (features.mT @ symmetric).mT


class _Tap(Function):
    """features (N, C, H, W), channels-last, to themselves and their Gram matrices, whose gradient joins the features'.

    It is added to the features' own in place: their gradients are the largest tensors that there are.
    """

    @staticmethod
    def forward(features: Tensor, again: Callable[[], Tensor] | None) -> tuple[Tensor, Tensor]:
        return features.view_as(features), _Gram.forward(_matrix(features))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        features, ctx.again = inputs
        ctx.save_for_backward(*([features] if ctx.again is None else []))
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_features: Tensor | None, grad_gram: Tensor | None) -> tuple[Tensor | None, None]:
        if grad_gram is None:
            return grad_features, None
        (features,) = ctx.saved_tensors if ctx.again is None else [ctx.again()]
        matrix = _matrix(features).mT
        symmetric = (grad_gram + grad_gram.mT) / matrix.shape[1]
        if grad_features is None:
            return (matrix @ symmetric).mT.unflatten(2, features.shape[2:]), None
        gradient = grad_features.contiguous(memory_format=torch.channels_last)
        _matrix(gradient).mT.baddbmm_(matrix, symmetric)
        return gradient, None


def _matrix(features: Tensor) -> Tensor:
    """Channels-last features (N, C, H, W) as (N, C, H W)."""
    return features.permute(0, 2, 3, 1).flatten(1, 2).mT


def tap(features: Tensor, again: Callable[[], Tensor] | None) -> tuple[Tensor, Tensor]:
    """The features, for the layers behind, and their `gram_matrix`; `again` computes them, not to be kept.

    Differentiable once. The gradient of the features that come out may be overwritten in backward: nothing else must
    hold it. So it is for features that only a network's next layer gets.
    """
    if ops.is_channels_last(features):
        return _Tap.apply(features, again)
    return features, gram_matrix(features)


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
    if ops.is_channels_last(features):
        return _Gram.apply(_matrix(features))
    return _Gram.apply(features.flatten(2))
