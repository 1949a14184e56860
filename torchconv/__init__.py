"""Convolution and pooling layers for PyTorch, open to read and check: `torchconv.Conv2d` for `torch.nn.Conv2d`."""

from torchconv import functional, models, nn, ops, reference
from torchconv.convert import convert, enabled, revert, unconvertible
from torchconv.nn import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from torchconv.ops import algorithm

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "algorithm",
    "convert",
    "enabled",
    "functional",
    "models",
    "nn",
    "ops",
    "reference",
    "revert",
    "unconvertible",
]
