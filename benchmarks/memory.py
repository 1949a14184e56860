"""Peak memory of one step, and what autograd saves in it: torch.nn beside torchconv, each figure in its own process.

The sides take turns, the order is turned round after each round; a figure is the median of the processes, and
`memory_step.py` says what it is. Its ratio is that to the smaller of torch's two memory formats. Where it is legal, all
sides have ReLU in place. "fused" is torchconv.convert(..., fuse=True), "tiled" the style objective tile by tile.

Steps: "style" is VGG-19 to relu5_1, content and Gram losses, and their gradient in the picture; "saliency" the gradient
of a class's score in the pictures, weights frozen; "train" forward and backward through all parameters, no update.

The heap is glibc's. "fixed" has what it frees of 128 KiB and more go back to the system at once, so that a figure is
what the step needs, and repeats. "default" is how a process starts unless it is told otherwise: the threshold grows to
32 MiB, and what lies below it may stay in pieces that nothing fits, up to half of a figure, differently in each run.
Needs Linux.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from command import parser, run
from memory_step import KINDS
from record import Record
from side_by_side import SIDES, Table

STEP = Path(__file__).with_name("memory_step.py")
MEASURES = ("peak", "saved", "gradients")
FUSED = ["fused nchw", "fused nhwc"]
TILED = ["tiled nhwc"]
WHOLE = 1024  # pixels: larger pictures in tiles only
HEAPS = {"fixed": {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}, "default": {}}
# Kind, network, batch, sizes.
CASES = [
    ("style", "vgg19", 1, [256, 512, 1024, 2048, 4096]),
    *(("saliency", "vgg16", batch, [224, 512]) for batch in (1, 8)),
    *(
        ("train", network, *case)
        for network in ("vgg16 features", "vgg16")
        for case in ((8, [64, 224]), (2, [224]), (32, [224]))
    ),
    ("train", "resnet18", 8, [128]),
]


def measure(heap: str, *arguments: object) -> dict[str, int]:
    """The figures of one process."""
    command = [sys.executable, str(STEP), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    step = subprocess.run(command, env=environment | HEAPS[heap], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(step.stdout.splitlines()[-1])


def sides_of(kind: str, size: int, wanted: list[str]) -> list[str]:
    """Torchconv's network for style is in channels-last tensors whatever it gets."""
    if kind != "style":
        return [side for side in wanted if side not in TILED]
    if size > WHOLE:
        return [side for side in wanted if side in TILED]
    return [side for side in wanted if side.startswith("torch ") or side.endswith("nhwc")]


def job(options: argparse.Namespace, record: Record) -> None:
    columns = {"step": -10, "of": -14, "batch": 5, "size": 5, "heap": -7, "side": -14, "peak_MiB": 9, "range": -13}
    table = Table(**columns, ratio=5, saved_MiB=9, ratio_=6)
    for kind, network, batch, sizes in CASES:
        if kind not in options.kinds or (options.models and network not in options.models):
            continue
        for size, heap in itertools.product(options.size or sizes, options.heaps):
            facts = {"kind": kind, "network": network, "batch": batch, "size": size, "heap": heap}
            facts["threads"] = options.count
            if record.has(facts):
                continue
            sides = sides_of(kind, size, options.sides)
            if not sides:
                continue
            found: dict[str, list[dict[str, int]]] = {side: [] for side in sides}
            for turn in range(options.processes):
                for side in reversed(sides) if turn % 2 else sides:
                    found[side].append(measure(heap, kind, network, side, batch, size, options.count))
            medians = {
                what: {side: statistics.median(each[what] for each in runs) for side, runs in found.items()}
                for what in MEASURES
            }
            ratios = {what: ratios_to_torch(medians[what]) for what in ("peak", "saved")}
            peaks = {side: [each["peak"] for each in runs] for side, runs in found.items()}
            record.add(facts, **medians, range={side: [min(p), max(p)] for side, p in peaks.items()}, ratios=ratios)
            for side in sides:
                cells = [f"{medians['peak'][side] / 2**20:.1f}"]
                cells += [f"{min(peaks[side]) / 2**20:.0f}–{max(peaks[side]) / 2**20:.0f}", shown(ratios["peak"], side)]
                cells += [f"{medians['saved'][side] / 2**20:.1f}", shown(ratios["saved"], side)]
                table.row(kind, network, str(batch), str(size), heap, side, *cells)


def ratios_to_torch(figures: dict[str, float]) -> dict[str, float]:
    """Each side's figure over the smaller of torch's; nothing without those."""
    torchs = [value for side, value in figures.items() if side.startswith("torch ")]
    return {side: value / min(torchs) for side, value in figures.items()} if torchs else {}


def shown(ratios: dict[str, float], side: str) -> str:
    return f"{ratios[side]:.2f}" if ratios else "–"


def main() -> int:
    options = parser(__doc__)
    sides = [*SIDES, *FUSED, *TILED]
    options.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND", help="%(default)s")
    options.add_argument("--models", nargs="+", metavar="MODEL", help="only these of the networks")
    options.add_argument("--sides", nargs="+", default=sides, choices=sides, metavar="SIDE", help="%(default)s")
    options.add_argument("--size", type=int, nargs="+", help="other sizes than the cases' own")
    options.add_argument("--heaps", nargs="+", default=list(HEAPS), choices=HEAPS, metavar="HEAP", help="%(default)s")
    options.add_argument("--processes", type=int, default=3, metavar="N", help="of each side (%(default)s)")
    return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
