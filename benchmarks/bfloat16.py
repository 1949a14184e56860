"""bfloat16 beside float32: the forward pass of VGG-19's layers and of its features, by torch.nn and torchconv.

All take turns in one process, each side in its better memory format.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from command import parser, run
from convolution import sides
from models import MODELS, layers_of, picture_shape
from networks import forward
from record import Record
from side_by_side import Table, alternate, difference
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = [f"{library} {dtype}" for library in ("torch", "torchconv") for dtype in DTYPES]


def job(options: argparse.Namespace, record: Record) -> None:
    table = Table(
        what=-28, **{column.replace(" ", "_"): len(column) + 2 for column in COLUMNS}, gain=7, faster=8, differs=8
    )
    cases = [*((layer, str(layer)) for layer in layers_of(options.model, options.size)), (None, "all of it")]
    for layer, what in cases:
        facts = {"threads": options.count, "model": options.model, "what": what, "batch": options.batch}
        if record.has(facts):
            continue
        calls: dict[str, Callable[[], Tensor]] = {}
        for name, dtype in DTYPES.items():
            torch.manual_seed(0)
            if layer is None:
                pictures = torch.rand(options.batch, *picture_shape(options.model, options.size))
                made = forward(MODELS[options.model]().eval().to(dtype), pictures.to(dtype))
            else:
                made = sides(layer, "forward", layer.tensors(options.batch, dtype))
            calls |= {f"{side.replace(' ', f' {name} ')}": call for side, call in made.items()}
        outputs = [calls[f"torchconv {name} nhwc"]() for name in DTYPES]
        differs = difference(outputs[1], outputs[0])
        del outputs
        timing = alternate(calls, options.budget_seconds)
        record.add(facts, timing, differs=differs)
        times = {
            column: min(value for side, value in timing.median.items() if side.startswith(column + " "))
            for column in COLUMNS
        }
        gain = times["torchconv float32"] / times["torchconv bfloat16"]
        faster = times["torch bfloat16"] / times["torchconv bfloat16"]
        table.row(what, *(f"{1e3 * t:.3f}" for t in times.values()), f"{gain:.2f}x", f"{faster:.2f}x", f"{differs:.0e}")


def main() -> int:
    options = parser(__doc__, budget=1.0)
    options.add_argument("--model", default="vgg19", choices=MODELS, help="%(default)s")
    options.add_argument("--size", type=int, default=224, help="of the network's input (%(default)s)")
    options.add_argument("--batch", type=int, default=1, help="%(default)s")
    return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
