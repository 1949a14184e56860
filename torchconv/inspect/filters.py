"""The weights of a layer as pictures."""

from math import ceil, sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torchconv.inspect.figure import new_figure, show
from torchconv.inspect.picture import mosaic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_INPUTS = 16


def plot_filters(layer: nn.Module | Tensor, before: nn.Module | Tensor | None = None, *, most: int = 128) -> "Figure":
    """The filters of a convolution, as pictures.

    With three input channels they are in colour, taken for red, green and blue. With one or three input channels there
    is a tile for each filter; with others a row for each filter and a column for each of its inputs. Mid-grey stands
    for 0; each filter is scaled to its own largest weight.

    Args:
        layer: a convolution, or its weight (filters, inputs, height, width).
        before: the same before training, which is drawn beside it.
        most: how many filters to draw at most, the first ones; of their inputs 16 at most.

    Raises:
        ValueError: the layer has no weight of that form, or `before` has another shape.
        ModuleNotFoundError: matplotlib is not installed.
    """
    weights = [_weight("layer", layer)]
    if before is not None:
        weights.insert(0, _weight("before", before))
        if weights[0].shape != weights[1].shape:
            raise ValueError(
                f"before: expected the shape of the layer, {tuple(weights[1].shape)}, got {tuple(weights[0].shape)}"
            )
    pictures = [_mosaic(weight[:most]) for weight in weights]
    height, width = pictures[0].shape[1:]
    inches = 4.5 if height <= width else 4.5 * sqrt(width / height)
    figure = new_figure(inches * len(pictures), inches * height / width + 0.3)
    titles = ["before training", "after training"] if before is not None else [""]
    for axes, picture, title in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures, titles, strict=True):
        show(axes, picture, title, interpolation="nearest")
    return figure


def _weight(name: str, layer: nn.Module | Tensor) -> Tensor:
    weight = getattr(layer, "weight", None) if isinstance(layer, nn.Module) else layer
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        got = type(layer).__name__ if isinstance(layer, nn.Module) else f"the shape {tuple(layer.shape)}"
        raise ValueError(f"{name}: expected a Conv2d or its weight (filters, inputs, height, width), got {got}")
    return weight.detach().float().cpu()


def _mosaic(weight: Tensor) -> Tensor:
    filters, inputs, height, width = weight.shape
    tiles = weight / weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo().tiny) / 2 + 0.5
    gap = max(1, min(height, width) // 5)
    if inputs in (1, 3):
        return mosaic(
            tiles, columns=ceil(sqrt(filters)) if filters > 10 else ceil(filters / ceil(filters / 5)), gap=gap
        )
    return mosaic(tiles[:, :MOST_INPUTS].reshape(-1, 1, height, width), columns=min(inputs, MOST_INPUTS), gap=gap)
