"""The memory of a step, predicted: held to what processes really grow by, and to what is really saved for backward."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from grid import compiled_only
from networks import every_layer, images, lenet, single
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import torchconv
from torchconv.inspect import memory
from torchconv.inspect.memory import HEAPS_LARGEST
from torchconv.inspect.scratch import KEPT, SMALLEST, Blocks

WORKER = Path(__file__).parent / "memory_worker.py"
SIZES = {"vgg19": (384, 512, 768), "resnet18": (128, 224, 384), "lenet": (2048, 8192, 16384)}

both_libraries = pytest.mark.parametrize("library", [torchconv, nn], ids=["torchconv", "torch.nn"])


def block(library: Any) -> nn.Sequential:
    """Layers that save an input, an output, positions, statistics and nothing."""
    return nn.Sequential(
        *(library.Conv2d(3, 8, 3, padding=1), nn.ReLU(), library.MaxPool2d(2), library.Conv2d(8, 8, 3, padding=1)),
        *(nn.BatchNorm2d(8), nn.ReLU(inplace=True), library.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


def saved(model: nn.Module, input: Tensor) -> int:
    """The bytes that a real step saves, apart from the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # alive, so that no two share an address

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input)
    if output.requires_grad:
        output.sum().backward()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


# Against real steps


@pytest.mark.exhaustive
@compiled_only
@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's account of a process")
@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_a_process_grows_as_predicted(name: str, size: int) -> None:
    # By default glibc's heap keeps what is freed in pieces that nothing fits, a different amount in each run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(HEAPS_LARGEST)}
    command = [sys.executable, str(WORKER), name, str(size)]
    worker = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert worker.returncode == 0, worker.stderr
    predicted, measured = json.loads(worker.stdout)
    assert measured > 50e6
    assert abs(predicted / measured - 1) < 0.15, f"predicted {predicted / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB"


@both_libraries
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_as_much_is_saved_as_a_real_step_saves(library: Any, frozen: bool, needs_grad: bool, training: bool) -> None:
    model = block(library).requires_grad_(not frozen).train(training)
    input = torch.rand(2, 3, 16, 12, requires_grad=needs_grad)
    predicted = memory(model, input).saved
    assert predicted == saved(model, input)
    assert (predicted == 0) == (frozen and not needs_grad)


@both_libraries
@every_layer
def test_as_much_is_saved_by_each_layer_as_a_real_step_saves(name: str, library: Any) -> None:
    model, input = single(name, library), images().requires_grad_()
    assert memory(model, input).saved == saved(model, input)


