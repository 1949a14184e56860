"""Fills docs/operators.md: what each operator can do, by torch.nn.functional and by torchconv, from a run.

python docs/operator_table.py            # writes docs/operators.md
python docs/operator_table.py --check    # exits with 1 if that file says something else
"""

import argparse
import platform
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.nn import functional as F
from tqdm import tqdm

from torchconv import functional

PAGE = Path(__file__).with_name("operators.md")
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "complex128": torch.complex128,
    "complex64": torch.complex64,
    "int64": torch.int64,
}
Operator = Callable[..., Tensor]
HEADER = """# What each operator can do

Written by `docs/operator_table.py`, which tries everything below on both libraries (torch {version}, CPU, {machine});
the tests run it again and compare. **both**: torch and torchconv can; **torchconv**, **torch**: that one only; –: none.

- *gradient*, *double backward*, *forward mode*: against finite differences, in float64 (`gradcheck`, `gradgradcheck`).
- *vmap*: equal to a loop, without torch's warning that it runs one.
- *compile*: `torch.compile(fullgraph=True, dynamic=True)`, forward and backward, equal to eager for two sizes.
- *channels-last*: a channels-last picture or volume gives a channels-last result.
- *dtypes*: for which a call returns something, on the CPU.

"""
GAPS = """
## Gaps

- `torch.compile` doesn't trace forward mode through torchconv's Functions; eager forward mode is there.
- `unfold` and `fold` give a matrix, which has no memory format; in one and three dimensions they are torchconv's alone
  (`unfold` takes its rank from the number of values in `kernel_size`).
- float8 and quantised tensors: none of these operators takes them.
"""


def picture(rank: int, size: int = 5) -> Tensor:
    return torch.randn(2, 4, *[size] * rank, dtype=torch.float64)


def operators(library: ModuleType) -> dict[str, tuple[Operator, list[Tensor]]]:
    """Each operator as a function of tensors, and tensors for it, the first of which has a batch."""
    table: dict[str, tuple[Operator, list[Tensor]]] = {}

    def add(name: str, tensors: list[Tensor], **arguments: Any) -> None:
        table[name] = (partial(getattr(library, name), **arguments), tensors)

    for rank in (1, 2, 3):
        x, kernel = picture(rank), [3] * rank
        add(f"conv{rank}d", [x, torch.randn(6, 2, *kernel).double(), torch.randn(6).double()], padding=1, groups=2)
        add(f"conv_transpose{rank}d", [x, torch.randn(4, 3, *kernel).double(), torch.randn(6).double()], groups=2)
        add(f"max_pool{rank}d", [x], kernel_size=3, stride=2, padding=1)
        values, indices = getattr(F, f"max_pool{rank}d")(picture(rank, 4), 2, return_indices=True)
        unpool = getattr(library, f"max_unpool{rank}d")
        table[f"max_unpool{rank}d"] = (partial(_unpool, unpool), [values, indices])
        add(f"avg_pool{rank}d", [x], kernel_size=3, stride=2, padding=1)
        add(f"adaptive_avg_pool{rank}d", [x], output_size=4)
        add(f"adaptive_max_pool{rank}d", [x], output_size=4)
        add(f"lp_pool{rank}d", [x.abs() + 1], norm_type=2.0, kernel_size=2)
    add("linear", [torch.randn(2, 5).double(), torch.randn(3, 5).double(), torch.randn(3).double()])
    add("local_response_norm", [picture(2)], size=3)
    add("unfold", [picture(2)], kernel_size=3, padding=1)
    add("fold", [torch.randn(2, 4 * 9, 25).double()], output_size=5, kernel_size=3, padding=1)
    return table


def _unpool(unpool: Operator, values: Tensor, indices: Tensor) -> Tensor:
    return unpool(values, indices, 2)


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors]


def differentiates(operator: Operator, tensors: list[Tensor]) -> bool:
    return gradcheck(operator, leaves(tensors), fast_mode=True)


def differentiates_twice(operator: Operator, tensors: list[Tensor]) -> bool:
    return gradgradcheck(operator, leaves(tensors), fast_mode=True)


