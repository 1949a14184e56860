"""The function that style transfer minimises: how far a picture is from one picture's content and others' style."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchconv.models import VGGFeatures
from torchconv.style.chain import Network as Network
from torchconv.style.gram import gram_matrix, tap
from torchconv.style.losses import ContentLoss, StyleLoss
from torchconv.style.sums import activations, distances_and_grams
from torchconv.style.tiles import Tiles

CONTENT_LAYERS = ("relu4_2",)
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
LAYERS = tuple(sorted(CONTENT_LAYERS + STYLE_LAYERS))

# With these, both losses are in the range that is usual for activations of pictures in 0 to 255.
CONTENT_SCALE = 0.01
STYLE_SCALE = 10.0


class Losses(NamedTuple):
    """Content and style loss of a picture, each a scalar, already multiplied by its weight."""

    content: Tensor
    style: Tensor

    @property
    def total(self) -> Tensor:
        return self.content + self.style


class StyleObjective(nn.Module):
    """Content plus style, each a weighted sum over layers (Gatys, Ecker & Bethge 2016, arXiv:1508.06576).

    content = content_weight * sum over content layers of 0.01 * mean((F - F_content)^2)
    style = sum over styles s and style layers of style_weight[s] * 10 / C^2 * mean((G - G_s)^2), G the `gram_matrix`

    Args:
        network: from a picture (1, 3, H, W), RGB in [0, 1], to a mapping of layer name to activation, such as
            `torchconv.models.vgg_features`.
        content: the content picture, (1, 3, H, W).
        styles: the style pictures, each (1, 3, h, w) of any size.
        content_weight: multiplies the content loss.
        style_weights: multiply the style losses, one for each style; 1 / number of styles if None.
        content_layers, style_layers: names of the layers compared.
        tile: evaluate the network in tiles of about this many pixels a side, such as 512: the same losses and
            gradients, which differentiate once, in memory that grows little with the picture, for half as much
            arithmetic again. The network must be a module whose layers form a chain, with frozen
            parameters. None: in one piece.

    Shape:
        picture (1, 3, H, W), as the content's, to `Losses` of two scalars.

    Raises:
        ValueError: a negative or not finite weight, no style, or not as many weights as styles; a tile of no pixels, or
            a network that is no chain.
        TypeError: a network with a layer that can't be evaluated in tiles.
    """

    def __init__(
        self,
        network: Network,
        content: Tensor,
        styles: Sequence[Tensor],
        *,
        content_weight: float = 1.0,
        style_weights: Sequence[float] | None = None,
        content_layers: Sequence[str] = CONTENT_LAYERS,
        style_layers: Sequence[str] = STYLE_LAYERS,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in [("content_weight", content_weight), *(("style_weights", w) for w in style_weights or [])]:
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}: expected 0 or a positive number, got {value}")
        self.network = network
        self.content_weight = content_weight
        names = list(dict.fromkeys((*content_layers, *style_layers)))
        self.tiles = None if tile is None else Tiles(network, names, content, tile)
        with torch.no_grad():
            features = network(content) if self.tiles is None else activations(self.tiles, content, content_layers)
            contents = {layer: ContentLoss(features[layer]) for layer in content_layers}
            del features
            grams = [self._distances_and_grams(style, {}, style_layers)[1] for style in styles]
        self.content_losses = nn.ModuleDict(contents)
        self.style_losses = nn.ModuleDict(
            {layer: StyleLoss([by_layer[layer] for by_layer in grams], style_weights) for layer in style_layers}
        )

    def forward(self, picture: Tensor) -> Losses:
        contents, styles = dict(self.content_losses.items()), dict[str, Any](self.style_losses.items())
        distances, grams = self._distances_and_grams(picture, contents, styles)
        content = torch.stack(list(distances.values())).sum()
        style = torch.stack([styles[layer].of_gram(gram) / gram.shape[1] ** 2 for layer, gram in grams.items()]).sum()
        return Losses(self.content_weight * CONTENT_SCALE * content, STYLE_SCALE * style)

    def _distances_and_grams(
        self, picture: Tensor, contents: Mapping[str, Any], styles: Collection[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The content losses of a picture and its Gram matrices, by layer."""
        if self.tiles is not None:
            targets = {layer: loss.target for layer, loss in contents.items()}
            return distances_and_grams(self.tiles, picture, targets, list(styles))
        distances: dict[str, Tensor] = {}
        grams: dict[str, Tensor] = {}
        if not isinstance(self.network, VGGFeatures):
            features = self.network(picture)
            distances = {layer: loss(features[layer]) for layer, loss in contents.items()}
            return distances, {layer: gram_matrix(features[layer]) for layer in styles}
        activations = self.network.activations(picture)
        replaced: Tensor | None = None
        while True:
            try:
                layer, reached, again = activations.send(replaced)
            except StopIteration:
                return distances, grams
            replaced = None
            if layer in contents:
                distances[layer] = contents[layer](reached)
            if layer in styles:
                replaced, grams[layer] = tap(reached, again)
            del reached, again  # the network's alone while it goes on
