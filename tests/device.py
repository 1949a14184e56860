"""Where the tests marked `cuda` run: a GPU, or what TORCHCONV_TEST_DEVICE names.

On `grid`, a CPU with the GPU's kernels as loops, their every line runs but for the few that ask `GPU`; on `cpu`
likewise, with the CPU's own kernels. So tests and kernels are known to work before a GPU is at hand.
"""

import atexit
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest
import torch
from grid_library import grid
from torch import Tensor
from torch.utils._pytree import tree_map

from torchconv import _extension

NAME = os.environ.get("TORCHCONV_TEST_DEVICE") or "cuda"
DEVICE = torch.device("cpu" if NAME == "grid" else NAME)
GPU = DEVICE.type == "cuda"
kernels = ExitStack()  # for the whole run, which is of these tests alone
atexit.register(kernels.close)
if NAME == "grid":
    kernels.enter_context(grid())


def missing() -> str | None:
    """Why nothing can run there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a driver that it can't use
        if GPU and not torch.cuda.is_available():
            return f"no GPU that torch {torch.__version__} can use"
    return f"no CUDA kernels: {_extension.CUDA_REASON}" if GPU and not _extension.CUDA else None


MISSING = missing()
on_the_device = [
    pytest.mark.cuda,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    # torch's own: of its convolutions, of the first product in autograd's thread, of set_sync_debug_mode.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]
gpu_only = pytest.mark.skipif(not GPU, reason="only a GPU has that")


def moved(value: Any, device: torch.device = DEVICE) -> Any:
    """Tensors, alone or in containers, on a device; their memory format stays."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)


def leaves(tensors: Sequence[Tensor | None]) -> list[Any]:
    """On the device, as leaves that ask for their gradients."""
    return [None if t is None else moved(t.detach()).requires_grad_() for t in tensors]


def at_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors on the CPU that is computed on the device; it differentiates as often as `function`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return moved(function(*moved(args), **moved(kwargs)), torch.device("cpu"))

    return call


def synchronize() -> None:
    torch.get_device_module(DEVICE).synchronize()


@contextmanager
def no_synchronization() -> Iterator[None]:
    """What waits for the GPU in here, as far as torch sees it, is an error."""
    synchronize()
    if GPU:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if GPU:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def deterministic() -> Iterator[None]:
    """As use_deterministic_algorithms(True): what has no such kernel is an error, what nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def captured(step: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
    """A step as a CUDA graph: its results, and what computes them anew from what then lies in its inputs."""
    if not GPU:
        results = step()
        return results, lambda: [a.detach().copy_(b) for a, b in zip(results, step(), strict=True)] and None
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what libraries set up at the first call can't be captured
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return results, graph.replay


def free_memory() -> int:
    """Bytes."""
    return torch.cuda.mem_get_info()[0] if GPU else psutil.virtual_memory().available
