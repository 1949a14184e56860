"""The function that style transfer minimises: how far a picture is from one picture's content and others' style."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchconv.style.gram import gram_matrix
from torchconv.style.losses import ContentLoss, StyleLoss

CONTENT_LAYERS = ("relu4_2",)
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
LAYERS = tuple(sorted(CONTENT_LAYERS + STYLE_LAYERS))

# With these, both losses are in the range that is usual for activations of pictures in 0 to 255.
CONTENT_SCALE = 0.01
STYLE_SCALE = 10.0

Network = Callable[[Tensor], Mapping[str, Tensor]]


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

    Shape:
        picture (1, 3, H, W), as the content's, to `Losses` of two scalars.

    Raises:
        ValueError: a negative or not finite weight, no style, or not as many weights as styles.
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
    ) -> None:
        super().__init__()
        for name, value in [("content_weight", content_weight), *(("style_weights", w) for w in style_weights or [])]:
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}: expected 0 or a positive number, got {value}")
        self.network = network
        self.content_weight = content_weight
        with torch.no_grad():
            features = network(content)
            contents = {layer: ContentLoss(features[layer]) for layer in content_layers}
            del features
            grams = [
                {
                    layer: gram_matrix(activation)
                    for layer, activation in network(style).items()
                    if layer in style_layers
                }
                for style in styles
            ]
        self.content_losses = nn.ModuleDict(contents)
        self.style_losses = nn.ModuleDict(
            {layer: StyleLoss([by_layer[layer] for by_layer in grams], style_weights) for layer in style_layers}
        )

    def forward(self, picture: Tensor) -> Losses:
        features = self.network(picture)
        content = torch.stack([loss(features[layer]) for layer, loss in self.content_losses.items()]).sum()
        style = torch.stack(
            [loss(features[layer]) / features[layer].shape[1] ** 2 for layer, loss in self.style_losses.items()]
        ).sum()
        return Losses(self.content_weight * CONTENT_SCALE * content, STYLE_SCALE * style)
