"""Content and style losses, usable alone on the activations of any network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from torchconv.style.gram import gram_matrix


class _MeanSquare(Function):
    """The mean squared difference of features and a target: 2 (features - target) / their number backward.

    Nothing else is kept, and one more tensor of their size is there while it computes. On channels-last features it is
    about twice as fast as torch's mse_loss.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor, target: Tensor) -> Tensor:
        return (features - target).pow_(2).mean()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        features, target = ctx.saved_tensors
        return (features - target).mul_(grad_output * 2 / features.numel()), None


class ContentLoss(nn.Module):
    """Mean squared difference from the content picture's features (Gatys, Ecker & Bethge 2016, equation 1).

    Args:
        target: features of the content picture, (N, C, H, W).

    Shape:
        features (N, C, H, W), as the target's, to a scalar.

    Raises:
        ValueError: features of another shape than the target's.
    """

    target: Tensor

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.register_buffer("target", target.detach())

    def forward(self, features: Tensor) -> Tensor:
        if features.shape != self.target.shape:
            raise ValueError(f"features: expected the shape {tuple(self.target.shape)}, got {tuple(features.shape)}")
        loss: Tensor = _MeanSquare.apply(features, self.target)
        return loss


class StyleLoss(nn.Module):
    """Mean squared difference from the style pictures' Gram matrices (Gatys, Ecker & Bethge 2016, equation 4).

    Args:
        targets: the `gram_matrix` of each style picture's features, (N, C, C).
        weights: what each style counts; 1 / number of styles if None.

    Shape:
        features (N, C, H, W), of any size, to a scalar.

    Raises:
        ValueError: no target, or not as many weights as targets.
    """

    targets: Tensor
    weights: Tensor

    def __init__(self, targets: Sequence[Tensor], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not targets:
            raise ValueError("targets: expected the Gram matrix of one style picture or more, got none")
        weights = [1 / len(targets)] * len(targets) if weights is None else weights
        if len(weights) != len(targets):
            raise ValueError(f"weights: expected {len(targets)}, one per target, got {len(weights)}")
        stacked = torch.stack(list(targets)).detach()  # (styles, N, C, C)
        self.register_buffer("targets", stacked)
        self.register_buffer("weights", torch.tensor(weights, dtype=stacked.dtype, device=stacked.device))

    def forward(self, features: Tensor) -> Tensor:
        return self.of_gram(gram_matrix(features))

    def of_gram(self, gram: Tensor) -> Tensor:
        """The loss of features whose `gram_matrix` this is."""
        distances = (gram - self.targets).square().mean((1, 2, 3))
        return (self.weights * distances).sum()
