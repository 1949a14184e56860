"""What the benchmarks' command lines have in common: options, instruction sets, thread counts.

An instruction set is forced on both sides through the environment, which is read at the start: in a process of its own.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from record import RESULTS, Record, machine
from side_by_side import threads

import torchconv

# What holds torchconv, torch, oneDNN and MKL to an instruction set.
VARIABLES = ("TORCHCONV_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
ENVIRONMENT = {
    "native": {},
    "amx": dict(zip(VARIABLES, ("amx", "avx512", "AVX512_CORE_AMX", "AVX512"), strict=True)),
    "avx512": dict(zip(VARIABLES, ("avx512", "avx512", "AVX512_CORE", "AVX512"), strict=True)),
    "avx2": dict(zip(VARIABLES, ("avx2", "avx2", "AVX2", "AVX2"), strict=True)),
    "baseline": dict(zip(VARIABLES, ("baseline", "default", "SSE41", "SSE4_2"), strict=True)),
}


def parser(description: str | None, budget: float = 0.3) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    isas = ["native", *torchconv.ops.available_isas(), "all"]
    cores = os.cpu_count() or 1
    made.add_argument("--threads", type=int, nargs="+", default=[min(2, cores)], metavar="N", help="(%(default)s)")
    made.add_argument(
        "--isa",
        nargs="+",
        default=["native"],
        choices=isas,
        metavar="ISA",
        help=f"instruction sets that both sides are held to: {', '.join(isas)}; native holds them to none, all are"
        " those that differ in float32 (native)",
    )
    made.add_argument(
        "--budget-seconds", type=float, default=budget, metavar="S", help="time for each entry (%(default)s)"
    )
    made.add_argument("--resume", action="store_true", help="keep what the JSON file has, measure what it lacks")
    made.add_argument("--json", type=Path, metavar="FILE", help="where the figures go (benchmarks/results/)")
    return made


def run(parser: argparse.ArgumentParser, job: Callable[[argparse.Namespace, Record], None]) -> int:
    """Parse the options and do the job under each instruction set and number of threads; the exit status."""
    options = parser.parse_args()
    script = Path(sys.argv[0])
    isas = [isa for isa in options.isa if isa != "all"]
    isas += [isa for isa in torchconv.ops.available_isas() if "all" in options.isa and isa != "amx"]
    if len(isas) > 1 or not _held_to(isas[0]):
        return max([_in_process(isa) for isa in isas], default=0)
    (isa,) = isas
    path = options.json or RESULTS / f"{script.stem}.json"
    if isa != "native":
        path = path.with_stem(f"{path.stem}-{isa}")
    record = Record(path, machine(isa), options.resume)
    print("  ".join(f"{name}: {value}" for name, value in record.machine.items()))
    busy = " (the machine is busy, the figures mean little)" if record.load > 0.5 else ""
    print(f"load before: {record.load:.2f}{busy}  figures: {path}")
    torch.manual_seed(0)
    try:
        for count in options.threads:
            print(f"\n{count} thread{'s' * (count > 1)}")
            with threads(count):
                options.count = count
                job(options, record)
    finally:
        if record.entries:
            record.write()
    return 0


def _held_to(isa: str) -> bool:
    return all(os.environ.get(name) == value for name, value in ENVIRONMENT[isa].items())


def _in_process(isa: str) -> int:
    """This command once more, in a process that has one instruction set."""
    arguments = [*sys.argv, "--isa", isa]  # the last one holds
    return subprocess.run([sys.executable, *arguments], env={**os.environ, **ENVIRONMENT[isa]}).returncode
