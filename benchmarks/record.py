"""The figures of a run: the machine that they are of, and the JSON file that keeps them."""

import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from side_by_side import Timing

import torchconv

RESULTS = Path(__file__).parent / "results"


def cpu() -> str:
    """The processor's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is measured, with a + where the tree has other changes."""
    command = ["git", "describe", "--always", "--abbrev=8", "--dirty=+", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return run.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(isa: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "isa": isa,
        "torch isa": os.environ.get("ONEDNN_MAX_CPU_ISA", torch.backends.cpu.get_cpu_capability()),
        "torchconv isa": torchconv.ops.isa() or "no compiled ops",
        "torch": torch.__version__,
        "torchconv": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


@dataclass
class Record:
    """The entries of one run, and the JSON file that is written anew as they come."""

    path: Path
    machine: dict[str, Any]
    resume: bool
    entries: list[dict[str, Any]] = field(default_factory=list)
    load: float = field(default_factory=lambda: os.getloadavg()[0])  # of the machine, before
    written: float = 0.0  # when, by time.monotonic()

    def __post_init__(self) -> None:
        if self.resume and self.path.exists():
            before = json.loads(self.path.read_text())
            if before["machine"] != self.machine:
                raise SystemExit(f"{self.path} is of another machine or version: {before['machine']}")
            self.entries = before["entries"]

    def has(self, facts: Mapping[str, Any]) -> bool:
        """Whether an earlier run, which this one resumes, has measured this."""
        return any(all(entry.get(key) == value for key, value in facts.items()) for entry in self.entries)

    def add(self, facts: Mapping[str, Any], timing: Timing | None = None, **more: Any) -> None:
        """Keep an entry. The file follows every few seconds."""
        entry = {**facts, **more}
        if timing is not None:
            entry |= {"seconds": timing.median, "least": timing.least, "rounds": timing.rounds}
        self.entries.append(entry)
        if time.monotonic() - self.written > 5:
            self.write()

    def write(self) -> None:
        """Write the file, all of it or nothing."""
        content = {
            "machine": self.machine,
            "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "load": round(self.load, 2),
            "entries": self.entries,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(self.path)
        self.written = time.monotonic()
