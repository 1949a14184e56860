"""VGG: stacks of 3×3 convolutions and 2×2 max pooling.

K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015,
https://arxiv.org/abs/1409.1556: configurations A, B, D and E of Table 1. Modules, state_dict keys and initialisation
are torchvision's, so weights move freely between the two.
"""

import warnings
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchconv.fuse import fuse_chain
from torchconv.models.weights import Normalization, Source, check, load_weights
from torchconv.nn import Conv2d, MaxPool2d

# Convolutions in each of the five blocks, and their channels. A pooling follows each block.
CONVOLUTIONS = {
    "vgg11": (1, 1, 2, 2, 2),  # A
    "vgg13": (2, 2, 2, 2, 2),  # B
    "vgg16": (2, 2, 3, 3, 3),  # D
    "vgg19": (2, 2, 4, 4, 4),  # E
}
CHANNELS = (64, 128, 256, 512, 512)


def layer_names(name: str, batch_norm: bool = False) -> tuple[str, ...]:
    """The name of each layer of a network's feature part, in order.

    `conv3_2` is the second convolution of the third block, `bn3_2` its batch normalization if there is one, `relu3_2`
    its activation, and `pool3` the pooling that ends the block.

    Args:
        name: "vgg11", "vgg13", "vgg16" or "vgg19".
        batch_norm: whether a batch normalization follows each convolution.

    Raises:
        ValueError: no such network.
    """
    if name not in CONVOLUTIONS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(CONVOLUTIONS)}")
    steps = ("conv", "bn", "relu") if batch_norm else ("conv", "relu")
    names: list[str] = []
    for block, count in enumerate(CONVOLUTIONS[name], start=1):
        names += [f"{step}{block}_{layer}" for layer in range(1, count + 1) for step in steps]
        names.append(f"pool{block}")
    return tuple(names)


def make_features(names: Sequence[str]) -> nn.Sequential:
    """The layers of these names, in this order."""
    layers = nn.Sequential()
    channels = 3
    for name in names:
        kind = name.rstrip("0123456789_")
        layer: nn.Module
        if kind == "conv":
            width = CHANNELS[int(name[4]) - 1]
            layer = Conv2d(channels, width, kernel_size=3, padding=1)
            channels = width
        elif kind == "bn":
            layer = nn.BatchNorm2d(channels)
        elif kind == "relu":
            layer = nn.ReLU(inplace=True)
        else:
            layer = MaxPool2d(kernel_size=2, stride=2)
        layers.append(layer)
    return layers


def initialize(module: nn.Module) -> None:
    """Draw initial weights: He's for convolutions (https://arxiv.org/abs/1502.01852), N(0, 0.01²) for linear layers."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.01)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class VGG(nn.Module):
    """A VGG network: features, adaptive average pooling to 7×7, and three linear layers.

    Shape:
        Images of (N, 3, H, W), with H and W at least 32, to logits of (N, num_classes).

    Args:
        name: "vgg11", "vgg13", "vgg16" or "vgg19".
        batch_norm: put a batch normalization after each convolution.
        num_classes: number of logits.
        dropout: probability that the classifier drops an activation while training.

    Attributes:
        normalization: how an RGB image in [0, 1] must be normalized for the loaded weights; None without such weights.

    Raises:
        ValueError: no such network.
    """

    normalization: Normalization | None

    def __init__(
        self, name: str = "vgg19", *, batch_norm: bool = False, num_classes: int = 1000, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.features = make_features(layer_names(name, batch_norm))
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        self.normalization = None
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


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

    def __init__(self, names: Sequence[str], layers: Sequence[str]) -> None:
        super().__init__()
        if isinstance(layers, str):
            raise TypeError(f"layers={layers!r}: expected a sequence of names such as [{layers!r}], got a string")
        unknown = [layer for layer in layers if layer not in names]
        if unknown or not layers:
            raise ValueError(f"layers={list(layers)!r}: expected one or more of {', '.join(names)}")
        positions = sorted({names.index(layer) for layer in layers})
        self.layers = tuple(names[position] for position in positions)
        self.minimum_size = 2 ** sum(name.startswith("pool") for name in names[: positions[-1] + 1])
        self.features = make_features(names[: positions[-1] + 1])
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
        name: "vgg11", "vgg13", "vgg16" or "vgg19".
        layers: names of the layers whose activations are wanted, such as ["relu1_1", "relu4_2"]; see `layer_names`.
        weights: as for `vgg19`. None leaves the initial, random weights and does not normalize.
        batch_norm: use the network with batch normalization.

    Raises:
        ValueError: as for `vgg19`; also an unknown layer.
        FileNotFoundError, ModuleNotFoundError, OSError: as for `vgg19`.
    """
    names = layer_names(name, batch_norm)
    network = VGGFeatures(names, layers)
    if weights is None:
        initialize(network)
        return network
    state, normalization = load_weights(weights, _torchvision_name(name, batch_norm), names)
    # A file of the whole network will do; it is checked as far as the features go, and loaded as far as they are used.
    state = {key: tensor for key, tensor in state.items() if key.startswith("features.")}
    with torch.device("meta"):
        whole = VGGFeatures(names, names[-1:])
    check(state, whole.state_dict(), weights)
    used = network.state_dict().keys()
    network.load_state_dict({key: tensor for key, tensor in state.items() if key in used})
    network.mean.copy_(torch.tensor(normalization.mean).view(3, 1, 1))
    network.std.copy_(torch.tensor(normalization.std).view(3, 1, 1))
    return network


