"""How cost grows with the work: VGG-19's features over picture size, batch size and threads, torch.nn beside torchconv.

Writes a picture next to the figures: nanoseconds per pixel from 128² to 2048², milliseconds per image from batch 1 to
64, and the gain of more threads.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from command import parser, run
from networks import inference
from record import Record
from side_by_side import FOUR, SIDES, Table, alternate, best, difference, four, threads

MODEL = "vgg19"
COLOURS = {"torch": "#d95f02", "torchconv": "#1b6ca8"}


def measure(options: argparse.Namespace, record: Record, table: Table, what: str, batch: int, size: int) -> None:
    facts = {"threads": torch.get_num_threads(), "what": what, "batch": batch, "size": size}
    if record.has(facts):
        return
    calls = inference(MODEL, batch, size)
    expected = calls[SIDES[0]]()
    differs = difference(calls[SIDES[-1]](), expected)
    del expected
    timing = alternate(calls, options.budget_seconds)
    record.add(facts, timing, differs=differs)
    table.row(what, str(batch), str(size), str(facts["threads"]), *four(timing.median, differs))


def job(options: argparse.Namespace, record: Record) -> None:
    table = Table(over=-8, batch=5, size=5, threads=7, **FOUR)
    for size in options.sizes:
        measure(options, record, table, "pixels", 1, size)
    for batch in options.batches:
        measure(options, record, table, "batch", batch, options.size)
    for count in range(1, torch.get_num_threads() + 1):
        with threads(count):
            measure(options, record, table, "threads", 1, options.sizes[len(options.sizes) // 2])
    draw(record.entries, record.path.with_suffix(".png"))


def draw(entries: list[dict[str, Any]], path: Path) -> None:
    """The picture: three panels, a line for each side."""
    from matplotlib import pyplot

    panels = {
        "pixels": ("size", "height and width, pixels", "ns per pixel", lambda e: 1e9 / (e["size"] ** 2 * e["batch"])),
        "batch": ("batch", "batch", "ms per image", lambda e: 1e3 / e["batch"]),
        "threads": ("threads", "threads", "images per second", None),
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (what, (x, xlabel, ylabel, scale)) in zip(axes, panels.items(), strict=True):
        rows = sorted((e for e in entries if e["what"] == what), key=lambda e: e[x])
        for library, colour in COLOURS.items():
            times = [best(e["seconds"], library) for e in rows]
            y = [t * scale(e) if scale else 1 / t for t, e in zip(times, rows, strict=True)]
            axis.plot([e[x] for e in rows], y, "o-", color=colour, label=library)
        if what != "threads":
            axis.set_xscale("log", base=2)
        ticks = [e[x] for e in rows]
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.suptitle("VGG-19's features, float32, each side in its better memory format")
    figure.savefig(path, dpi=120)
    print(path)


def main() -> int:
    options = parser(__doc__, budget=2.0)
    options.add_argument(
        "--sizes", type=int, nargs="+", default=[128, 256, 512, 1024, 2048], help="of one picture (%(default)s)"
    )
    options.add_argument(
        "--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="of pictures of --size (%(default)s)"
    )
    options.add_argument("--size", type=int, default=128, help="of the pictures in a batch (%(default)s)")
    return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
