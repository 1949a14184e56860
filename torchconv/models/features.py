"""The feature part of VGG, layer by layer, as style transfer and perceptual losses use it."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchconv.fuse import fuse_chain
from torchconv.models.vgg import initialize, layer_names, make_features, torchvision_name
from torchconv.models.weights import Source, check, load_weights


class Activation(NamedTuple):
    """What a layer of a network gives.

    Attributes:
        name: of the layer.
        values: (N, C, H, W).
        again: computes the values once more, without gradients; None where that is dear.
    """

    name: str
    values: Tensor
    again: Callable[[], Tensor] | None


class VGGFeatures(nn.Module):
    """The feature part of a VGG network, up to the deepest of the layers asked for. Made by `vgg_features`.

    It normalizes its input itself, is in evaluation mode, and its weights are frozen: gradients flow to the image only.

    Shape:
        RGB images of (N, 3, H, W) with values in [0, 1], H and W at least `minimum_size`, to a dictionary of layer name
        to activation (N, C, H/2ᵖ, W/2ᵖ), where p poolings come before it; in the order of the network, channels-last.

    Attributes:
        layers: names of the layers asked for, in the order of the network.
        minimum_size: least height and width, in pixels, with which those layers have an output.

    Raises:
        ValueError: when called with an input of another shape, or too small.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, layers: Sequence[str], batch_norm: bool = False) -> None:
        super().__init__()
        names = layer_names(name, batch_norm)
        if isinstance(layers, str):
            raise TypeError(f"layers={layers!r}: expected a sequence of names such as [{layers!r}], got a string")
        unknown = [layer for layer in layers if layer not in names]
        if unknown or not layers:
            raise ValueError(f"layers={list(layers)!r}: expected one or more of {', '.join(names)}")
        positions = sorted({names.index(layer) for layer in layers})
        self.layers = tuple(names[position] for position in positions)
        self.minimum_size = 2 ** sum(name.startswith("pool") for name in names[: positions[-1] + 1])
        self.features = make_features(name, names[: positions[-1] + 1])
        for position in positions:
            follower = position + 1
            if follower < len(self.features) and isinstance(self.features[follower], nn.ReLU):
                self.features[follower] = nn.ReLU()  # in place, it would overwrite an activation that is handed out
        fuse_chain(list(self.features), positions)
        # Not in the state_dict, whose keys stay those of the whole network.
        self.register_buffer("mean", torch.zeros(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(3, 1, 1), persistent=False)
        self._names = tuple(names[: positions[-1] + 1])
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {name: values for name, values, _ in self.activations(image)}

    def activations(self, image: Tensor) -> Generator[Activation, Tensor | None, None]:
        """The activations one by one, as they are computed: what is not kept is freed on the way.

        Whatever is computed of an activation before the next is asked for has its gradient when the deeper layers
        have theirs, not before. A tensor that is sent back takes the activation's place on the way.
        """
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(f"image: expected the shape (N, 3, H, W), got {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"image: expected floating-point values in [0, 1], got {image.dtype}")
        if min(image.shape[2:]) < self.minimum_size:
            raise ValueError(
                f"image: {image.shape[2]}×{image.shape[3]} pixels are too few for the layer {self.layers[-1]}, "
                f"expected at least {self.minimum_size}×{self.minimum_size}"
            )
        # The convolutions work on channels-last; whatever the image is, nothing is transposed on the way.
        x = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        first = x.detach()
        for position, (name, layer) in enumerate(zip(self._names, self.features, strict=True)):
            x = layer(x)
            if name in self.layers:
                cheap = sum(before.startswith("conv") for before in self._names[: position + 1]) == 1
                replaced = yield Activation(name, x, partial(self._again, first, position + 1) if cheap else None)
                x = x if replaced is None else replaced

    def _again(self, x: Tensor, layers: int) -> Tensor:
        with torch.no_grad():
            return self.features[:layers](x)

    def extra_repr(self) -> str:
        return f"layers={self.layers}, minimum_size={self.minimum_size}"


def vgg_features(
    name: str = "vgg19", *, layers: Sequence[str], weights: Source | None = "original", batch_norm: bool = False
) -> VGGFeatures:
    """The feature part of a VGG network, as style transfer and perceptual losses use it.

    Args:
        name: "vgg11", "vgg13", "vgg16", "vgg16_c" or "vgg19".
        layers: names of the layers whose activations are wanted, such as ["relu1_1", "relu4_2"]; see `layer_names`.
        weights: as for `vgg19`. None leaves the initial, random weights and does not normalize.
        batch_norm: use the network with batch normalization.

    Raises:
        ValueError: as for `vgg19`; also an unknown layer.
        FileNotFoundError, ModuleNotFoundError, OSError: as for `vgg19`.
    """
    network = VGGFeatures(name, layers, batch_norm)
    if weights is None:
        initialize(network)
        return network
    names = layer_names(name, batch_norm)
    state, normalization = load_weights(weights, torchvision_name(name, batch_norm), names)
    # A file of the whole network will do; it is checked as far as the features go, and loaded as far as they are used.
    state = {key: tensor for key, tensor in state.items() if key.startswith("features.")}
    with torch.device("meta"):
        whole = VGGFeatures(name, names[-1:], batch_norm)
    check(state, whole.state_dict(), weights)
    used = network.state_dict().keys()
    network.load_state_dict({key: tensor for key, tensor in state.items() if key in used})
    network.mean.copy_(torch.tensor(normalization.mean).view(3, 1, 1))
    network.std.copy_(torch.tensor(normalization.std).view(3, 1, 1))
    return network
