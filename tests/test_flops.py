"""What tools count of a converted model: FLOPs, multiply-adds, parameters and shapes, as they count torch.nn's."""

import copy
from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
import torchinfo
import torchsummary
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchconv
from torchconv import _extension
from torchconv.convert import convert

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.Conv1d(4, 6, 5, padding=2),
    "1d_transposed": lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1),
    "2d": lambda: nn.Conv2d(4, 6, 3),
    "2d_padded": lambda: nn.Conv2d(4, 6, (3, 4), padding=(1, 2), bias=False),
    "2d_same": lambda: nn.Conv2d(4, 6, (3, 5), padding="same"),
    "2d_strided": lambda: nn.Conv2d(4, 6, 3, stride=(2, 3)),
    "2d_dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2),
    "2d_transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1),
    "3d": lambda: nn.Conv3d(4, 6, (1, 2, 3), padding=1),
    "3d_transposed": lambda: nn.ConvTranspose3d(4, 6, 2, stride=2),
}
GROUPED: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.Conv1d(4, 6, 5, groups=2),
    "2d": lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2),
    "2d_depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "2d_transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
    "3d_depthwise": lambda: nn.Conv3d(4, 4, 2, groups=4),
    "3d_transposed": lambda: nn.ConvTranspose3d(4, 6, 2, groups=2),
}
ALGORITHMS = ("auto", "reference") if _extension.LOADED else ("reference",)


def image(layer: Any) -> Tensor:
    return torch.randn(2, 4, *(9, 8, 7)[: len(layer.kernel_size)])


def flops(model: nn.Module, input: Tensor) -> tuple[int, int]:
    """Of a forward pass, and of a backward pass to the input and all parameters."""
    with FlopCounterMode(display=False) as forward:
        output = model(input.requires_grad_())
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def converted(model: nn.Module) -> nn.Module:
    return convert(copy.deepcopy(model))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", LAYERS)
def test_flops_are_those_of_torch(name: str, algorithm: str) -> None:
    layer = LAYERS[name]()
    expected = flops(layer, image(layer))
    assert min(expected) > 0
    with torchconv.algorithm(algorithm):
        assert flops(converted(layer), image(layer)) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", GROUPED)
def test_flops_of_groups_are_those_of_torch(name: str, algorithm: str) -> None:
    layer: Any = GROUPED[name]()
    forward, backward = flops(layer, image(layer))
    if algorithm == "reference":
        # torch counts the weight's gradient as if there was one group; matrix products are counted as they are.
        assert backward == forward * (1 + layer.groups)
        backward = 2 * forward
    with torchconv.algorithm(algorithm):
        assert flops(converted(layer), image(layer)) == (forward, backward)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_flops_leave_out_gradients_that_nobody_asked_for(algorithm: str) -> None:
    layer, x = nn.Conv2d(4, 6, 3), torch.randn(2, 4, 9, 8)
    layer.weight.requires_grad_(False)
    expected = flops(layer, x)
    assert expected[0] == expected[1]
    with torchconv.algorithm(algorithm):
        assert flops(converted(layer), x) == expected


class Net(nn.Module):
    """Layers of every kind that a summary lists, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False),
            nn.Conv2d(8, 12, 1),
            nn.ConvTranspose2d(12, 6, 2, stride=2),
        )
        self.line = nn.Sequential(nn.Conv1d(6, 4, 3), nn.MaxPool1d(2), nn.Linear(17, 3))

    def forward(self, input: Tensor) -> Tensor:
        return self.line(self.features(input).flatten(2))


def test_flops_of_a_model_are_listed_by_module() -> None:
    def by_module(model: nn.Module) -> dict[str, int]:
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(2, 3, 14, 14))
        return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}

    model = Net()
    expected = by_module(model)
    assert len(expected) == 10  # all of it, the model, two sequences and the six layers that multiply
    assert by_module(converted(model)) == expected


def test_torchinfo_summarises_a_converted_model_as_before() -> None:
    def summary(model: nn.Module) -> torchinfo.ModelStatistics:
        return torchinfo.summary(model, (2, 3, 14, 14), verbose=0, depth=3)

    model = Net()
    expected, actual = summary(model), summary(converted(model))
    assert expected.total_mult_adds > 0
    assert actual.total_params == expected.total_params == sum(prod(p.shape) for p in model.parameters())
    assert actual.total_mult_adds == expected.total_mult_adds
    assert str(actual) == str(expected)


def test_torchsummary_prints_a_converted_model_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    def summary(model: nn.Module) -> str:
        torchsummary.summary(model, (3, 14, 14), device="cpu")
        return capsys.readouterr().out

    model = Net()
    expected = summary(model)
    assert "ConvTranspose2d-6" in expected
    assert summary(converted(model)) == expected
