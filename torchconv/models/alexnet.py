"""AlexNet: in torchvision's form, and as it won in 2012.

A. Krizhevsky, I. Sutskever and G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012;
A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, https://arxiv.org/abs/1404.5997,
whose single tower is torchvision's.
"""

from torch import Tensor, nn

from torchconv.models.weights import Normalization, Source, check, load_weights
from torchconv.nn import AdaptiveAvgPool2d, Conv2d, LocalResponseNorm, MaxPool2d


class AlexNet(nn.Module):
    """AlexNet in torchvision's form: one tower, no normalization, adaptive average pooling to 6×6.

    Modules, state_dict keys and initialisation are torchvision's, so weights move freely between the two. The 2014
    paper has 384 maps in its fourth convolution, and no adaptive pooling; here as in torchvision they are 256.

    Shape:
        Images of (N, 3, H, W), with H and W at least 63, to logits of (N, num_classes).

    Args:
        num_classes: number of logits.
        dropout: probability that the classifier drops an activation while training.

    Attributes:
        normalization: how an RGB image in [0, 1] must be normalized for the loaded weights; None without such weights.
    """

    normalization: Normalization | None

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            MaxPool2d(kernel_size=3, stride=2),
            Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            MaxPool2d(kernel_size=3, stride=2),
            Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )
        self.normalization = None

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def alexnet(*, weights: Source | None = None, num_classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """AlexNet in torchvision's form.

    Args:
        weights: None for initial, random weights; "IMAGENET1K_V1" for torchvision's, downloaded once; or the path of a
            file that holds a state_dict with torchvision's keys.
        num_classes: number of logits.
        dropout: probability that the classifier drops an activation while training.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ValueError: a weights file is damaged, doesn't match the network, or holds NaN or infinite values.
        OSError: the download failed.
    """
    if weights is None:
        return AlexNet(num_classes, dropout)
    state, normalization = load_weights(weights, "alexnet")
    network = AlexNet(num_classes, dropout)
    check(state, network.state_dict(), weights)
    network.load_state_dict(state)
    network.normalization = normalization
    return network


class AlexNet2012(nn.Module):
    """AlexNet as it won in 2012: two groups, local response normalization, overlapping pooling.

    The halves of the network, one on each of two GPUs, are the groups of the convolutions conv2, conv4 and conv5; conv3
    sees both halves. Initial weights are the paper's: from N(0, 0.01²), biases 1 in conv2, conv4, conv5 and the hidden
    affine layers, 0 elsewhere. 60,965,224 parameters with 1000 classes.

    It departs from the paper in two points. The images of 224×224 that the paper speaks of don't give its 55×55 outputs
    of conv1, but with 2 pixels of zeros around them they do. And the normalization looks over the border of the halves.

    Shape:
        Images of (N, 3, 224, 224), or of heights and widths from 223 to 254, with values from 0 to 255 less the mean of
        the training images, to logits of (N, num_classes).

    Args:
        num_classes: number of logits.

    Raises:
        ValueError: when called with images of another size.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Conv2d(3, 96, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            response_norm(),
            MaxPool2d(kernel_size=3, stride=2),
            Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            response_norm(),
            MaxPool2d(kernel_size=3, stride=2),
            Conv2d(256, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 384, kernel_size=3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            Conv2d(384, 256, kernel_size=3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            MaxPool2d(kernel_size=3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, num_classes),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the paper's initial weights anew."""
        layers = [layer for layer in self.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
        first, _, third, *_, last = layers
        for layer in layers:
            nn.init.normal_(layer.weight, 0, 0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, 0 if layer in (first, third, last) else 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        if features.shape[2:] != (6, 6):
            raise ValueError(f"x: expected the shape (N, 3, H, W) with H and W from 223 to 254, got {x.shape}")
        return self.classifier(features.flatten(1))


def response_norm() -> LocalResponseNorm:
    """The normalization of section 3.3, with k = 2, n = 5, alpha = 1e-4 and beta = 0.75.

    The paper multiplies alpha with a sum over n maps, PyTorch with their mean.
    """
    return LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2.0)
