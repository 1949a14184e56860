"""The networks that can be trained, by name, and the recipe that each is trained by unless told otherwise."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import torchconv
from torchconv import models
from torchconv.models.lenet import SparseConv2d

SMALL, LARGE = (1, 28, 28), (3, 224, 224)


class VGGA(nn.Module):
    """VGG's configuration A (https://arxiv.org/abs/1409.1556) for pictures of 28x28 pixels, padded to 32x32.

    Eight 3x3 convolutions in five blocks and three linear layers, as in the paper. It departs in its widths, a half to
    a sixteenth of the paper's, and, if `norm` is "batch", in a batch normalization after each convolution.

    Shape:
        (N, 1, 28, 28) to logits of (N, num_classes).
    """

    BLOCKS = ((32,), (64,), (96, 96), (128, 128), (128, 128))
    HIDDEN = 256

    def __init__(self, num_classes: int = 10, norm: str = "batch", dropout: float = 0.2) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = 1
        for block in self.BLOCKS:
            for width in block:
                self.features.append(torchconv.Conv2d(channels, width, 3, padding=1, bias=norm == "none"))
                if norm == "batch":
                    self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU(inplace=True))
                channels = width
            self.features.append(torchconv.MaxPool2d(2))
        self.classifier = nn.Sequential(
            *(nn.Linear(channels, self.HIDDEN), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(nn.Linear(self.HIDDEN, self.HIDDEN), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            nn.Linear(self.HIDDEN, num_classes),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.classifier[-1].weight, 0, 0.01)  # at first no class is likelier than another

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(F.pad(x, (2, 2, 2, 2))).flatten(1))


@dataclass(frozen=True)
class Architecture:
    """How to make a network, and its recipe.

    Attributes:
        make: from the number of classes and the kind of normalization.
        shape: channels, height and width of the pictures that it takes.
        recipe: what differs from RECIPE.
        norms: kinds of normalization to choose from; the first is the default.
        most_classes: None where it takes any number.
    """

    make: Callable[[int, str], nn.Module]
    shape: tuple[int, int, int]
    recipe: dict[str, Any]
    norms: tuple[str, ...] = ("none",)
    most_classes: int | None = None


def _vgg(name: str) -> Architecture:
    def make(classes: int, norm: str) -> nn.Module:
        return getattr(models, name)(num_classes=classes, batch_norm=norm == "batch")

    return Architecture(make, LARGE, IMAGENET, ("batch", "none"))


RECIPE: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 128,
    "optimizer": "adamw",
    "lr": 3e-3,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "schedule": "one-cycle",
    "warmup": 0,
    "label_smoothing": 0.0,
    "shift": 0,
    "channels_last": False,
}
IMAGENET = {
    "channels_last": True,
    "optimizer": "sgd",
    "lr": 0.02,
    "weight_decay": 5e-4,
    "epochs": 30,
    "batch_size": 64,
    "shift": 16,
}
ARCHITECTURES = {
    "lenet5": Architecture(
        lambda classes, norm: models.LeNet5(), SMALL, {"epochs": 12, "weight_decay": 0.0, "shift": 1}, most_classes=10
    ),
    "modern-lenet5": Architecture(
        lambda classes, norm: models.ModernLeNet5(num_classes=classes), SMALL, {"lr": 5e-3, "shift": 1}
    ),
    "simple-convnet": Architecture(
        lambda classes, norm: models.SimpleConvNet(output_size=classes), SMALL, {"shift": 1}
    ),
    "vgg-a": Architecture(
        lambda classes, norm: VGGA(classes, norm),
        SMALL,
        {"epochs": 8, "lr": 2e-3, "weight_decay": 0.05, "shift": 1, "label_smoothing": 0.05, "channels_last": True},
        ("batch", "none"),
    ),
    "alexnet": Architecture(lambda classes, norm: models.alexnet(num_classes=classes), LARGE, IMAGENET),
    "alexnet-2012": Architecture(lambda classes, norm: models.AlexNet2012(num_classes=classes), LARGE, IMAGENET),
    **{name: _vgg(name.replace("-", "_")) for name in ("vgg11", "vgg13", "vgg16", "vgg16-c", "vgg19")},
}
# What differs by the data: a boot stays a boot in the mirror, a 7 doesn't stay a 7; and digits are few.
BY_DATA: dict[str, dict[str, Any]] = {
    "fashion-mnist": {"flip": True},
    "digits": {"epochs": 20, "batch_size": 32},
}


def recipe(model: str, data: str) -> dict[str, Any]:
    """The settings that a network is trained by on some data, where nothing else is asked for."""
    architecture = ARCHITECTURES[model]
    return {**RECIPE, "flip": False, "norm": architecture.norms[0], **architecture.recipe, **BY_DATA.get(data, {})}


def recipes() -> str:
    """All recipes, for people."""
    rows = {"recipe": RECIPE, **{name: each.recipe for name, each in ARCHITECTURES.items()}}
    rows |= {f"on {data}": row for data, row in BY_DATA.items()}
    return "\n".join(
        f"{name + ':':<17}" + " ".join(f"{key}={value}" for key, value in row.items()) for name, row in rows.items()
    )


def build(model: str, classes: int, norm: str, layers: str) -> nn.Module:
    """A network with random weights, on torchconv's layers or, the same weights, on torch.nn's.

    Raises:
        ValueError: it hasn't that kind of normalization, or not so many classes.
    """
    architecture = ARCHITECTURES[model]
    if norm not in architecture.norms:
        raise ValueError(f"--norm {norm}: expected {' or '.join(architecture.norms)} for {model}")
    if architecture.most_classes and classes > architecture.most_classes:
        raise ValueError(
            f"--model {model}: expected data of at most {architecture.most_classes} classes, got {classes}"
        )
    network = architecture.make(classes, norm)
    if layers == "torch":
        torchconv.revert(network)
        for layer in network.modules():
            if isinstance(layer, SparseConv2d):  # has no twin in torch.nn, only another convolution inside
                layer._conv_forward = MethodType(_torch_sparse, layer)
    return network


def _torch_sparse(self: SparseConv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.Conv2d._conv_forward(self, input, self.dense(weight), bias)
