"""conv3d on the layers of a video network and of a 3D U-Net: torch.nn beside torchconv.

python benchmarks/volumes.py
python benchmarks/volumes.py --networks unet --size 64 --passes forward
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from command import parser, run
from convolution import PASSES
from models import torchvision_models
from record import Record
from side_by_side import FOUR, Table, alternate, four, geometric_mean, greatest_difference, speedup
from torch import Tensor, nn
from torch.nn import functional as F

from torchconv import functional
from torchconv.autograd import ConvGeometry, conv_input, conv_weight

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last_3d}
ONE = (1, 1, 1)
FRAMES = (16, 112, 112)  # what r3d_18 was trained on


class Layer(NamedTuple):
    """A convolution without bias on a volume of `size`: depth, height, width."""

    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = (3, 3, 3)
    stride: tuple[int, ...] = ONE
    padding: tuple[int, ...] = ONE

    def __str__(self) -> str:
        window = "×".join(map(str, self.kernel)) + (f" stride {self.stride}" if self.stride != ONE else "")
        return f"{self.in_channels}→{self.out_channels} {window} @ {'×'.join(map(str, self.size))}"


def video(_: int) -> list[Layer]:
    """The distinct layers of r3d_18 (Tran et al., 2018)."""
    found: dict[Layer, None] = {}

    def note(module: nn.Conv3d, inputs: tuple[Tensor], _: Tensor) -> None:
        channels, *size = inputs[0].shape[1:]
        found[Layer(channels, module.out_channels, tuple(size), module.kernel_size, module.stride, module.padding)] = (
            None
        )

    with torch.device("meta"):
        network = torchvision_models.video.r3d_18(weights=None).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(note)
        network(torch.empty(1, 3, *FRAMES))
    return list(found)


def unet(side: int) -> list[Layer]:
    """The 3x3x3 layers of the 3D U-Net (Çiçek et al., 2016) on a cube."""
    channels = [(1, 32, 64), (64, 64, 128), (128, 128, 256), (256, 256, 512)]
    down = [pair for level, (a, b, c) in enumerate(channels) for pair in ((a, b, level), (b, c, level))]
    up = [pair for level, (_, _, c) in enumerate(channels[:3]) for pair in ((3 * c, c, level), (c, c, level))]
    return list(dict.fromkeys(Layer(a, b, (side >> level,) * 3) for a, b, level in down + up))


NETWORKS: dict[str, Callable[[int], list[Layer]]] = {"r3d_18": video, "unet": unet}


def sides(layer: Layer, each: str) -> dict[str, Callable[[], Tensor]]:
    """One pass of a layer on both sides, in both memory formats."""
    input = torch.randn(1, layer.in_channels, *layer.size)
    weight = torch.randn(layer.out_channels, layer.in_channels, *layer.kernel)
    geometry = ConvGeometry(layer.stride, layer.padding, ONE, 1, "auto")
    grad_output = torch.randn_like(F.conv3d(input, weight, None, *geometry[:2]))
    calls: dict[str, Callable[[], Tensor]] = {}
    for layout, format in FORMATS.items():
        x, w, g = (t.contiguous(memory_format=format) for t in (input, weight, grad_output))
        mask = [each == "input", each == "weight", False]
        gradients = partial(
            torch.ops.aten.convolution_backward, g, x, w, None, *geometry[:3], False, (0, 0, 0), 1, mask
        )
        calls[f"torch {layout}"] = {
            "forward": partial(F.conv3d, x, w, None, *geometry[:2]),
            "input": lambda gradients=gradients: gradients()[0],
            "weight": lambda gradients=gradients: gradients()[1],
        }[each]
        calls[f"torchconv {layout}"] = {
            "forward": partial(functional.conv3d, x, w, None, *geometry[:2]),
            "input": partial(conv_input, g, w, x.shape[2:], geometry),
            "weight": partial(conv_weight, x, g, w.shape[2:], geometry),
        }[each]
    return dict(sorted(calls.items()))


def job(options: argparse.Namespace, record: Record) -> None:
    table = Table(network=-8, what=-44, of=-8, **FOUR)
    for name in options.networks:
        for layer in NETWORKS[name](options.size):
            for each in options.passes:
                facts = {"threads": options.count, "network": name, "what": str(layer), "pass": each}
                if record.has(facts):
                    continue
                calls = sides(layer, each)
                differs = greatest_difference(calls)
                timing = alternate(calls, options.budget_seconds)
                record.add(facts, timing, differs=differs)
                table.row(name, str(layer), each, *four(timing.median, differs))
    for each in options.passes:
        entries = [e for e in record.entries if e["pass"] == each and e["threads"] == options.count]
        ratios = [speedup(entry["seconds"]) for entry in entries]
        print(f"{each}: {geometric_mean(ratios):.2f}x, least {min(ratios):.2f}x")


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NETWORK")
    options.add_argument("--size", type=int, default=32, help="of the cube that the U-Net sees (%(default)s)")
    options.add_argument(
        "--passes", nargs="+", default=list(PASSES), choices=PASSES, metavar="PASS", help="%(default)s"
    )
    with torch.no_grad():
        return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
