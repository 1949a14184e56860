"""torch.compile and torch.export on converted models and on single functions: one graph for all sizes, equal to eager."""

import copy
import io
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import torchconv
from tests.grid import compiled_only, filled, relative_error
from torchconv import functional as F
from torchconv.convert import convert

pytestmark = pytest.mark.filterwarnings("default")  # torch's own, while it compiles


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def run(model: nn.Module, call: Callable[[Tensor], Tensor], input: Tensor) -> dict[str, Tensor]:
    """The output of `call`, the gradients of `model`'s parameters, and its buffers after that."""
    model.zero_grad()
    output = call(input)
    output.square().mean().backward()
    gradients = {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **gradients, **{name: b.double() for name, b in model.named_buffers()}}


def assert_trains_as_eager(model: nn.Module, inputs: list[Tensor], tolerance: float, **options: Any) -> None:
    """Forward and backward in one graph, the same for all inputs, with the numbers of the same model in eager mode."""
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, **options)
    for i, input in enumerate(inputs):
        with torch.compiler.set_stance("default" if i == 0 else "fail_on_recompile"):
            actual = run(model, compiled, input)
        expected = run(eager, eager, input)
        assert actual.keys() == expected.keys()
        errors = {name: relative_error(actual[name], expected[name]) for name in expected}
        assert max(errors.values()) <= tolerance, errors
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
def test_resnet18_trains_in_one_graph(torchvision_models: ModuleType) -> None:
    torch.manual_seed(0)
    model = convert(torchvision_models.resnet18()).double()
    assert_trains_as_eager(model, [filled((2, 3, 64, 48)), filled((3, 3, 64, 48))], 1e-9, backend="aot_eager")


@pytest.mark.slow
def test_a_residual_network_trains_on_inductors_kernels(torchvision_models: ModuleType) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),  # 32 channels: Winograd's algorithm
        nn.MaxPool2d(2),
        torchvision_models.resnet.BasicBlock(32, 32),
        nn.ConvTranspose2d(32, 3, 2, stride=2),
    )
    images = [filled((batch, 3, 16, 12), torch.float32) for batch in (2, 3)]
    assert_trains_as_eager(convert(model), images, 1e-5)