@both_libraries
def test_as_much_is_saved_at_another_batch_dtype_and_layout(library: Any) -> None:
    model = lenet(library).double().to(memory_format=torch.channels_last)
    input = torch.rand(5, 1, 28, 28, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert memory(model, input).saved == memory(model, (5, 1, 28, 28)).saved == saved(model, input)


# What is counted


def test_each_layer_is_charged_what_it_saves_first() -> None:
    model = block(torchconv)
    pixels, pooled = 2 * 16 * 12, 2 * 8 * 6
    result = memory(model, (2, 3, 16, 12))
    assert result.layers == {
        "0": 4 * 3 * pixels,  # the input
        "1": 4 * 8 * pixels,  # the output
        "2": 8 * pooled,  # a byte per window
        "3": 4 * 8 * pooled,
        "4": 4 * (8 * pooled + 8 + 8),  # the input, mean and deviation
        "5": 4 * 8 * pooled,
        "8": 4 * 2 * 8,
    }
    assert result.saved == sum(result.layers.values())
    assert memory(nn.ModuleDict({"inner": model})["inner"], (2, 3, 16, 12)) == result


def test_a_linear_layer_by_hand() -> None:
    result = memory(nn.Linear(1000, 500), (30, 1000), requires_grad=True)
    weights, rows = 4 * (1000 * 500 + 500), 4 * 30
    assert result.saved == result.layers[""] == rows * 1000
    assert result.parameters == weights
    assert result.gradients == weights + rows * 1000
    # The output outlives the step's backward pass, whose sum and its gradient are a number each.
    assert result.peak == result.gradients + rows * 500 + 8


def test_without_gradients_nothing_is_saved() -> None:
    model = block(torchconv)
    with torch.no_grad():
        result = memory(model, (2, 3, 16, 12), requires_grad=True)
    assert result.saved == result.gradients == 0
    assert 0 < result.peak <= memory(model, (2, 3, 16, 12)).peak


def test_gradients_that_are_there_count_as_before_the_step() -> None:
    model = nn.Linear(1000, 1000)
    first = memory(model, (1, 1000))
    model(torch.rand(1, 1000)).sum().backward()
    second = memory(model, (1, 1000))
    assert second.gradients == first.gradients
    assert second.peak == first.peak  # the new one is added to the old one


def test_tensors_in_several_places_count_once() -> None:
    conv, tied = torchconv.Conv2d(4, 4, 3, padding=1), torchconv.Conv2d(4, 4, 3, padding=1, bias=False)
    tied.weight = conv.weight
    result = memory(nn.Sequential(conv, tied, conv), (1, 4, 8, 8))
    assert result.parameters == result.gradients == 4 * (4 * 4 * 9 + 4)
    assert set(result.layers) == {"0", "1"}


def test_gradients_that_meet_are_added_in_place() -> None:
    class Meeting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = 2 * x
            return (3 * x).sum() + (5 * x).sum()

    result = memory(Meeting(), (1_000_000,), requires_grad=True)
    assert result.saved == 0
    assert 2 <= result.peak / 4e6 < 2.1  # two gradients, no third


def test_checkpoints_save_less_and_lower_the_peak() -> None:
    model = nn.Sequential(*(part for _ in range(8) for part in (torchconv.Conv2d(8, 8, 3, padding=1), nn.Sigmoid())))

    def step(input: Tensor) -> None:
        output: Any = input
        for begin in range(0, 16, 4):
            output = checkpoint(model[begin : begin + 4], output, use_reentrant=False)
        output.sum().backward()

    whole = memory(model, (4, 8, 64, 64), requires_grad=True)
    recomputed = memory(model, (4, 8, 64, 64), requires_grad=True, step=step)
    assert recomputed.saved < whole.saved
    assert recomputed.peak < whole.peak


def test_a_step_of_ones_own() -> None:
    model, target = nn.Linear(10, 10), torch.zeros(10)

    def step(first: Tensor, second: Tensor) -> None:
        (model(first) - target).square().mean().backward()
        model(second)

    result = memory(model, ((3, 10), (4, 10)), step=step)
    assert (
        result.saved == memory(model, (3, 10)).saved + 4 * 3 * 10 + 4 * 4 * 10
    )  # the difference, and the second input


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
            return {"squares": [a.square(), b.square()], "count": 2}

    result = memory(Two(), ((10,), torch.rand(20, requires_grad=True)), requires_grad=True)
    assert result.saved == result.gradients == 4 * (10 + 20)


# What is not touched


def test_nothing_is_computed_and_nothing_changes() -> None:
    model = block(torchconv).append(nn.Dropout())
    model.append(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    before = copy.deepcopy(model.state_dict())
    tensors = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    input = torch.rand(2, 3, 16, 12, requires_grad=True)
    random = torch.random.get_rng_state()
    assert memory(model, input).peak > 0
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == tensors
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(tensor.grad is None for tensor in (input, *model.parameters()))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert memory(torchconv.Conv2d(3, 64, 3), (1000, 3, 10_000, 10_000)).peak > 2e13  # no machine has that


@pytest.mark.parametrize("fails", [False, True])
def test_modules_in_several_places_keep_their_parameters(fails: bool) -> None:
    conv = torchconv.Conv2d(4, 4, 3, padding=1)
    model, weight = nn.Sequential(conv, conv), conv.weight
    size = (1, 5 if fails else 4, 8, 8)
    if fails:
        with pytest.raises(RuntimeError, match="channels"):
            memory(model, size)
    else:
        memory(model, size)
    assert conv.weight is weight
    assert conv.weight.grad is None
    assert conv(torch.rand(1, 4, 8, 8)).shape == (1, 4, 8, 8)  # and no hook is left


def test_steps_that_cannot_be_predicted_are_refused() -> None:
    model, weight = nn.Linear(10, 10), torch.ones(7, 10, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"a tensor of shape \(7, 10\) that requires a gradient"):
        memory(model, (7, 10), step=lambda input: (model(input) * weight).sum().backward())
    assert weight.grad is None
    with pytest.raises(RuntimeError, match="local_scalar"):
        memory(model, (7, 10), step=lambda input: model(input).sum().item())


def test_printed_as_a_table_in_megabytes() -> None:
    model = block(torchconv)
    lines = str(memory(model, (20, 3, 160, 120))).splitlines()
    assert lines[0].split() == [
        "saved",
        "for",
        "backward",
        *f"{memory(model, (20, 3, 160, 120)).saved / 1e6:.2f} MB".split(),
    ]
    rows = dict(line.rsplit(maxsplit=2)[:2] for line in lines if line.endswith("MB"))
    assert rows["0"] == "4.61"
    assert rows["1"] == "12.29"
    assert len({len(line) for line in lines if line.endswith("MB")}) == 1


# What the kernels work in


@compiled_only
def test_layouts_that_the_kernels_transpose_cost_their_copies() -> None:
    model, size = torchconv.Conv2d(64, 64, 3, padding=1, bias=False).requires_grad_(False), (1, 64, 200, 200)
    input = torch.empty(size)
    with torch.no_grad():
        contiguous = memory(model, input).peak
        channels_last = memory(model, input.to(memory_format=torch.channels_last)).peak
    assert contiguous - channels_last == pytest.approx(2 * 4 * input.numel(), abs=2 * 2**21)


def test_large_blocks_are_kept_and_lent_again() -> None:
    blocks = Blocks()
    blocks.give(blocks.take(1000))
    assert blocks.kept == 0  # too small
    block = blocks.take(SMALLEST + 1)
    assert SMALLEST < block < 2 * SMALLEST
    blocks.give(block)
    assert blocks.kept == block
    assert blocks.take(SMALLEST) == SMALLEST
    assert blocks.kept == block - SMALLEST
    assert blocks.take(4 * SMALLEST) == 4 * SMALLEST
    assert blocks.kept == 0  # given back before more is asked for
    for _ in range(20 * KEPT // SMALLEST):
        blocks.give(SMALLEST)
        assert blocks.kept <= KEPT
