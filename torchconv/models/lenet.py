"""LeNet-5: as published in 1998, and as it is built today.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-Based Learning Applied to Document Recognition", Proceedings of
the IEEE 86 (11), 1998, section II.B. Layers have the paper's names.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchconv.nn import AvgPool2d, Conv2d, MaxPool2d

# Table I: which maps of S2 each map of C3 sees.
C3_INPUTS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# Fig. 3, as public copies transcribe it: what F6 is to draw for 0 to 9, in 7×12 pixels.
DIGITS = """
.#####.  ...##..  .#####.  #######  .#####.  .#####.  ..####.  #######  .#####.  .#####.
.......  ..###..  .......  .....##  .......  .......  .##....  .....##  ##...##  ##..###
..###..  .####..  .#####.  ....##.  .......  #######  ##.....  .....##  ##...##  ##...##
.##.##.  ...##..  ##...##  ...##..  .##..##  ##.....  ##.....  ....##.  ##...##  ##...##
##...##  ...##..  #....##  ..####.  .##..##  ##.....  ######.  ...##..  .#####.  ##..###
##...##  ...##..  ....##.  .....##  ###..##  .####..  ###..##  ...##..  ##...##  .######
##...##  ...##..  ..###..  .....##  ##...##  ..####.  ##...##  ..##...  ##...##  .....##
##...##  ...##..  .##....  .....##  ##...##  .....##  ##...##  ..##...  ##...##  .....##
.##.##.  ...##..  ##.....  ##...##  ##..###  ##...##  ###..##  ..##...  ##...##  ....##.
..###..  .######  #######  .#####.  .######  .#####.  .#####.  ..##...  .#####.  .####..
.......  .......  .......  .......  .....##  .......  .......  .......  .......  .......
.......  .......  .......  .......  .....##  .......  .......  .......  .......  .......
"""

# Levels of the background and of the ink: over a set of digits, a mean of about 0 and a variance of about 1.
BACKGROUND, INK = -0.1, 1.175

# The penalty j of the "rubbish" class in equation 9. The paper doesn't give it.
RUBBISH_PENALTY = 10.0


def digit_bitmaps() -> Tensor:
    """Fig. 3's drawings of 0 to 9: (10, 84), row by row, +1 where there is ink and -1 where not."""
    rows = [line.split() for line in DIGITS.split("\n") if line]
    drawn = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in pixels] for pixels in drawn])


