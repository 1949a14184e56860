"""AdderNet: convolution by L1 distance, trained on handwritten digits by its exact gradient and by the paper's.

    python examples/adder_net.py --steps 60

"AdderNet: Do We Really Need Multiplications in Deep Learning?", Chen et al., arXiv:1912.13200. The digits are
scikit-learn's: 1797 pictures of 8x8 pixels.
"""

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.autograd import Function, gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F

import torchconv
from torchconv.functional import conv_with


def l1(patches: Tensor, weight: Tensor) -> Tensor:
    """Equation (2), Y = -sum |X - F|, whose exact gradient in F is sgn(X - F)."""
    return -(patches.unsqueeze(2) - weight.unsqueeze(-1)).abs().sum(3)


class FullPrecision(Function):
    """The same, with the gradients of section 3.2: X - F for the filters, HardTanh(F - X) for the input.

    They are the exact gradients of another distance each: of half the squared one, and of Huber's.
    """

    @staticmethod
    def forward(patches: Tensor, weight: Tensor) -> Tensor:
        return l1(patches, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        patches, weight = ctx.saved_tensors
        difference = patches.unsqueeze(2) - weight.unsqueeze(-1)  # (N, groups, O / groups, K, P)
        grad = grad.unsqueeze(3)
        return (grad * F.hardtanh(-difference)).sum(2), (grad * difference).sum((0, 4))


def full_precision(patches: Tensor, weight: Tensor) -> Tensor:
    return FullPrecision.apply(patches, weight)


GRADIENTS = {"exact": l1, "paper": full_precision}


class AdderConv2d(torchconv.Conv2d):
    """A convolution layer that measures how far each patch is from each filter."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        gradient: str = "exact",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.distance = GRADIENTS[gradient]
        nn.init.normal_(self.weight)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv_with(self.distance, input, weight, bias, self.stride, self.padding)


def adder_net(gradient: str) -> nn.Sequential:
    """The first and last layers multiply, as in the paper; batch norm centres distances, which are never positive."""
    return nn.Sequential(
        torchconv.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        AdderConv2d(8, 16, 3, stride=2, padding=1, gradient=gradient),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        AdderConv2d(16, 16, 3, padding=1, gradient=gradient),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def adapt_learning_rates(network: nn.Module, eta: float = 0.2) -> None:
    """Section 3.3: the gradient of a layer of k weights is scaled by eta sqrt(k) / its norm; eta is the authors'."""
    for layer in network.modules():
        if isinstance(layer, AdderConv2d) and layer.weight.grad is not None:
            gradient = layer.weight.grad
            gradient.mul_(eta * gradient.numel() ** 0.5 / gradient.norm().clamp_min(1e-12))


def check_gradients() -> None:
    """The exact layer's derivatives against finite differences."""
    layer = AdderConv2d(2, 3, 3, stride=2, padding=1).double()
    operands = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True), layer.weight
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x, w: functional_call(layer, {"weight": w}, x), operands)
        print(f"{check.__name__}: passed")


def train(gradient: str, images: Tensor, labels: Tensor, steps: int) -> None:
    """Learn from the first 1500 digits, answer for the others."""
    torch.manual_seed(0)
    network = adder_net(gradient)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        batch = torch.randint(1500, (64,))
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        if gradient == "paper":
            adapt_learning_rates(network)
        optimizer.step()
        schedule.step()
        if step in (1, steps) or step % 20 == 0:
            print(f"{gradient} gradient, step {step}: loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        right = network.eval()(images[1500:]).argmax(1) == labels[1500:]
    print(f"{gradient} gradient: {right.double().mean().item():.1%} of {len(right)} unseen digits are right")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train an AdderNet on handwritten digits.")
    parser.add_argument("--steps", type=int, default=60, help="batches of 64 digits (%(default)s)")
    parser.add_argument("--gradients", nargs="+", choices=GRADIENTS, default=list(GRADIENTS), help="(both)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    check_gradients()
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    for gradient in options.gradients:
        train(gradient, images, torch.tensor(digits.target)[order], options.steps)


if __name__ == "__main__":
    main()
