"""Every convolution layer of real networks: forward pass and both gradients, torch.nn beside torchconv.

python benchmarks/layers.py                                   # the grid: 8 networks, batches of 1, 8 and 32
python benchmarks/layers.py --models vgg19 --size 512 224 --batch 1 --json vgg19.json
python benchmarks/layers.py --models resnet50 --passes forward --isa all --threads 1 2
"""

import argparse
import sys
from typing import NamedTuple

import torch
from command import parser, run
from convolution import PASSES, Layer, add_passes, sides
from models import GRID, MODELS, layers_of
from record import Record
from side_by_side import FOUR, Table, alternate, four, geometric_mean, greatest_difference, speedup

LOSS = 0.9  # below this, a layer is listed


class Origin(NamedTuple):
    """The network that a layer comes from, its name there, and the size of the network's input."""

    model: str
    layer: str
    of: int


def distinct(models: list[str], sizes: list[int]) -> dict[Layer, Origin]:
    """The layers of these networks, each once, with the first place where it is found."""
    found: dict[Layer, Origin] = {}
    for size in sizes:
        for model in models:
            for layer, name in layers_of(model, size).items():
                found.setdefault(layer, Origin(model, name, size))
    return found


def job(options: argparse.Namespace, record: Record) -> None:
    layers = distinct(options.models, options.size)
    print(f"{len(layers)} layers, batches {options.batch}, {', '.join(options.passes)}")
    table = Table(layer=-36, what=-40, batch=5, of=-7, **FOUR)
    for batch in options.batch:
        for layer, origin in layers.items():
            facts = {"threads": options.count, **origin._asdict(), "what": str(layer), "batch": batch}
            passes = [each for each in options.passes if not record.has({**facts, "pass": each})]
            tensors = layer.tensors(batch) if passes else {}
            for each in passes:
                calls = sides(layer, each, tensors)
                differs = greatest_difference(calls)
                timing = alternate(calls, options.budget_seconds)
                record.add(
                    {**facts, "pass": each},
                    timing,
                    differs=differs,
                    flops=layer.flops(batch),
                    bytes=layer.bytes(batch),
                    in_channels=layer.in_channels,
                    kernel=layer.kernel,
                )
                table.row(f"{origin.model} {origin.layer}", str(layer), str(batch), each, *four(timing.median, differs))
    summarise(options, record)


def summarise(options: argparse.Namespace, record: Record) -> None:
    """Geometric means, and every layer that is slower than torch's."""
    entries = [entry for entry in record.entries if entry["threads"] == options.count]
    print("\ntorch's time over torchconv's, each in its better memory format: geometric mean and least")
    table = Table(batch=5, of=-8, layers=6, mean=7, least=7)
    for batch in sorted({entry["batch"] for entry in entries}):
        for each in PASSES:
            ratios = [speedup(e["seconds"]) for e in entries if e["batch"] == batch and e["pass"] == each]
            if ratios:
                mean = geometric_mean(ratios)
                table.row(str(batch), each, str(len(ratios)), f"{mean:.2f}x", f"{min(ratios):.2f}x")
    every = [speedup(entry["seconds"]) for entry in entries]
    if every:
        print(f"all: {geometric_mean(every):.2f}x, least {min(every):.2f}x")
    slow = sorted((e for e in entries if speedup(e["seconds"]) < LOSS), key=lambda e: speedup(e["seconds"]))
    print(f"{len(slow)} below {LOSS}x" + (":" if slow else ""))
    for e in slow:
        print(
            f"  {speedup(e['seconds']):.2f}x  {e['model']} {e['layer']}, {e['what']}, batch {e['batch']}, {e['pass']}"
        )


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--models", nargs="+", default=list(GRID), choices=MODELS, metavar="MODEL", help=", ".join(MODELS)
    )
    options.add_argument(
        "--size", type=int, nargs="+", default=[224], help="height and width of pictures (%(default)s)"
    )
    options.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="batch sizes (%(default)s)")
    add_passes(options)
    with torch.no_grad():
        return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
