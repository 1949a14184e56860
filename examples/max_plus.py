"""Max-plus layers: morphological dilation and erosion, learned.

    python examples/max_plus.py --steps 100

First a layer recovers the structuring element of a known dilation from what it does to pictures. Then one layer of
dilations and erosions, followed by a linear one, classifies handwritten digits: the architecture of "Dense
Morphological Networks", Mondal et al., arXiv:1901.00109, with windows. The pictures are scikit-learn's: 1797 digits of
8x8 pixels.
"""

import argparse
from math import inf

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F

import torchconv
from torchconv.functional import conv_with


def max_plus(patches: Tensor, weight: Tensor) -> Tensor:
    """The maximum of x + w: the matrix product of the semiring in which max adds and + multiplies."""
    return (patches.unsqueeze(2) + weight.unsqueeze(-1)).amax(3)


def min_plus(patches: Tensor, weight: Tensor) -> Tensor:
    """The minimum of x - w, its dual."""
    return (patches.unsqueeze(2) - weight.unsqueeze(-1)).amin(3)


class Dilation2d(torchconv.Conv2d):
    """The maximum of x + w over a window; what stands outside of the picture, -inf, never is the maximum."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding="same", bias=False)
        nn.init.normal_(self.weight, std=0.3)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv_with(max_plus, input, weight, bias, padding="same", padding_value=-inf)


class Erosion2d(Dilation2d):
    """The minimum of x - w over a window."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv_with(min_plus, input, weight, bias, padding="same", padding_value=inf)


class Morphology2d(nn.Module):
    """Dilations and erosions beside each other."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.dilation = Dilation2d(in_channels, out_channels // 2, kernel_size)
        self.erosion = Erosion2d(in_channels, out_channels // 2, kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([self.dilation(input), self.erosion(input)], 1)


def check_gradients() -> None:
    """Derivatives against finite differences; where two terms tie, which random ones don't, there is none."""
    for kind in (Dilation2d, Erosion2d):
        layer = kind(2, 3, 3).double()
        operands = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True), layer.weight
        assert gradcheck(lambda x, w, layer=layer: functional_call(layer, {"weight": w}, x), operands)
        print(f"gradcheck of {kind.__name__}: passed")


def recover_structuring_element(images: Tensor, steps: int) -> None:
    """Learn a paraboloid, -(i^2 + j^2) / 20, from pictures before and after dilation by it."""
    known, layer = Dilation2d(1, 1, 5), Dilation2d(1, 1, 5)
    distance = torch.arange(-2.0, 3.0)
    with torch.no_grad():
        known.weight.copy_(-(distance.square() + distance.square().unsqueeze(1)) / 20)
        layer.weight.zero_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        batch = images[torch.randint(len(images), (64,))]
        loss = F.mse_loss(layer(batch), known(batch).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in (1, steps) or step % 25 == 0:
            error = (layer.weight - known.weight).abs().max().item()
            print(f"structuring element, step {step}: loss {loss.item():.2g}, largest error {error:.3f}", flush=True)


def classify(images: Tensor, labels: Tensor, steps: int) -> None:
    """Learn from the first 1500 digits, answer for the others."""
    network = nn.Sequential(Morphology2d(1, 16, 3), nn.Flatten(), nn.Linear(16 * 8 * 8, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(1, steps + 1):
        batch = torch.randint(1500, (64,))
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, steps) or step % 25 == 0:
            print(f"digits, step {step}: loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        right = network(images[1500:]).argmax(1) == labels[1500:]
    print(f"digits: {right.double().mean().item():.1%} of {len(right)} unseen ones are right")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learn a structuring element, and to read digits, by max and plus.")
    parser.add_argument("--steps", type=int, default=100, help="batches of 64 pictures, for each (%(default)s)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    check_gradients()
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    recover_structuring_element(images, options.steps)
    classify(images, torch.tensor(digits.target)[order], options.steps)


if __name__ == "__main__":
    main()
