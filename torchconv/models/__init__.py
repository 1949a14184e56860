"""Networks built of torchconv's layers."""

from torchconv.models.alexnet import AlexNet, AlexNet2012, alexnet
from torchconv.models.features import VGGFeatures, vgg_features
from torchconv.models.lenet import LeNet5, ModernLeNet5
from torchconv.models.simple_convnet import SimpleConvNet
from torchconv.models.vgg import VGG, vgg11, vgg13, vgg16, vgg16_c, vgg19
from torchconv.models.weights import Normalization

__all__ = [
    "VGG",
    "AlexNet",
    "AlexNet2012",
    "LeNet5",
    "ModernLeNet5",
    "Normalization",
    "SimpleConvNet",
    "VGGFeatures",
    "alexnet",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg16_c",
    "vgg19",
    "vgg_features",
]
