"""torch.compile and torch.export on converted models and single functions: one graph for all sizes, equal to eager."""

import copy
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from grid import compiled_only, filled, relative_error
from networks import network
from torch import Tensor, nn
from torch._dynamo.utils import counters

import torchconv
from torchconv import _extension
from torchconv import functional as F
from torchconv.convert import convert

pytestmark = pytest.mark.filterwarnings("default")  # torch's own, while it compiles


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def pictures(*size: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Of a size, of the same in another batch, and of another size.

    The last only for the compiled ops: plain PyTorch unrolls its loops over windows, as many as there are in the first.
    """
    sizes = [size, (size[0] + 1, *size[1:])]
    if _extension.LOADED:
        sizes.append((*size[:2], *(n + 4 * i + 2 for i, n in enumerate(size[2:]))))
    return [filled(size, dtype) for size in sizes]


def run(model: nn.Module, call: Callable[[Tensor], Tensor], input: Tensor) -> dict[str, Tensor]:
    """The output of `call`, the gradients in its input and `model`'s parameters, and `model`'s buffers after that."""
    model.zero_grad()
    input = input.detach().requires_grad_()
    output = call(input)
    output.square().mean().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in [("input", input), *model.named_parameters()]}
    return {"output": output, **gradients, **{name: buffer.double() for name, buffer in model.named_buffers()}}


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
@compiled_only  # plain PyTorch unrolls every window: minutes of tracing for what the networks below show in less
def test_resnet18_trains_in_one_graph(torchvision_models: ModuleType) -> None:
    torch.manual_seed(0)
    model = convert(torchvision_models.resnet18()).double()
    assert_trains_as_eager(model, pictures(2, 3, 64, 48)[:2], 1e-9, backend="aot_eager")


@pytest.mark.slow
def test_a_residual_network_trains_on_inductors_kernels(torchvision_models: ModuleType) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),  # 32 channels: Winograd's algorithm
        nn.MaxPool2d(2),
        torchvision_models.resnet.BasicBlock(32, 32),
        nn.ConvTranspose2d(32, 3, 2, stride=2),
    )
    # Inductor itself makes other kernels for large pictures.
    assert_trains_as_eager(convert(model), pictures(2, 3, 16, 12, dtype=torch.float32)[:2], 1e-5)


class Call(nn.Module):
    """A function of an image, and of a weight where it takes one."""

    def __init__(self, function: Callable[..., Tensor], *weight: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(filled(weight, seed=1)) if weight else None

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input) if self.weight is None else self.function(input, self.weight)


def unpooled(input: Tensor) -> Tensor:
    output, indices = F.max_pool2d(input, 2, return_indices=True)
    return F.max_unpool2d(output, indices, 2, output_size=input.shape[2:])


CALLS: dict[str, tuple[Any, ...]] = {
    "conv1d": (1, partial(F.conv1d, stride=2, padding=1), 4, 3, 3),
    "conv2d": (2, partial(F.conv2d, stride=2, padding=1), 4, 3, 3, 2),
    "conv2d, same": (2, partial(F.conv2d, padding="same", dilation=2), 4, 3, 3, 2),
    "conv2d, grouped": (2, partial(F.conv2d, groups=3), 6, 1, 3, 3),
    "conv3d": (3, partial(F.conv3d, padding=1), 4, 3, 3, 2, 1),
    "conv_transpose1d": (1, partial(F.conv_transpose1d, stride=2, output_padding=1), 3, 4, 3),
    "conv_transpose2d": (2, partial(F.conv_transpose2d, stride=2, padding=1), 3, 4, 3, 3),
    "conv_transpose3d": (3, partial(F.conv_transpose3d, stride=2), 3, 4, 2, 2, 2),
    "max_pool1d": (1, partial(F.max_pool1d, kernel_size=3, stride=2, padding=1)),
    "max_pool2d": (2, partial(F.max_pool2d, kernel_size=2, ceil_mode=True)),
    "max_pool3d": (3, partial(F.max_pool3d, kernel_size=2)),
    "max_unpool2d": (2, unpooled),
    "avg_pool1d": (1, partial(F.avg_pool1d, kernel_size=2)),
    "avg_pool2d": (2, partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1, count_include_pad=False)),
    "avg_pool2d, ceil": (2, partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1, ceil_mode=True)),
    "avg_pool3d": (3, partial(F.avg_pool3d, kernel_size=2)),
    "lp_pool1d": (1, partial(F.lp_pool1d, norm_type=2, kernel_size=2)),
    "lp_pool2d": (2, partial(F.lp_pool2d, norm_type=2, kernel_size=2)),
    "lp_pool3d": (3, partial(F.lp_pool3d, norm_type=2, kernel_size=2)),
    "adaptive_avg_pool1d": (1, partial(F.adaptive_avg_pool1d, output_size=4)),
    "adaptive_avg_pool2d": (2, partial(F.adaptive_avg_pool2d, output_size=4)),
    "adaptive_avg_pool3d": (3, partial(F.adaptive_avg_pool3d, output_size=4)),
    "adaptive_max_pool1d": (1, partial(F.adaptive_max_pool1d, output_size=4)),
    "adaptive_max_pool2d": (2, partial(F.adaptive_max_pool2d, output_size=(4, 1))),
    "adaptive_max_pool3d": (3, partial(F.adaptive_max_pool3d, output_size=4)),
    "local_response_norm": (2, partial(F.local_response_norm, size=2)),
    "unfold": (2, partial(F.unfold, kernel_size=3, padding=1, stride=2)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_function_compiles_once_for_all_sizes(name: str) -> None:
    rank, function, *weight = CALLS[name]
    images = pictures(*(2, 3, 11, 9, 8)[: rank + 2])
    assert_trains_as_eager(Call(function, *weight), images, 1e-9, backend="aot_eager")


@pytest.mark.slow
def test_a_network_of_every_layer_compiles_once_for_all_sizes() -> None:
    assert_trains_as_eager(network(torchconv), pictures(2, 4, 12, 10), 1e-9, backend="aot_eager")


@pytest.mark.parametrize("strict", [False, True], ids=["traced by tensors", "traced by Dynamo"])
@pytest.mark.parametrize(
    "dynamic",
    [
        {0: torch.export.Dim("batch")},
        pytest.param(dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC), marks=compiled_only),
    ],
    ids=["batch", "batch, height and width"],
)
def test_an_exported_program_runs_on_all_sizes(dynamic: dict[int, Any], strict: bool) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.AvgPool2d(3, 2, 1)),
        *(nn.ConvTranspose2d(8, 4, 2, stride=2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
    )
    convert(model.double().eval())
    images = pictures(2, 3, 14, 12)[: 3 if 2 in dynamic else 2]
    program = torch.export.export(model, (images[0],), dynamic_shapes=(dynamic,), strict=strict)
    torch.export.save(program, file := io.BytesIO())
    file.seek(0)
    program = torch.export.load(file)
    for image in images:
        torch.testing.assert_close(program.module()(image), model(image))
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    calls = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}
    assert not [call for call in calls if re.match("aten.*(conv|pool)", call)]
    if _extension.LOADED:
        assert {f"torchconv.{op}.default" for op in ("conv", "conv_input", "max_pool", "avg_pool")} <= calls
