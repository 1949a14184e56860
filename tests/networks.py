"""Every layer of torch.nn or of torchconv, alone and in networks, and what a training step computes of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from grid import filled, relative_error
from torch import Tensor, nn

import torchconv


class PoolAndUnpool(nn.Module):
    def __init__(self, library: Any) -> None:
        super().__init__()
        self.pool, self.unpool = library.MaxPool2d(2, return_indices=True), library.MaxUnpool2d(2)

    def forward(self, input: Tensor) -> Tensor:
        return self.unpool(*self.pool(input))


# Of torch.nn or of torchconv; each takes (N, 4, H, W), and all in a row may follow each other.
LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "Conv2d": lambda library: library.Conv2d(4, 4, 3, padding=1),
    "Conv2d, in groups": lambda library: library.Conv2d(4, 4, 3, padding=1, groups=2),
    "Conv2d, reflected": lambda library: library.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "ConvTranspose2d": lambda library: library.ConvTranspose2d(4, 4, 3, stride=2, padding=1),
    "MaxPool2d": lambda library: library.MaxPool2d(3, 2, 1),
    "MaxUnpool2d": PoolAndUnpool,
    "AvgPool2d": lambda library: library.AvgPool2d(3, 1, 1),
    "AdaptiveAvgPool2d": lambda library: library.AdaptiveAvgPool2d((6, 5)),
    "AdaptiveMaxPool2d": lambda library: library.AdaptiveMaxPool2d((5, 6)),
    "LPPool2d": lambda library: library.LPPool2d(2, 2, 1),
    "LocalResponseNorm": lambda library: library.LocalResponseNorm(2),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def network(library: Any) -> nn.Sequential:
    """Every layer, each after a nonlinearity that lets no tie between values through."""
    torch.manual_seed(0)
    layers = [part for layer in LAYERS.values() for part in (layer(library), nn.Softplus())]
    return nn.Sequential(*layers, library.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()


def lenet(library: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(library.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), library.AvgPool2d(2)),
        *(library.Conv2d(6, 16, 5), nn.Sigmoid(), library.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10)),
    )


def single(name: str, library: Any) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[name](library).double()


def images(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return filled(size or (2, 4, 12, 10), dtype)


def gradients(model: nn.Module, input: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """The output, its gradient in the input and in the parameters of `model`."""
    model.zero_grad()
    input = input.detach().requires_grad_()
    output = (call or model)(input)
    output.square().mean().backward()
    return [output.detach(), *(t.grad.clone() for t in (input, *model.parameters()))]


def assert_equal(function: Callable[[Any], list[Tensor]]) -> None:
    """`function` gives the same tensors of torchconv as of torch.nn, each within rounding of float64 as a whole."""
    ours, theirs = function(torchconv), function(nn)
    errors = [relative_error(actual, expected) for actual, expected in zip(ours, theirs, strict=True)]
    assert max(errors) <= 1e-9, errors


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected, strict=True))