def has_forward_mode(operator: Operator, tensors: list[Tensor]) -> bool:
    return gradcheck(operator, leaves(tensors), check_forward_ad=True, check_backward_ad=False, fast_mode=True)


def is_vectorised(operator: Operator, tensors: list[Tensor]) -> bool:
    examples = [torch.stack([t, t.flip(0)]) for t in tensors]
    actual = vmap(operator)(*examples)
    torch.testing.assert_close(actual, torch.stack([operator(*example) for example in zip(*examples, strict=True)]))
    return True


def compiles(operator: Operator, tensors: list[Tensor]) -> bool:
    torch.compiler.reset()
    compiled = torch.compile(lambda *args: operator(*args), fullgraph=True, dynamic=True, backend="aot_eager")
    for repeats in (1, 2):
        args = leaves([tensors[0].repeat(repeats, *[1] * (tensors[0].dim() - 1)), *tensors[1:]])
        if not args[-1].is_floating_point():  # indices go with their values
            args[-1] = args[-1].repeat(repeats, *[1] * (args[-1].dim() - 1))
        outputs = compiled(*args), operator(*args)
        torch.testing.assert_close(*outputs)
        wanted = [t for t in args if t.requires_grad]
        gradients = (torch.autograd.grad(output.sin().sum(), wanted) for output in outputs)
        torch.testing.assert_close(*gradients)
    return True


def keeps_channels_last(operator: Operator, tensors: list[Tensor]) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensors[0].dim() not in formats:
        return False
    wanted = formats[tensors[0].dim()]
    output = operator(tensors[0].contiguous(memory_format=wanted), *tensors[1:])
    return output.dim() in formats and output.is_contiguous(memory_format=formats[output.dim()])


def takes(dtype: torch.dtype, operator: Operator, tensors: list[Tensor]) -> bool:
    operator(*[t.to(dtype) if t.is_floating_point() else t for t in tensors])
    return True


PROPERTIES: dict[str, Callable[[Operator, list[Tensor]], bool]] = {
    "gradient": differentiates,
    "double backward": differentiates_twice,
    "forward mode": has_forward_mode,
    "vmap": is_vectorised,
    "compile": compiles,
    "channels-last": keeps_channels_last,
}


def holds(trial: Callable[[Operator, list[Tensor]], bool], operator: Operator, tensors: list[Tensor]) -> bool:
    """Whether a trial succeeds; what an operator can't do, it says in many kinds of error."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="There is a performance drop")
        try:
            return trial(operator, tensors)
        except Exception:
            return False


def verdict(trial: Callable[[Operator, list[Tensor]], bool], cases: list[tuple[Operator, list[Tensor]]]) -> str:
    theirs, ours = (holds(trial, *case) for case in cases)
    return {(True, True): "both", (True, False): "torch", (False, True): "torchconv", (False, False): "–"}[theirs, ours]


def table() -> str:
    torch.manual_seed(0)
    theirs, ours = operators(F), operators(functional)
    lines = [f"| operator | {' | '.join([*PROPERTIES, 'dtypes of both', 'of torchconv alone'])} |"]
    lines.append("|---" * (len(PROPERTIES) + 3) + "|")
    for name in tqdm(sorted(ours), unit="operator", disable=not sys.stderr.isatty()):
        cases = [theirs[name], ours[name]]
        cells = [verdict(trial, cases) for trial in PROPERTIES.values()]
        dtypes = {dtype: verdict(partial(takes, value), cases) for dtype, value in DTYPES.items()}
        if "torch" in dtypes.values():
            raise AssertionError(f"{name}: torch takes a dtype that torchconv refuses: {dtypes}")
        for whose in ("both", "torchconv"):
            cells.append(", ".join(dtype for dtype, taken in dtypes.items() if taken == whose) or "–")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the page instead of writing it")
    check = parser.parse_args().check
    rows = table()
    if check:
        same = rows in PAGE.read_text()
        print("docs/operators.md is up to date" if same else f"docs/operators.md should say:\n{rows}")
        return 0 if same else 1
    version = torch.__version__.partition("+")[0]
    PAGE.write_text(HEADER.format(version=version, machine=platform.machine()) + rows + GAPS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