def vgg11(
    *, weights: Source | None = None, batch_norm: bool = False, num_classes: int = 1000, dropout: float = 0.5
) -> VGG:
    """VGG with 11 weight layers (configuration A). The arguments are those of `vgg19`."""
    return _vgg("vgg11", weights, batch_norm, num_classes, dropout)


def vgg13(
    *, weights: Source | None = None, batch_norm: bool = False, num_classes: int = 1000, dropout: float = 0.5
) -> VGG:
    """VGG with 13 weight layers (configuration B). The arguments are those of `vgg19`."""
    return _vgg("vgg13", weights, batch_norm, num_classes, dropout)


def vgg16(
    *, weights: Source | None = None, batch_norm: bool = False, num_classes: int = 1000, dropout: float = 0.5
) -> VGG:
    """VGG with 16 weight layers (configuration D). The arguments are those of `vgg19`."""
    return _vgg("vgg16", weights, batch_norm, num_classes, dropout)


def vgg19(
    *, weights: Source | None = None, batch_norm: bool = False, num_classes: int = 1000, dropout: float = 0.5
) -> VGG:
    """VGG with 19 weight layers (configuration E).

    Args:
        weights: None for initial, random weights; "original" for the authors' own (VGG-19 without batch normalization;
            convolutions only, the classifier stays random); "IMAGENET1K_V1" for torchvision's, downloaded once; or the
            path of a file that holds a state_dict with torchvision's keys.
        batch_norm: put a batch normalization after each convolution.
        num_classes: number of logits.
        dropout: probability that the classifier drops an activation while training.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ModuleNotFoundError: weights="original" without the package that holds them.
        ValueError: a weights file is damaged, doesn't match the network, or holds NaN or infinite values.
        OSError: the download failed.
    """
    return _vgg("vgg19", weights, batch_norm, num_classes, dropout)


def _vgg(name: str, weights: Source | None, batch_norm: bool, num_classes: int, dropout: float) -> VGG:
    network = VGG(name, batch_norm=batch_norm, num_classes=num_classes, dropout=dropout)
    if weights is None:
        return network
    state, network.normalization = load_weights(
        weights, _torchvision_name(name, batch_norm), layer_names(name, batch_norm)
    )
    if weights == "original":
        warnings.warn(
            "weights='original' hold the convolutions only: the classifier's weights are random", stacklevel=3
        )
        state |= {f"classifier.{key}": tensor for key, tensor in network.classifier.state_dict().items()}
    check(state, network.state_dict(), weights)
    network.load_state_dict(state)
    return network


def _torchvision_name(name: str, batch_norm: bool) -> str:
    return f"{name}_bn" if batch_norm else name