def squash(x: Tensor) -> Tensor:
    """The paper's activation, 1.7159 tanh(2x/3): it maps ±1 to ±1, where its curvature is largest (appendix A)."""
    return 1.7159 * torch.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """The sum of each 2×2 window, times a trainable coefficient of its map, plus a trainable bias.

    Shape:
        (N, channels, H, W) to (N, channels, H/2, W/2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.pool = AvgPool2d(kernel_size=2, divisor_override=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class SparseConv2d(Conv2d):
    """A convolution in which a map of the output sees some maps of the input only.

    Its `weight` holds a kernel for each connection, in the order of `inputs`, and none where there is no connection:
    (connections, 1, kernel_size, kernel_size).

    Shape:
        (N, in_channels, H, W) to (N, len(inputs), H - kernel_size + 1, W - kernel_size + 1).

    Args:
        in_channels: number of maps of the input.
        inputs: for each map of the output, the maps of the input that it sees.
        kernel_size: height and width of the kernels.
    """

    positions: Tensor

    def __init__(self, in_channels: int, inputs: Sequence[Sequence[int]], kernel_size: int) -> None:
        super().__init__(in_channels, len(inputs), kernel_size)
        positions = [row * in_channels + column for row, columns in enumerate(inputs) for column in columns]
        self.weight = nn.Parameter(torch.empty(len(positions), 1, kernel_size, kernel_size))
        self.register_buffer("positions", torch.tensor(positions), persistent=False)

    def dense(self, weight: Tensor) -> Tensor:
        """The weight of the `Conv2d` that is the same function, with zeros where there is no connection."""
        pairs = weight.new_zeros(self.out_channels * self.in_channels, 1, *self.kernel_size)
        return pairs.index_copy(0, self.positions, weight).view(self.out_channels, self.in_channels, *self.kernel_size)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, self.dense(weight), bias)


class LeNet5(nn.Module):
    """LeNet-5 as published: trainable subsampling, scaled tanh, a sparse C3, and radial basis functions for output.

    The penalty of a class is the squared distance of F6's 84 outputs from the class's bitmap; the score is its
    negative, so that the largest wins. Train it with `loss`:

        model = torchconv.models.LeNet5()
        model.loss(model(images), labels).backward()

    It has 60,000 trainable parameters, which are all that `parameters()` gives: C1 156, S2 12, C3 1,516 (25 weights for
    each of the 60 connections of Table I, and 16 biases), S4 32, C5 48,120, F6 10,164. The bitmaps are constants.

    Two choices are not the paper's, which leaves them open: biases are drawn like the weights, from a uniform
    distribution of ±2.4 / fan-in; and the penalty of the rubbish class in the loss is 10. The paper trains by a
    stochastic diagonal Levenberg-Marquardt method, which is not here.

    Shape:
        Pictures of (N, 1, 32, 32), or of (N, 1, 28, 28), which are padded by 2 pixels of background; with values from
        0, background, to 1, ink. The model itself brings them to the paper's -0.1 and 1.175. To scores of (N, 10).

    Raises:
        ValueError: when called with an input of another shape.
    """

    bitmaps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.c1 = Conv2d(1, 6, kernel_size=5)
        self.s2 = Subsampling(6)
        self.c3 = SparseConv2d(6, C3_INPUTS, kernel_size=5)
        self.s4 = Subsampling(16)
        self.c5 = Conv2d(16, 120, kernel_size=5)
        self.f6 = nn.Linear(120, 84)
        self.register_buffer("bitmaps", digit_bitmaps(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights and biases anew, between -2.4 and 2.4 divided by the number of a unit's inputs."""
        of_maps = [25 * len(inputs) for inputs in C3_INPUTS]
        of_kernels = [25 * len(inputs) for inputs in C3_INPUTS for _ in inputs]
        fan_in = {"c1": 25, "s2": 4, "s4": 4, "c5": 400, "f6": 120}
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.uniform_(-2.4, 2.4)
                if name == "c3.weight":
                    parameter.div_(torch.tensor(of_kernels).view(-1, 1, 1, 1))
                elif name == "c3.bias":
                    parameter.div_(torch.tensor(of_maps))
                else:
                    parameter.div_(fan_in[name[:2]])

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1:] not in ((1, 32, 32), (1, 28, 28)):
            raise ValueError(f"x: expected the shape (N, 1, 32, 32) or (N, 1, 28, 28), got {x.shape}")
        margin = (32 - x.shape[-1]) // 2
        x = F.pad(x, (margin, margin, margin, margin)) * (INK - BACKGROUND) + BACKGROUND
        x = squash(self.s2(squash(self.c1(x))))
        x = squash(self.s4(squash(self.c3(x))))
        x = squash(self.c5(x)).flatten(1)
        x = squash(self.f6(x))
        return -(x.unsqueeze(1) - self.bitmaps).square().sum(2)

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Equation 9: the penalty of the right class, and how much the other classes compete with it.

        The mean over the batch of y_D + log(exp(-j) + sum of exp(-y_i)), with y the penalties, D the right class, and
        j the penalty of a "rubbish" class, beyond which a wrong class is not pushed. That is a cross-entropy.

        Args:
            scores: (N, 10), as the model gives them.
            target: (N,), labels from 0 to 9.
        """
        rubbish = scores.new_full((len(scores), 1), -RUBBISH_PENALTY)
        return F.cross_entropy(torch.cat([scores, rubbish], dim=1), target)


class ModernLeNet5(nn.Module):
    """LeNet-5 with today's parts: ReLU, max pooling, a C3 that sees all maps, and a linear output.

    61,706 parameters with 10 classes. Weights are drawn as by torch.nn's layers; train it with a cross-entropy.

    Shape:
        Pictures of (N, 1, 28, 28), to logits of (N, num_classes).

    Args:
        num_classes: number of logits.

    Raises:
        ValueError: when called with an input of another shape.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Conv2d(1, 6, kernel_size=5, padding=2),
            nn.ReLU(),
            MaxPool2d(kernel_size=2),
            Conv2d(6, 16, kernel_size=5),
            nn.ReLU(),
            MaxPool2d(kernel_size=2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (1, 28, 28):
            raise ValueError(f"x: expected the shape (N, 1, 28, 28), got {x.shape}")  # as a tuple, fx can't trace it
        return self.classifier(self.features(x).flatten(1))
