"""Pooling, unfold and fold: torch.nn.functional beside torchconv.functional, forward and backward.

Backward is torch.autograd.grad on a graph that is kept, as a training step calls it. max_pool2d's forward is timed
twice: as such, and while gradients are recorded, where torchconv saves its positions.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from command import parser, run
from record import Record
from side_by_side import FORMATS, FOUR, Table, alternate, four, greatest_difference
from torch import Tensor
from torch.nn import functional as F

from torchconv import functional

LIBRARIES = {"torch": F, "torchconv": functional}
VGG_CHANNELS = (64, 128, 256, 512, 512)
PASSES = ("forward", "recording", "backward")


def vgg_pictures(size: int) -> list[tuple[int, int]]:
    """Channels and size of what VGG's five poolings get."""
    return [(channels, size >> block) for block, channels in enumerate(VGG_CHANNELS)]


# What is timed: the function, its arguments, and the pictures (channels, size) for a network input of this size.
Case = tuple[str, dict[str, Any], Callable[[int], list[tuple[int, int]]]]
CASES: dict[str, Case] = {
    "max_pool2d 2": ("max_pool2d", {"kernel_size": 2}, vgg_pictures),
    "max_pool2d 3, stride 2": (
        "max_pool2d",
        {"kernel_size": 3, "stride": 2, "padding": 1},
        lambda size: [(64, size // 2), (192, size // 8)],  # ResNet's and DenseNet's; AlexNet's second
    ),
    "avg_pool2d 2": ("avg_pool2d", {"kernel_size": 2}, vgg_pictures),
    "avg_pool2d 3, stride 1": (
        "avg_pool2d",
        {"kernel_size": 3, "stride": 1, "padding": 1},
        lambda size: [(192, size // 8), (768, size // 16)],  # Inception's
    ),
    "adaptive_avg_pool2d 7": ("adaptive_avg_pool2d", {"output_size": 7}, lambda size: [(512, size // 32)]),
    "adaptive_avg_pool2d 1": (
        "adaptive_avg_pool2d",
        {"output_size": 1},
        lambda size: [(512, size // 32), (2048, size // 32), (64, size // 2)],
    ),
    "adaptive_max_pool2d 7": (
        "adaptive_max_pool2d",
        {"output_size": 7},
        lambda size: [(512, size // 32), (256, size // 8)],
    ),
    "unfold 3": ("unfold", {"kernel_size": 3, "padding": 1}, vgg_pictures),
    "fold 3": ("fold", {"kernel_size": 3, "padding": 1}, vgg_pictures),
}


def laid_out(picture: Tensor, layout: str) -> Tensor:
    return picture.contiguous(memory_format=FORMATS[layout])


def without_gradients(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    with torch.no_grad():
        return function(*tensors)


def sides(name: str, each: str, picture: Tensor) -> dict[str, Callable[[], Tensor]]:
    """One pass of a case on both sides, in both memory formats where it has any."""
    function, arguments, _ = CASES[name]
    calls: dict[str, Callable[[], Tensor]] = {}
    if function == "fold":
        columns = F.unfold(picture, **arguments)
        arguments = {**arguments, "output_size": picture.shape[2:]}
    for library, namespace in LIBRARIES.items():
        operator = partial(getattr(namespace, function), **arguments)
        if function == "fold":
            calls[f"{library} nchw"] = partial(without_gradients, operator, columns)
            continue
        for layout in FORMATS:
            x = laid_out(picture, layout).requires_grad_(each != "forward")
            if each != "backward":
                calls[f"{library} {layout}"] = partial(operator, x)
                continue
            y = operator(x)
            gradient = laid_out(torch.arange(y.numel()).remainder(97).to(y.dtype).view(y.shape), layout)
            graph = partial(torch.autograd.grad, y, x, gradient, retain_graph=True)
            calls[f"{library} {layout}"] = lambda graph=graph: graph()[0]
    return calls


def job(options: argparse.Namespace, record: Record) -> None:
    table = Table(what=-24, input=-22, of=-10, **FOUR)
    for name in options.cases:
        function, _, pictures = CASES[name]
        passes = PASSES if function == "max_pool2d" else PASSES[:1] if "fold" in function else PASSES[::2]
        for size in options.size:
            for channels, side in pictures(size):
                for each in passes:
                    shape = [options.batch, channels, side, side]
                    facts = {"threads": options.count, "what": name, "of": size, "input": shape, "pass": each}
                    if record.has(facts):
                        continue
                    calls = sides(name, each, torch.randn(shape))
                    differs = greatest_difference(calls)
                    timing = alternate(calls, options.budget_seconds)
                    record.add(facts, timing, differs=differs)
                    table.row(name, "×".join(map(str, shape)), each, *four(timing.median, differs))


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE", help=", ".join(CASES)
    )
    options.add_argument("--size", type=int, nargs="+", default=[224, 512], help="of the network's input (%(default)s)")
    options.add_argument("--batch", type=int, default=1, help="%(default)s")
    return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
