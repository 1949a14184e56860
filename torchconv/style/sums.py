"""Sums over all positions of a network's activations, tile by tile: Gram matrices, and distances from targets.

What a tile adds to a Gram matrix takes its activations only, but the gradient in them takes the whole matrix. So there
are two passes: forward adds up, without a graph, and backward evaluates each tile once more and differentiates it.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from torchconv.style.tiles import Part, Tiles, put


@torch.no_grad()
def activations(tiles: Tiles, picture: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Whole activations of these names, without gradients."""
    whole: dict[str, Tensor] = {}
    tiles.visit(tiles.before(picture), names, lambda name, part: put(whole, name, part))
    return whole


def distances_and_grams(
    tiles: Tiles, picture: Tensor, targets: Mapping[str, Tensor], grams: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the losses need of the activations of a picture, differentiable once.

    Args:
        tiles: of a network that knows these activations.
        picture: as the network takes it.
        targets: by the activation's name, of its shape.
        grams: names of activations.

    Returns:
        The mean squared difference of activations from their targets, and the `gram_matrix` of each of `grams`.

    Raises:
        ValueError: a target of another shape than the activation's.
    """
    sums = _Sums.apply(tiles.before(picture), tiles, targets, grams)
    count = len(targets)
    return dict(zip(targets, sums[:count], strict=True)), dict(zip(grams, sums[count:], strict=True))


class _Sums(Function):
    """From a first layer's input to the distances and the Gram matrices."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, tiles: Tiles, targets: Mapping[str, Tensor], grams: Sequence[str]) -> Any:
        distance = {name: target.new_zeros(()) for name, target in targets.items()}
        gram: dict[str, Tensor] = {}

        def add(name: str, part: Part) -> None:
            if name in targets:
                distance[name] += _difference(part, targets[name]).square().sum() / targets[name].numel()
            if name in grams:
                features = _features(part.values)
                summand = (features.mT @ features).div_(prod(part.size))
                gram[name] = gram[name].add_(summand) if name in gram else summand

        inputs = tiles.visit(input, {*targets, *grams}, add)
        ctx.save_for_backward(*inputs, *targets.values())
        ctx.tiles, ctx.targets, ctx.grams = tiles, list(targets), grams
        ctx.set_materialize_grads(False)
        return *distance.values(), *(gram[name] for name in grams)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(ctx.targets)
        saved = ctx.saved_tensors
        inputs, targets = saved[: len(saved) - count], dict(zip(ctx.targets, saved[len(saved) - count :], strict=True))
        of_distance = {k: g for k, g in zip(ctx.targets, grad_outputs[:count], strict=True) if g is not None}
        of_gram = {k: g + g.mT for k, g in zip(ctx.grams, grad_outputs[count:], strict=True) if g is not None}

        def cotangent(name: str, part: Part) -> Tensor:
            both = []
            if name in of_distance:
                scale = 2 * of_distance[name] / targets[name].numel()
                both.append(_difference(part, targets[name]).mul_(scale))
            if name in of_gram:
                product = _features(part.values) @ (of_gram[name] / prod(part.size))
                both.append(product.mT.unflatten(2, part.values.shape[2:]))
            return sum(both[1:], both[0])

        return ctx.tiles.differentiate(inputs, {*of_distance, *of_gram}, cotangent), None, None, None


def _difference(part: Part, target: Tensor) -> Tensor:
    """A part from that of the target."""
    size = (*part.values.shape[:2], *part.size)
    if target.shape != size:
        raise ValueError(f"features: expected the shape {tuple(target.shape)}, got {size}")
    return part.values - target[(..., *part.place)]


def _features(values: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H W, C), copied at most in the memory format that it has."""
    return values.permute(0, 2, 3, 1).flatten(1, 2) if values.stride(1) == 1 else values.flatten(2).mT
