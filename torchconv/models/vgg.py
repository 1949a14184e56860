"""VGG: stacks of 3×3 convolutions and 2×2 max pooling.

K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015,
https://arxiv.org/abs/1409.1556: configurations A to E of Table 1. Modules, state_dict keys and initialisation are
torchvision's, so weights move freely between the two; but C, which torchvision doesn't have.
"""

import warnings
from collections.abc import Sequence

from torch import Tensor, nn

from torchconv.models.weights import Normalization, Source, check, load_weights
from torchconv.nn import AdaptiveAvgPool2d, Conv2d, MaxPool2d

# Convolutions in each of the five blocks, and their channels. A pooling follows each block.
CONVOLUTIONS = {
    "vgg11": (1, 1, 2, 2, 2),  # A
    "vgg13": (2, 2, 2, 2, 2),  # B
    "vgg16_c": (2, 2, 3, 3, 3),  # C
    "vgg16": (2, 2, 3, 3, 3),  # D
    "vgg19": (2, 2, 4, 4, 4),  # E
}
CHANNELS = (64, 128, 256, 512, 512)
# The convolutions that are 1×1, not 3×3.
POINTWISE = {"vgg16_c": ("conv3_3", "conv4_3", "conv5_3")}


def layer_names(name: str, batch_norm: bool = False) -> tuple[str, ...]:
    """The name of each layer of a network's feature part, in order.

    `conv3_2` is the second convolution of the third block, `bn3_2` its batch normalization if there is one, `relu3_2`
    its activation, and `pool3` the pooling that ends the block.

    Args:
        name: "vgg11", "vgg13", "vgg16", "vgg16_c" or "vgg19".
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


def make_features(network: str, names: Sequence[str]) -> nn.Sequential:
    """The layers of these names, in this order, as the network has them."""
    layers = nn.Sequential()
    channels = 3
    for name in names:
        kind = name.rstrip("0123456789_")
        layer: nn.Module
        if kind == "conv":
            width = CHANNELS[int(name[4]) - 1]
            kernel_size = 1 if name in POINTWISE.get(network, ()) else 3
            layer = Conv2d(channels, width, kernel_size, padding=kernel_size // 2)
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
        name: "vgg11", "vgg13", "vgg16", "vgg16_c" or "vgg19".
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
        self.features = make_features(name, layer_names(name, batch_norm))
        self.avgpool = AdaptiveAvgPool2d((7, 7))
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


def vgg16_c(
    *, weights: Source | None = None, batch_norm: bool = False, num_classes: int = 1000, dropout: float = 0.5
) -> VGG:
    """VGG with 16 weight layers, the last of the blocks 3 to 5 a 1×1 convolution (configuration C).

    The arguments are those of `vgg19`. There are no published weights for it: `weights` may be None or a file.
    """
    return _vgg("vgg16_c", weights, batch_norm, num_classes, dropout)


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
        weights, torchvision_name(name, batch_norm), layer_names(name, batch_norm)
    )
    if weights == "original":
        warnings.warn(
            "weights='original' hold the convolutions only: the classifier's weights are random", stacklevel=3
        )
        state |= {f"classifier.{key}": tensor for key, tensor in network.classifier.state_dict().items()}
    check(state, network.state_dict(), weights)
    network.load_state_dict(state)
    return network


def torchvision_name(name: str, batch_norm: bool) -> str:
    """What torchvision calls the network."""
    return f"{name}_bn" if batch_norm else name
