"""Convolution and pooling layers for PyTorch, open to read and check: `torchconv.Conv2d` for `torch.nn.Conv2d`."""

from torchconv import functional, models, nn, ops, reference
from torchconv.nn import Conv2d, MaxPool2d
from torchconv.ops import algorithm

__all__ = ["Conv2d", "MaxPool2d", "algorithm", "functional", "models", "nn", "ops", "reference"]
