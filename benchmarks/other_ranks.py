"""conv1d and conv3d on the layers of networks for sound, sequences, video and volumes: torch.nn beside torchconv.

python benchmarks/other_ranks.py
python benchmarks/other_ranks.py --networks unet --size 64 --passes forward
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from command import parser, run
from convolution import add_passes
from models import torchvision_models
from record import Record
from side_by_side import FOUR, Table, alternate, four, geometric_mean, greatest_difference, speedup
from torch import Tensor, nn

from torchconv import functional
from torchconv.autograd import ConvGeometry, conv_input, conv_weight

FRAMES = (16, 112, 112)  # what the video networks were trained on
SECOND = 86  # frames of a spectrogram: 22050 samples, 256 at a time
POSITIONS = 4000  # of a sequence


class Layer(NamedTuple):
    """A convolution without bias on an input of `size`: length, or depth, height and width."""

    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def __str__(self) -> str:
        window = "×".join(map(str, self.kernel))
        for name in ("stride", "dilation"):
            steps = getattr(self, name)
            window += f" {name} {'×'.join(map(str, steps))}" if set(steps) != {1} else ""
        return f"{self.in_channels}→{self.out_channels} {window} @ {'×'.join(map(str, self.size))}"


def same(
    in_channels: int, out_channels: int, size: tuple[int, ...], kernel: tuple[int, ...], dilation: int = 1
) -> Layer:
    """One whose output is as large as its input."""
    ones = (1,) * len(size)
    padding = tuple(dilation * (k - 1) // 2 for k in kernel)
    return Layer(in_channels, out_channels, size, kernel, ones, padding, (dilation,) * len(size))


def ms_tcn(_: int) -> list[Layer]:
    """The distinct dilated layers of MS-TCN (Farha & Gall, 2019)."""
    return [same(64, 64, (POSITIONS,), (3,), 2**i) for i in range(10)]


def hifi_gan(_: int) -> list[Layer]:
    """The distinct layers of the residual blocks of HiFi-GAN V1 (Kong et al., 2020), on a second of sound."""
    levels = [(256, 8), (128, 64), (64, 128), (32, 256)]
    gaps = (1, 3, 5)
    return [same(c, c, (SECOND * up,), (k,), d) for c, up in levels for k in (3, 7, 11) for d in gaps]


def video(name: str, _: int) -> list[Layer]:
    """The distinct layers of a network of torchvision's for video (Tran et al., 2018)."""
    found: dict[Layer, None] = {}

    def note(module: nn.Conv3d, inputs: tuple[Tensor], _: Tensor) -> None:
        channels, *size = inputs[0].shape[1:]
        geometry = module.kernel_size, module.stride, module.padding, module.dilation
        found[Layer(channels, module.out_channels, tuple(size), *geometry)] = None  # type: ignore[arg-type]  # of three

    with torch.device("meta"):
        network = getattr(torchvision_models.video, name)(weights=None).eval()
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
    return list(dict.fromkeys(same(a, b, (side >> level,) * 3, (3, 3, 3)) for a, b, level in down + up))


NETWORKS: dict[str, Callable[[int], list[Layer]]] = {
    "ms_tcn": ms_tcn,
    "hifi_gan": hifi_gan,
    "r3d_18": partial(video, "r3d_18"),
    "r2plus1d_18": partial(video, "r2plus1d_18"),
    "unet": unet,
}


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def sides(layer: Layer, each: str) -> dict[str, Callable[[], Tensor]]:
    """One pass of a layer on both sides, in both memory formats."""
    rank = len(layer.size)
    input = torch.randn(1, layer.in_channels, *layer.size)
    weight = torch.randn(layer.out_channels, layer.in_channels, *layer.kernel)
    geometry = ConvGeometry(layer.stride, layer.padding, layer.dilation, 1, "auto")
    ours, theirs = (getattr(library, f"conv{rank}d") for library in (functional, torch.nn.functional))
    grad_output = torch.randn_like(theirs(input, weight, None, *geometry[:3]))
    calls: dict[str, Callable[[], Tensor]] = {}
    for layout in ("nchw", "nhwc"):
        tensors = (input, weight, grad_output)
        x, w, g = map(channels_last, tensors) if layout == "nhwc" else tensors
        mask = [each == "input", each == "weight", False]
        gradients = partial(
            torch.ops.aten.convolution_backward, g, x, w, None, *geometry[:3], False, (0,) * rank, 1, mask
        )
        calls[f"torch {layout}"] = {
            "forward": partial(theirs, x, w, None, *geometry[:3]),
            "input": lambda gradients=gradients: gradients()[0],
            "weight": lambda gradients=gradients: gradients()[1],
        }[each]
        calls[f"torchconv {layout}"] = {
            "forward": partial(ours, x, w, None, *geometry[:3]),
            "input": partial(conv_input, g, w, x.shape[2:], geometry),
            "weight": partial(conv_weight, x, g, w.shape[2:], geometry),
        }[each]
    return dict(sorted(calls.items()))


def job(options: argparse.Namespace, record: Record) -> None:
    table = Table(network=-11, what=-44, of=-8, **FOUR)
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
    for name in options.networks:
        for each in options.passes:
            facts = {"threads": options.count, "network": name, "pass": each}
            entries = [entry for entry in record.entries if facts.items() <= entry.items()]
            ratios = [speedup(entry["seconds"]) for entry in entries]
            print(f"{name}, {each}: {geometric_mean(ratios):.2f}x, least {min(ratios):.2f}x")


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NETWORK")
    options.add_argument("--size", type=int, default=32, help="of the cube that the U-Net sees (%(default)s)")
    add_passes(options)
    with torch.no_grad():
        return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
