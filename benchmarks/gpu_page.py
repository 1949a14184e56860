"""Fills docs/gpu.md from benchmarks/results/gpu.json: each part between <!-- name --> and <!-- /name -->.

What was not measured says so. Nothing is computed here but ratios and means.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu import PARTS as MEASURED
from gpu import best_of, least
from record import RESULTS
from report import DOCS, fill, markdown, milliseconds
from side_by_side import best, geometric_mean, speedup
from targets import _at_most as at_most
from targets import _holds as holds

Entry = dict[str, Any]
File = dict[str, Any]


def machine(file: File) -> str:
    if not file:
        return "No GPU could be had yet: no figure stands here."
    facts = {**file["machine"], "on": file["written"][:10]}
    copy = next(e["bytes_per_second"] for e in file["entries"] if e["part"] == "copy")
    facts["a copy reads and writes"] = f"{copy / 1e9:.0f} GB/s"
    return markdown(["", ""], [[name, str(value)] for name, value in facts.items()])


def entries(file: File, **facts: Any) -> list[Entry]:
    found = file.get("entries", [])
    return [entry for entry in found if all(entry.get(key) == value for key, value in facts.items())]


def targets(file: File) -> str:
    rows = []
    for each in ("forward", "input", "weight"):
        found = entries(file, part="layers", precision="float32", **{"pass": each})
        slower = [best(e["seconds"], "torchconv") / best(e["seconds"], "torch") for e in found]
        rows.append(at_most(f"VGG-19's layers, float32, {each}: time of cuDNN's", 1.5, "x", slower))
    for precision in ("float32", "bfloat16"):
        pools = [e for e in entries(file, part="poolings", precision=precision) if "pool" in e["what"]]
        ratios = [speedup(e["seconds"]) for e in pools]
        rows.append(_at_least(f"poolings, {precision}: torch's time over ours", 1.0, "x", ratios))
        # What fits into a GPU's cache doesn't meet its memory.
        large = [best_of(e["bandwidth"]) for e in pools if e["bytes"] > 2**27]
        rows.append(_at_least(f"poolings of 128 MiB and more, {precision}: of a copy's bandwidth", 0.8, "x", large))
    steps = [ratio(e) for e in entries(file, part="style", precision="float32", size=1024)]
    rows.append(at_most("style step at 1024², float32: peak memory of torch.nn's", 0.6, "x", [r for r in steps if r]))
    return markdown(["what", "wanted", "measured", "holds"], rows)


def _at_least(what: str, wanted: float, unit: str, values: list[float]) -> list[str]:
    if not values:
        return [what, f"≥ {wanted}{unit}", "not measured", "–"]
    shown = f"{min(values):.2f}{unit} at least, {geometric_mean(values):.2f}{unit} in the mean"
    return [what, f"≥ {wanted}{unit}", shown, holds(min(values) >= wanted)]


def ratio(entry: Entry) -> float:
    """Our peak memory over torch's, each in its better memory format; 0 where it wasn't counted."""
    theirs = least(entry["memory"], "torch")
    return least(entry["memory"], "torchconv") / theirs if theirs else 0.0


def table(file: File, part: str) -> str:
    columns = ["what", "input", "precision", "", "torch nchw, ms", "nhwc", "torchconv nchw, ms", "nhwc", "faster"]
    rows = []
    for e in entries(file, part=part):
        used = f"{best_of(e['bandwidth']):.0%}" if e["bandwidth"] else "–"
        facts = [e[key] for key in ("what", "input", "precision", "pass")]
        memory = f"{ratio(e):.2f}" if ratio(e) else "–"
        rows.append([*facts, *milliseconds(e), f"**{speedup(e['seconds']):.2f}**", memory, used, f"{e['differs']:.0e}"])
    return markdown([*columns, "memory", "bandwidth", "differs"], rows)


PAGE_PARTS: dict[str, Callable[[File], str]] = {
    "machine": machine,
    "targets": targets,
    **{part: lambda file, part=part: table(file, part) for part in MEASURED},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=RESULTS / "gpu.json", metavar="FILE", help="(%(default)s)")
    parser.add_argument("--page", type=Path, default=DOCS / "gpu.md", metavar="FILE", help="(%(default)s)")
    options = parser.parse_args()
    file = json.loads(options.figures.read_text()) if options.figures.exists() else {}
    page = options.page.read_text()
    for name, part in PAGE_PARTS.items():
        page = fill(page, name, part(file))
    options.page.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
