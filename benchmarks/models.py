"""The networks whose layers are timed: torchvision's, and the two that it doesn't have."""

import importlib
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType

import torch
from convolution import Layer
from torch import Tensor, nn


def _torchvision_models() -> ModuleType:
    """torchvision.models, also beside a build of torch that torchvision's compiled part doesn't fit.

    Without that part torchvision registers fake kernels for two ops that nobody defined, and fails to import.
    """
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision.models")


torchvision_models = _torchvision_models()


def lenet() -> nn.Module:
    """LeNet-5 for pictures of 28×28 (LeCun et al. 1998), with ReLU and max pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 120, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def _twice(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """U-Net with padded convolutions (Ronneberger, Fischer & Brox 2015, arXiv:1505.04597)."""

    def __init__(self, channels: tuple[int, ...] = (64, 128, 256, 512, 1024), classes: int = 2) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.first = _twice(3, channels[0])
        self.down = nn.ModuleList(_twice(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.join = nn.ModuleList(_twice(b, a) for a, b in reversed(pairs))
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(channels[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skipped = []
        for down in self.down:
            skipped.append(x)
            x = down(self.pool(x))
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skipped.pop(), up(x)], 1))
        return self.last(x)


def _vgg19_features() -> nn.Module:
    return torchvision_models.vgg19().features


def _deeplabv3() -> nn.Module:
    """With dilated convolutions (Chen et al. 2017, arXiv:1706.05587)."""
    return torchvision_models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet": lenet,
    "alexnet": torchvision_models.alexnet,
    "vgg16": torchvision_models.vgg16,
    "resnet50": torchvision_models.resnet50,
    "mobilenet_v2": torchvision_models.mobilenet_v2,
    "densenet121": torchvision_models.densenet121,
    "unet": UNet,
    "convnext_tiny": torchvision_models.convnext_tiny,
    "vgg19": _vgg19_features,
    "resnet18": torchvision_models.resnet18,
    "deeplabv3": _deeplabv3,
}
GRID = tuple(MODELS)[:8]  # the networks of the layer grid


def picture_shape(model: str, size: int) -> tuple[int, int, int]:
    """Channels, height and width of a network's input; LeNet's is 28×28 whatever the size."""
    return (1, 28, 28) if model == "lenet" else (3, size, size)


def layers_of(model: str, size: int) -> dict[Layer, str]:
    """The distinct convolutions of a network on a picture of this size, with the name of the first of each."""
    found: dict[Layer, str] = {}
    with torch.device("meta"):
        network = MODELS[model]().eval()
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):

                def keep(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor, name: str = name) -> None:
                    found.setdefault(Layer.of(module, inputs[0].shape[2:]), name)  # type: ignore[arg-type]

                module.register_forward_hook(keep)
        with torch.no_grad():
            network(torch.empty(1, *picture_shape(model, size)))
    return found
