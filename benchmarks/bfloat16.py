"""bfloat16 beside float32: each pass of networks' layers, and the networks' forward pass, by torch.nn and torchconv.

All take turns in one process, each side in its better memory format.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from command import parser, run
from convolution import Layer, add_passes, sides
from models import MODELS, layers_of, picture_shape
from networks import forward
from record import Record
from side_by_side import Table, alternate, best, difference
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = [f"{library} {dtype}" for library in ("torch", "torchconv") for dtype in DTYPES]


def job(options: argparse.Namespace, record: Record) -> None:
    widths = {column.replace(" ", "_"): len(column) + 2 for column in COLUMNS}
    table = Table(what=-44, **{"pass": -8}, **widths, gain=7, faster=8, differs=8)
    for model in options.models:
        for layer in layers_of(model, options.size):
            for what in options.passes:
                compare(options, record, table, model, layer, what)
        compare(options, record, table, model, None, "forward")


def compare(
    options: argparse.Namespace, record: Record, table: Table, model: str, layer: Layer | None, passed: str
) -> None:
    """Time one pass of a layer, or of the whole network, by each library in each dtype."""
    what = "all of it" if layer is None else str(layer)
    facts = {"threads": options.count, "model": model, "what": what, "pass": passed, "batch": options.batch}
    if record.has(facts):
        return
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, dtype in DTYPES.items():
        torch.manual_seed(0)
        if layer is None:
            pictures = torch.rand(options.batch, *picture_shape(model, options.size))
            made = forward(MODELS[model]().eval().to(dtype), pictures.to(dtype))
        else:
            made = sides(layer, passed, layer.tensors(options.batch, dtype))
        calls |= {f"{side.replace(' ', f' {name} ')}": call for side, call in made.items()}
    outputs = [calls[f"torchconv {name} nhwc"]() for name in DTYPES]
    differs = difference(outputs[1], outputs[0])
    del outputs
    timing = alternate(calls, options.budget_seconds)
    record.add(facts, timing, differs=differs)
    times = {column: best(timing.median, column) for column in COLUMNS}
    gain = times["torchconv float32"] / times["torchconv bfloat16"]
    faster = times["torch bfloat16"] / times["torchconv bfloat16"]
    shown = (f"{1e3 * t:.3f}" for t in times.values())
    table.row(f"{model} {what}", passed, *shown, f"{gain:.2f}x", f"{faster:.2f}x", f"{differs:.0e}")


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--models", nargs="+", default=["vgg19", "mobilenet_v2"], choices=MODELS, metavar="MODEL", help="%(default)s"
    )
    add_passes(options)
    options.add_argument("--size", type=int, default=224, help="of the network's input (%(default)s)")
    options.add_argument("--batch", type=int, default=1, help="%(default)s")
    return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
