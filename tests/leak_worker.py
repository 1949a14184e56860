"""200 steps in a process of its own: prints its resident bytes after the first 40 and at the end, and both peaks.

python tests/leak_worker.py train|style|fail|layer
"""

import sys
from collections.abc import Callable
from itertools import count

import torch
from memory_worker import give_back, resident
from networks import lenet
from torch import Tensor, nn

import torchconv
from torchconv.style import StyleObjective

SETTLE, STEPS = 40, 200


class Broken(torch.autograd.Function):
    """A layer whose backward pass fails."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad_output: Tensor) -> Tensor:
        raise ArithmeticError


def train() -> Callable[[], None]:
    """Forward and backward through all parameters of a fused LeNet."""
    model, inputs = torchconv.convert(lenet(nn), fuse=True), torch.randn(64, 1, 28, 28)
    return lambda: model(inputs).sum().backward()


def fail() -> Callable[[], None]:
    """A step that fails: in turn a layer refuses its input, and a backward pass stops half-way."""
    inputs, turns = torch.randn(64, 1, 28, 28), count()
    first, last = torchconv.ConvReLU2d(1, 32, 3), torchconv.ConvReLUPool2d(32, 32, 3)

    def step() -> None:
        hidden = first(inputs)
        hidden = Broken.apply(hidden) if next(turns) % 2 else hidden[:, :5]  # too few channels
        try:
            last(hidden).sum().backward()
        except (ArithmeticError, RuntimeError, ValueError):
            return
        raise AssertionError("nothing failed")

    return step


def style() -> Callable[[], None]:
    """Losses and gradient of a picture, in tiles."""
    network = torchconv.models.vgg_features("vgg11", layers=["relu1_1", "relu2_1"], weights=None)
    picture = torch.rand(1, 3, 48, 64)
    objective = StyleObjective(
        network, picture, [picture], content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"], tile=32
    )

    def step() -> None:
        variable = picture.clone().requires_grad_()
        objective(variable).total.backward()

    return step


def layer() -> Callable[[], None]:
    """A layer called many times, whose results and working memory are the heap's: what is freed must fit again."""
    conv, inputs = torchconv.Conv2d(64, 384, 1), torch.randn(1, 64, 14, 14).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.no_grad():
            for _ in range(150):
                conv(inputs)

    return step


def main() -> None:
    step = {"train": train, "style": style, "fail": fail, "layer": layer}[sys.argv[1]]()
    for _ in range(SETTLE):
        step()
    most = resident("VmHWM")
    give_back()
    settled = resident("VmRSS")
    for _ in range(STEPS):
        step()
    most_at_the_end = resident("VmHWM")
    give_back()
    print(settled, resident("VmRSS"), most, most_at_the_end)


if __name__ == "__main__":
    main()
