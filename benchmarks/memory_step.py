"""What one step takes of memory, measured in a process that does nothing else: `memory.py` starts it.

It makes a tiny step first, which brings in libraries, threads and what allocators keep, and gives back what is free.
"peak" is what resident memory grows by during the step at its highest, by Linux's own account. "saved" is what lies in
storages that autograd keeps for backward, at its highest in a second step of the same kind: each storage once, the
network's parameters and buffers not counted. "gradients" is what the step leaves in parameters, and part of the peak.
"""

import argparse
import ctypes
import gc
import json
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from models import MODELS
from side_by_side import FORMATS
from style_step import CONTENT, STYLE, gradient, networks, picture
from torch import Tensor, nn
from torch.nn import functional as F

import torchconv
from torchconv.style import StyleObjective

Step = Callable[[], object]
At = Callable[[int], Step]  # from the picture's size to the step, with all that lies there before it
WARM = 32  # pixels: a size that no case has
CLASSES = 10
TILE = 512  # pixels: side of a tile


def vgg16_features() -> nn.Module:
    """VGG-16 without its linear layers, whose weights outweigh all activations: the means of its last channels."""
    return nn.Sequential(MODELS["vgg16"]().features, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def on(side: str, network: nn.Module) -> nn.Module:
    """The network as a side has it."""
    library, layout = side.split()
    network.to(memory_format=FORMATS[layout])
    if library == "torch":
        return torchconv.revert(network)
    return torchconv.convert(network, **({"fuse": True} if library == "fused" else {}))


def made(side: str, name: str) -> nn.Module:
    return on(side, vgg16_features() if name == "vgg16 features" else MODELS[name]())


def pictures(side: str, batch: int, size: int) -> Tensor:
    return torch.rand(batch, 3, size, size).contiguous(memory_format=FORMATS[side.split()[1]])


def style(side: str, _: str, __: int) -> tuple[nn.Module, At]:
    """The losses of a picture and their gradient in it. Nothing large runs before: targets come from tiny pictures."""
    network = networks()[side if side.startswith("torch") else "torchconv nhwc"]
    if side.startswith("fused"):
        on(side, network)
    tile = {"tile": TILE} if side.startswith("tiled") else {}
    objective = StyleObjective(network, picture(CONTENT, WARM), [picture(STYLE, WARM)], **tile)

    def at(size: int) -> Step:
        for loss in objective.content_losses.values():
            loss.target = F.interpolate(loss.target, scale_factor=float(size // WARM))
        image = picture(CONTENT, size)
        return lambda: gradient(objective, image)

    return objective, at


def saliency(side: str, name: str, batch: int) -> tuple[nn.Module, At]:
    """The gradient of a class's score in the pictures; weights are frozen."""
    network = made(side, name).eval().requires_grad_(False)

    def at(size: int) -> Step:
        inputs = pictures(side, batch, size).requires_grad_()
        return lambda: torch.autograd.grad(network(inputs)[:, 0].sum(), inputs)

    return network, at


def train(side: str, name: str, batch: int) -> tuple[nn.Module, At]:
    """Forward and backward through all parameters, which have no gradients before: cross-entropy, no update."""
    network = made(side, name).train()
    labels = torch.arange(batch) % CLASSES

    def at(size: int) -> Step:
        network.zero_grad()
        inputs = pictures(side, batch, size)
        return lambda: F.cross_entropy(network(inputs), labels).backward()

    return network, at


KINDS = {"style": style, "saliency": saliency, "train": train}


def resident(field: str) -> int:
    """Bytes of resident memory: now (VmRSS), or at most since the last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak(step: Step) -> int:
    """Bytes that resident memory grows by during a step, at most."""
    gc.collect()
    torchconv.empty_cache()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


class Kept:
    """A tensor that autograd keeps, in a form that tells when it no longer does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved(step: Step, network: nn.Module) -> int:
    """Bytes of the storages that autograd keeps during a step, at most at once."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    users: Counter[int] = Counter()  # of each storage
    now = most = 0

    def pack(tensor: Tensor) -> Kept:
        nonlocal now, most
        kept = Kept(tensor)
        data, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if data not in own:
            now += 0 if users[data] else size
            most = max(most, now)
            users[data] += 1
            weakref.finalize(kept, release, data, size)
        return kept

    def release(data: int, size: int) -> None:
        nonlocal now
        users[data] -= 1
        now -= 0 if users[data] else size

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        step()
    return most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    for name in ("network", "side"):
        parser.add_argument(name)
    for name in ("batch", "size", "threads"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network, at = KINDS[options.kind](options.side, options.network, options.batch)
    at(WARM)()
    step = at(options.size)
    figures = {"peak": peak(step)}
    figures["gradients"] = sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)
    network.zero_grad()
    figures["saved"] = saved(step, network)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
