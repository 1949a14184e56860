"""What a GPU asks of operators beside their numbers: streams, graphs, devices, determinism, autocast."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from device import (
    DEVICE,
    GPU,
    captured,
    deterministic,
    gpu_only,
    leaves,
    moved,
    no_synchronization,
    on_the_device,
    synchronize,
)
from grid import filled
from networks import every_layer, network, single
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv
from torchconv import functional

pytestmark = on_the_device


@dataclass(frozen=True)
class Problem:
    """A function of these tensors, small enough for a Jacobian."""

    function: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    multiplies: bool = False  # by cuBLAS, which has other rules

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        return [filled(shape, dtype, seed) for seed, shape in enumerate(self.shapes)]

    def step(self, tensors: list[Tensor]) -> list[Tensor]:
        """The output and the gradients of its sum, each weighed."""
        output = self.function(*tensors)
        weights = torch.arange(output.numel(), device=output.device).remainder(7).view(output.shape).to(output.dtype)
        return [output.detach(), *torch.autograd.grad(output, tensors, weights)]


def unpool(maxima: Tensor) -> Tensor:
    places = torch.arange(maxima.shape[-1] * maxima.shape[-2], device=maxima.device) * 4
    return functional.max_unpool2d(maxima, places.view(maxima.shape[-2:]).expand(maxima.shape), 2)


def conv_problem(rank: int) -> Problem:
    def convolution(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return getattr(functional, f"conv{rank}d")(x, w, b, stride=2, padding=1, groups=2)

    return Problem(convolution, ((1, 4, *(5, 3, 2)[:rank]), (2, 2, *(3, 2, 2)[:rank]), (2,)), True)


def transposed_problem(rank: int) -> Problem:
    def convolution(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return getattr(functional, f"conv_transpose{rank}d")(x, w, b, stride=2, padding=1, groups=2)

    return Problem(convolution, ((1, 4, *(3, 2, 2)[:rank]), (4, 1, *(3, 2, 3)[:rank]), (2,)), True)


def pool_problem(name: str, *arguments: Any, shape: tuple[int, ...] = (2, 3, 5, 4), **more: Any) -> Problem:
    return Problem(lambda x: getattr(functional, name)(x, *arguments, **more), (shape,))


PROBLEMS: dict[str, Problem] = {
    **{f"conv{rank}d": conv_problem(rank) for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": transposed_problem(rank) for rank in (1, 2, 3)},
    "conv2d_1x1": Problem(functional.conv2d, ((2, 3, 2, 3), (2, 3, 1, 1), (2,)), True),
    "conv2d_depthwise": Problem(lambda x, w: functional.conv2d(x, w, None, 1, 1, 1, 3), ((1, 3, 4, 3), (3, 1, 3, 3))),
    "conv_relu2d": Problem(functional.conv_relu2d, ((1, 2, 5, 4), (3, 2, 3, 3), (3,)), True),
    "conv_relu_pool2d": Problem(functional.conv_relu_pool2d, ((1, 2, 6, 5), (3, 2, 3, 2), (3,)), True),
    "max_pool1d": pool_problem("max_pool1d", 3, 2, 1, shape=(2, 3, 7)),
    "max_pool2d": pool_problem("max_pool2d", 3, 2, 1),
    "max_pool3d": pool_problem("max_pool3d", 2, 1, shape=(2, 3, 4, 3, 3)),
    "max_unpool2d": Problem(unpool, ((2, 3, 3, 4),)),
    "avg_pool1d": pool_problem("avg_pool1d", 3, 2, 1, shape=(2, 3, 7)),
    "avg_pool2d": pool_problem("avg_pool2d", 3, 2, 1),
    "avg_pool3d": pool_problem("avg_pool3d", 2, 1, shape=(2, 3, 4, 3, 3)),
    "adaptive_avg_pool2d": pool_problem("adaptive_avg_pool2d", (3, 6)),
    "adaptive_avg_pool3d": pool_problem("adaptive_avg_pool3d", 2, shape=(2, 3, 3, 4, 3)),
    "adaptive_max_pool2d": pool_problem("adaptive_max_pool2d", (3, 2)),
    "adaptive_max_pool3d": pool_problem("adaptive_max_pool3d", 2, shape=(2, 3, 3, 4, 3)),
    "lp_pool2d": Problem(lambda x: functional.lp_pool2d(x.square() + 0.1, 2.0, 2, 1), ((2, 3, 5, 4),)),
    "local_response_norm": pool_problem("local_response_norm", 3),
    "unfold": pool_problem("unfold", 3, 1, 1, 2),
    "fold": pool_problem("fold", (5, 4), (2, 3), 1, 1, 2, shape=(2, 12, 6)),
}
every_problem = pytest.mark.parametrize("name", PROBLEMS)


def assert_same_step(problem: Problem, actual: list[Tensor], tensors: list[Tensor]) -> None:
    exact = problem.step([t.detach().cpu().double().requires_grad_() for t in tensors])
    for mine, theirs in zip(actual, exact, strict=True):
        assert_close(mine.cpu(), theirs.to(mine.dtype))


@every_problem
def test_gradcheck(name: str) -> None:
    tensors = leaves(PROBLEMS[name].tensors())
    # torch.gather's gradient, which is that of an adaptive maximum, adds in any order.
    loose = {"nondet_tol": 1e-12 if name.startswith("adaptive_max") else 0.0}
    assert gradcheck(PROBLEMS[name].function, tensors, check_forward_ad=True, **loose)
    assert gradgradcheck(PROBLEMS[name].function, tensors, fast_mode=True, **loose)


@every_problem
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_give_the_same_bits(name: str, dtype: torch.dtype) -> None:
    problem = PROBLEMS[name]
    first, *rest = problem.tensors(dtype)
    tensors = leaves([first.repeat(100, *[1] * (first.dim() - 1)), *rest])  # weights' gradients are long sums
    # Of all gradients that of an adaptive maximum is torch.gather's, which adds in any order unless told otherwise.
    with deterministic() if name.startswith("adaptive_max") else nullcontext():
        once = problem.step(tensors)
        for _ in range(4):
            assert all(map(torch.equal, problem.step(tensors), once))


@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if not problem.multiplies])
def test_deterministic_algorithms(name: str) -> None:
    tensors = leaves(PROBLEMS[name].tensors())
    with deterministic():
        actual = PROBLEMS[name].step(tensors)
    assert_same_step(PROBLEMS[name], actual, tensors)


@every_problem
def test_on_another_stream(name: str) -> None:
    device = torch.get_device_module(DEVICE)
    problem, stream, busy = PROBLEMS[name], device.Stream(), moved(filled((1024, 1024), torch.float32))
    sources = moved(problem.tensors())
    with device.stream(stream):
        problem.step([t.clone().requires_grad_() for t in sources])  # what libraries set up at the first call
    synchronize()
    tensors = [torch.full_like(t, torch.nan) for t in sources]
    stream.wait_stream(device.current_stream())
    with device.stream(stream):
        # The stream is late: on any other the kernels would read what isn't there yet, or be read before they wrote.
        for _ in range(50 if GPU else 1):
            busy = busy @ busy * 1e-3
        for tensor, source in zip(tensors, sources, strict=True):
            tensor.copy_(source)
        actual = problem.step([t.requires_grad_() for t in tensors])
        copies = [t.clone() for t in actual]
    device.current_stream().wait_stream(stream)
    assert_same_step(problem, copies, sources)


@every_problem
def test_a_graph_computes_anew(name: str) -> None:
    problem = PROBLEMS[name]
    tensors = leaves(problem.tensors())
    results, replay = captured(lambda: problem.step(tensors))
    for scale in (-1.0, 0.5):
        with torch.no_grad():
            for tensor in tensors:
                tensor.mul_(scale)
        replay()
        synchronize()
        assert_same_step(problem, results, tensors)


@every_problem
def test_nothing_waits_for_the_gpu(name: str) -> None:
    tensors = leaves(PROBLEMS[name].tensors(torch.float32))
    PROBLEMS[name].step(tensors)
    with no_synchronization():
        actual = PROBLEMS[name].step(tensors)
    assert_same_step(PROBLEMS[name], actual, tensors)


@pytest.mark.skipif(GPU and torch.cuda.device_count() < 2, reason="one GPU")
@every_problem
def test_the_second_device_while_the_first_is_current(name: str) -> None:
    problem, second = PROBLEMS[name], torch.device(DEVICE.type, 1) if GPU else DEVICE
    tensors = [t.to(second).requires_grad_() for t in problem.tensors()]
    actual = problem.step(tensors)
    assert all(t.device == second for t in actual)
    assert_same_step(problem, actual, tensors)
    if GPU:
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_lowers_what_torch_lowers(dtype: torch.dtype) -> None:
    x, w, b = leaves([filled(shape, torch.float32) / 4 for shape in ((2, 4, 9, 8), (4, 4, 3, 3), (4,))])
    with torch.autocast(DEVICE.type, dtype=dtype):
        for name in ("conv2d", "conv_transpose2d", "conv_relu2d"):
            output = getattr(functional, name)(x, w, b)
            assert output.dtype == dtype
            gradients = torch.autograd.grad(output.float().sum(), (x, w, b))
            assert all(t.dtype == torch.float32 for t in gradients)
        pooled = functional.max_pool2d(functional.conv2d(x, w, b), 2)
        assert pooled.dtype == dtype
        assert functional.avg_pool2d(x, 2).dtype == torch.float32
    lowered = [t.detach().to(dtype).double().cpu() for t in (x, w, b)]
    # The sums are of size 1. A GPU rounds them before it adds the bias.
    bound = {torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    assert_close(pooled.cpu().double(), F.max_pool2d(F.conv2d(*lowered), 2), rtol=0, atol=bound)


@every_layer
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_a_layer_is_that_on_the_cpu(name: str, channels_last: bool) -> None:
    assert_same_module(single(name, torchconv), filled((2, 4, 8, 8)), channels_last)


def test_a_network_is_that_on_the_cpu() -> None:
    assert_same_module(network(torchconv), filled((2, 4, 16, 16)), False)
    assert_same_module(torchconv.convert(network(nn), fuse=True), filled((2, 4, 16, 16)), True)


def assert_same_module(module: nn.Module, input: Tensor, channels_last: bool) -> None:
    """Output and gradients on the device equal those on the CPU."""
    sides = []
    for device in (torch.device("cpu"), DEVICE):
        module.to(device).zero_grad()
        x = input.to(device, copy=True)
        x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
        output = module(x)
        output.square().sum().backward()
        sides.append([t.detach().cpu().clone() for t in (output, x.grad, *(p.grad for p in module.parameters()))])
    for theirs, mine in zip(*sides, strict=True):
        assert_close(mine, theirs)


@every_problem
def test_an_empty_batch(name: str) -> None:
    problem = PROBLEMS[name]
    first, *rest = problem.tensors()
    tensors = leaves([first[:0], *rest])
    actual = problem.step(tensors)
    assert actual[0].device.type == DEVICE.type
    assert_same_step(problem, actual, tensors)


@gpu_only
def test_winograd_is_refused_by_name() -> None:
    x, w = moved((filled((1, 8, 8, 8), torch.float32), filled((8, 8, 3, 3), torch.float32)))
    with torchconv.algorithm("winograd"), pytest.raises(RuntimeError, match="algorithm is 'winograd'"):
        functional.conv2d(x, w, padding=1)


def test_operands_on_two_devices_are_refused() -> None:
    other = torch.device("cpu" if GPU else "meta")
    x, w, b = moved([filled(shape) for shape in ((1, 4, 8, 8), (4, 4, 3, 3), (4,))])
    for name in ("conv2d", "conv_transpose2d", "conv_relu2d", "conv_relu_pool2d"):
        function = getattr(functional, name)
        for call in ((x, w.to(other), b), (x.to(other), w, b), (x, w, b.to(other))):
            with pytest.raises(RuntimeError, match=f"{name}: .*expected one device"):
                function(*call)


@gpu_only
def test_kernels_refuse_tensors_of_two_devices() -> None:
    x, w = moved(filled((1, 4, 8, 8))), filled((4, 4, 3, 3))
    with pytest.raises(RuntimeError, match="weight is not on a GPU"):
        torch.ops.torchconv.conv.default(x, w, None, [1, 1], [0, 0], [1, 1], 1, "auto", False)
    maxima, places = torch.ops.torchconv.max_pool.default(x, [2, 2], [2, 2], [0, 0], [1, 1], False, True, False)
    with pytest.raises(RuntimeError, match="positions is not on a GPU"):
        torch.ops.torchconv.max_pool_scatter.default(
            maxima, places.cpu(), [8, 8], [2, 2], [2, 2], [0, 0], [1, 1], False
        )
