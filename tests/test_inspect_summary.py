"""The table of a model: held to torchinfo's where both count the same, and to numbers counted by hand."""

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torchinfo
import torchsummary
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

import torchconv
from torchconv import models
from torchconv.inspect import ReceptiveField, memory, summary

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LeNet5": (models.LeNet5, (1, 28, 28)),
    "ModernLeNet5": (models.ModernLeNet5, (1, 28, 28)),
    "SimpleConvNet": (models.SimpleConvNet, (1, 28, 28)),
    "alexnet": (lambda: models.alexnet(num_classes=10), (3, 224, 224)),
    "AlexNet2012": (lambda: models.AlexNet2012(num_classes=10), (3, 227, 227)),
    "vgg11_bn": (lambda: models.vgg11(num_classes=10, batch_norm=True), (3, 32, 32)),
}
every_model = pytest.mark.parametrize("name", MODELS)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def assert_agrees_with_torchinfo(model: nn.Module, size: tuple[int, ...]) -> None:
    ours, theirs = summary(model.eval(), size), torchinfo.summary(model, size, device="meta", verbose=0)
    assert ours.parameters == theirs.total_params
    assert ours.trainable == theirs.trainable_params
    leaves = [info for info in theirs.summary_list if info.is_leaf_layer]
    rows = [row for row in ours.rows if not any(other.name.startswith(f"{row.name}.") for other in ours.rows)]
    rows = [row for row in rows if row.name]
    assert [row.type for row in rows] == [info.class_name for info in leaves]
    assert [list(row.output or ()) for row in rows] == [info.output_size for info in leaves]
    for row, info in zip(rows, leaves, strict=True):
        layer = model.get_submodule(row.name)
        if type(layer) in (torchconv.Conv2d, nn.Conv2d, nn.Linear):
            assert row.parameters == (0 if info.is_recursive else info.param_bytes // 4)
            # torchinfo counts the addition of a bias as one more multiplication.
            biases = 0 if layer.bias is None else torch.Size(row.output or ()).numel()
            assert row.multiply_adds == info.macs - biases


@every_model
def test_agrees_with_torchinfo(name: str) -> None:
    make, size = MODELS[name]
    assert_agrees_with_torchinfo(on_meta(make), (2, *size))


def test_agrees_with_torchinfo_on_networks_with_branches(torchvision_models: ModuleType) -> None:
    resnet = on_meta(torchvision_models.resnet18)
    assert_agrees_with_torchinfo(torchconv.convert(resnet), (1, 3, 64, 64))


@every_model
def test_torchsummary_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, size = MODELS[name]
    model = make()
    torchsummary.summary(model, size, device="cpu")
    assert "Total params: " in capsys.readouterr().out


# By hand


def block(library: Any = torchconv) -> nn.Sequential:
    return nn.Sequential(
        *(library.Conv2d(2, 6, (3, 5), padding=(1, 2), groups=2), nn.ReLU(), library.MaxPool2d(2)),
        *(nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 4 * 5, 3, bias=False)),
    )


@pytest.mark.parametrize("library", [torchconv, nn], ids=["torchconv", "torch.nn"])
def test_rows_of_a_small_network(library: Any) -> None:
    result = summary(block(library), (4, 2, 8, 10))
    conv, relu, pool, norm, flatten, linear = result.rows
    assert [row.name for row in result.rows] == list("012345")
    assert (conv.type, conv.output, conv.kernel) == ("Conv2d", (4, 6, 8, 10), (3, 5))
    assert conv.parameters == 6 * 15 + 6
    assert conv.multiply_adds == 4 * 6 * 80 * 15
    assert conv.receptive_field == relu.receptive_field == ReceptiveField((3, 5), (1, 1), (1, 2))
    assert pool.receptive_field == norm.receptive_field == ReceptiveField((4, 6), (2, 2), (1, 2))
    assert (pool.kernel, pool.parameters, pool.multiply_adds) == ((2, 2), 0, 0)
    assert norm.parameters == 12
    assert (flatten.output, flatten.receptive_field) == ((4, 120), None)
    assert (linear.parameters, linear.multiply_adds) == (360, 4 * 360)
    assert result.parameters == result.trainable == 96 + 12 + 360
    assert conv.share == 96 / 468
    assert {row.name: row.saved for row in result.rows if row.saved} == dict(
        memory(block(library), (4, 2, 8, 10)).layers
    )
    assert result.milliseconds is None


