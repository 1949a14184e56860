"""Networks built of torchconv's layers."""

from torchconv.models.vgg import VGG, VGGFeatures, vgg11, vgg13, vgg16, vgg19, vgg_features
from torchconv.models.weights import Normalization

__all__ = ["VGG", "Normalization", "VGGFeatures", "vgg11", "vgg13", "vgg16", "vgg19", "vgg_features"]
