"""The grid against the machine: operations per second of each layer, under the measured peak and memory bandwidth.

Reads what layers.py wrote, measures the machine, and writes a picture. Operations are those of the definition, bytes
what has to be read and written at least: Winograd, which multiplies less, can rise above the peak, and layers that stay
in the cache above the bandwidth. The peak is that of multiply-adds in registers (peak.c, where there is a compiler) or
torch.mm's, whichever is higher; the bandwidth is that of torch.add on arrays far larger than the caches.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from command import parser, run
from convolution import PASSES
from record import RESULTS, Record, machine
from side_by_side import best

import torchconv

COLOURS = {"torch": "#d95f02", "torchconv": "#1b6ca8"}
AVX512 = ["-mavx512f", "-DLANES=16"]
FLAGS = {"amx": AVX512, "avx512": AVX512, "avx2": ["-mavx2", "-mfma", "-DLANES=8"], "baseline": ["-DLANES=4"]}
ROUNDS = 10
TITLES = {"forward": "forward", "input": "input gradient", "weight": "weight gradient"}


def fastest(work: Callable[[], float]) -> float:
    """The highest rate of `work`, which returns how much it has done."""
    rates = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - began))
    return max(rates)


def multiply_adds(threads: int) -> float:
    """Operations per second in registers; 0 without a compiler for this instruction set."""
    compiler, flags = shutil.which(os.environ.get("CC", "cc")), FLAGS.get(torchconv.ops.isa() or "")
    if not compiler or not flags:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/peak.so"
        source = str(Path(__file__).with_name("peak.c"))
        command = [compiler, "-O3", "-ffp-contract=fast", "-fPIC", "-shared", *flags, source, "-o", library]
        if subprocess.run(command, capture_output=True).returncode:
            return 0.0
        peak = ctypes.CDLL(library).peak
    peak.restype, peak.argtypes = ctypes.c_double, (ctypes.c_long, ctypes.c_float, ctypes.POINTER(ctypes.c_float))
    with ThreadPoolExecutor(threads) as pool:
        sinks = [ctypes.c_float() for _ in range(threads)]
        return fastest(lambda: sum(pool.map(lambda sink: peak(5_000_000, 1e-6, ctypes.byref(sink)), sinks)))


def matrix_product(size: int = 2048) -> float:
    """Operations per second of torch.mm."""
    a, b, c = (torch.randn(size, size) for _ in range(3))

    def work() -> float:
        torch.mm(a, b, out=c)
        return 2.0 * size**3

    return fastest(work)


def bandwidth(mebibytes: int) -> float:
    """Bytes per second of c = a + b, each of so many mebibytes."""
    a, b, c = (torch.ones(mebibytes << 18) for _ in range(3))

    def work() -> float:
        torch.add(a, b, out=c)
        return 3.0 * 4 * a.numel()

    return fastest(work)


def job(options: argparse.Namespace, record: Record) -> None:
    roofs = {
        "multiply-adds": multiply_adds(options.count),
        "torch.mm": matrix_product(),
        "bandwidth": bandwidth(options.mebibytes),
    }
    record.entries = [entry for entry in record.entries if entry["threads"] != options.count]
    record.add({"threads": options.count}, **roofs)
    units = {"bandwidth": "GB/s"}
    print("  ".join(f"{name}: {rate / 1e9:.1f} {units.get(name, 'GFLOP/s')}" for name, rate in roofs.items()))
    isa = record.machine["isa"]
    path = options.layers or RESULTS / ("layers.json" if isa == "native" else f"layers-{isa}.json")
    if not path.exists():
        print(f"no picture: {path} is not there, layers.py writes it")
        return
    measured = json.loads(path.read_text())
    entries = [entry for entry in measured["entries"] if entry["threads"] == options.count]
    if measured["machine"]["cpu"] != machine(isa)["cpu"] or not entries:
        print(f"no picture: {path} has nothing measured on this processor with {options.count} threads")
        return
    name = f"{measured['machine']['cpu']}, {measured['machine']['torchconv isa']}, {options.count} threads"
    draw(entries, roofs, name, record.path.with_name(f"{record.path.stem}-{options.count}.png"))


def draw(entries: list[dict[str, Any]], roofs: dict[str, float], machine: str, path: Path) -> None:
    """The picture: a panel for each pass, a point for each layer and side."""
    from matplotlib import pyplot

    peak, bytes_per_second = max(roofs["multiply-adds"], roofs["torch.mm"]) / 1e9, roofs["bandwidth"] / 1e9
    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.6), sharex=True, sharey=True, layout="constrained")
    intensities = [entry["flops"] / entry["bytes"] for entry in entries]
    ends = min(intensities) / 1.5, max(*intensities, 2 * peak / bytes_per_second) * 1.5
    for axis, each in zip(axes, PASSES, strict=True):
        for library, colour in COLOURS.items():
            rows = [entry for entry in entries if entry["pass"] == each]
            x = [entry["flops"] / entry["bytes"] for entry in rows]
            y = [entry["flops"] / best(entry["seconds"], library) / 1e9 for entry in rows]
            axis.scatter(x, y, s=9, color=colour, alpha=0.5, linewidths=0, label=library)
        ridge = peak / bytes_per_second
        axis.plot([ends[0], ridge, ends[1]], [ends[0] * bytes_per_second, peak, peak], color="black", linewidth=1)
        axis.set(xscale="log", yscale="log", xlim=ends, title=TITLES[each], xlabel="FLOP per byte")
        axis.grid(alpha=0.25, which="major")
    axes[0].set_ylabel("GFLOP/s of the definition")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)
    figure.suptitle(f"{machine}: peak {peak:.0f} GFLOP/s, {bytes_per_second:.0f} GB/s")
    figure.savefig(path, dpi=120)
    print(path)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--layers", type=Path, metavar="FILE", help="what layers.py wrote (benchmarks/results/)")
    options.add_argument("--mebibytes", type=int, default=512, help="of each of three arrays (%(default)s)")
    return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