def test_a_fused_layer_counts_as_its_pieces() -> None:
    fused = summary(torchconv.ConvReLUPool2d(3, 8, 3, padding=1), (1, 3, 16, 16)).rows[0]
    pieces = summary(nn.Sequential(torchconv.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)), (1, 3, 16, 16))
    assert (fused.type, fused.output) == ("ConvReLUPool2d", (1, 8, 8, 8))
    assert (fused.parameters, fused.multiply_adds) == (pieces.parameters, pieces.multiply_adds)
    assert fused.receptive_field == pieces.rows[-1].receptive_field
    assert fused.saved < pieces.saved


def test_shared_parameters_count_once() -> None:
    conv, tied = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    tied.weight = conv.weight
    result = summary(nn.Sequential(conv, conv, tied), (1, 4, 8, 8))
    assert [row.name for row in result.rows] == ["0", "0", "2"]
    assert [row.parameters for row in result.rows] == [148, 0, 4]
    assert result.parameters == 152
    assert result.multiply_adds == 3 * 144 * 64
    # The second run sees more than the first.
    assert [row.receptive_field.size for row in result.rows if row.receptive_field] == [(3, 3), (5, 5), (7, 7)]


def test_what_a_module_does_beside_its_layers_has_a_row() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5, 7))
            self.linear = nn.Linear(3, 5)
            self.unused = nn.Linear(100, 100)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) @ self.scale

    result = summary(Scaled(), (2, 3))
    assert [(row.name, row.parameters, row.multiply_adds) for row in result.rows] == [("linear", 20, 30), ("", 35, 70)]
    assert result.parameters == 20 + 35 + 10_100
    assert "(the model itself)" in str(result)


def test_vgg19_and_the_share_of_its_affine_layers() -> None:
    result = summary(on_meta(models.vgg19), (1, 3, 224, 224))
    assert result.parameters == 143_667_240
    affine = [row for row in result.rows if row.type == "Linear"]
    assert sum(row.parameters for row in affine) == 123_642_856
    assert sum(row.share for row in affine) == pytest.approx(0.8606, abs=1e-4)
    # 19.6 billion: what torchvision gives as the GFLOPS of these weights.
    assert result.multiply_adds / 1e9 == pytest.approx(19.63, abs=0.01)


# The table


def test_the_table_is_aligned_and_leaves_empty_columns_out() -> None:
    result = summary(block(), (4, 2, 8, 10))
    header, rule, *rows = str(result).splitlines()
    assert header.split() == [
        *("Layer", "Type", "Output", "Kernel", "Parameters", "Share", "Multiply-adds", "Saved", "kB"),
        *("Sees", "Stride", "Padding", "Centre"),
    ]
    assert len(header) == len(rule) >= max(map(len, rows[:6]))
    assert rows[0].split()[:8] == ["0", "Conv2d", "(4,", "6,", "8,", "10)", "3×5", "96"]
    for row, kernel in ((rows[0], "3×5"), (rows[2], "2")):
        assert row[: header.index("Kernel") + len("Kernel")].endswith(kernel)
    assert rows[-3] == "Parameters:     468, of which 468 are trainable"
    assert "Sees" not in str(summary(nn.Linear(2, 2), (1, 2)))


# Time, and what is not touched


def test_milliseconds_are_each_layers_own() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(600, 600), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(20):
                x = self.inner[0](x)
            return self.inner(x) @ torch.ones(600, 1)

    result = summary(Slow(), (600, 600), milliseconds=True)
    assert [row.name for row in result.rows] == ["inner.0"] * 21 + ["inner.1", ""]
    linear, relu, itself = result.rows[0], result.rows[21], result.rows[22]
    assert linear.milliseconds is not None
    assert relu.milliseconds is not None
    assert itself.milliseconds is not None
    # 20 matrix products of their own against one with a vector: what is inside of a module isn't its own.
    assert itself.milliseconds < linear.milliseconds * 10
    assert result.milliseconds == sum(row.milliseconds or 0 for row in result.rows)
    assert "ms" in str(result).splitlines()[0]


@pytest.mark.parametrize("milliseconds", [False, True])
def test_nothing_changes(milliseconds: bool) -> None:
    model = block().append(nn.Dropout())
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    summary(model, (4, 2, 8, 10), milliseconds=milliseconds)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not _has_any_global_hook()


def test_clear_errors() -> None:
    with pytest.raises(ValueError, match=r"1.weight: has no shape before the model has run once"):
        summary(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), (1, 3, 3))
    with pytest.raises(ValueError, match="milliseconds=True: expected a model with data"):
        summary(on_meta(lambda: nn.Linear(2, 2)), (1, 2), milliseconds=True)
    with pytest.raises(RuntimeError):
        summary(nn.Linear(2, 2), (1, 3))
