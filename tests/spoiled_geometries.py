"""Ways to spoil a valid call of a convolution or a pooling."""

from dataclasses import replace
from math import inf, nan
from typing import Any

import torch
from geometries import COMPLEX, FLOATS, WHOLE, Case, Sketch
from hypothesis import strategies as st

# Torch would take some of these for other numbers, and ask for the machine's whole memory.
RECKLESS = (2**31, 10**15 + 37, 2**63, 2**64, 10**30, -(10**15), -(2**63), -(10**30))
WRONG: dict[str, tuple[Any, ...]] = {
    "number": (0, -1, 1.0, 1.5, inf, "1", "same", None, True, 1j, [], (1,) * 4, object),
    "flag": (None, 1, 0, 1.0, "yes", [], 2),
    "factor": (0, -1, 1.5, "1", None, True, 1j, [2], -inf, nan),
    "tensor": (None, 1, 1.5, [1.0, 2.0], "tensor", (), object),
    "count": (0, -1, 4, 7, 1.0, "1", None, True, [1], (1,)),
}
KINDS = {
    **dict.fromkeys(("ceil_mode", "return_indices", "count_include_pad"), "flag"),
    **dict.fromkeys(("norm_type", "alpha", "beta", "k"), "factor"),
    **dict.fromkeys(("groups", "divisor_override"), "count"),
    **dict.fromkeys(("input", "weight", "bias", "indices"), "tensor"),
}
DTYPES = (*FLOATS, *COMPLEX, *WHOLE, torch.bool, torch.float8_e4m3fn, torch.complex32)


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    return replace(value, dtype=dtype, layout="contiguous") if isinstance(value, Sketch) else value


def spoiled_shape(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Another number of dimensions, or one that is empty, longer or shorter."""
    i = draw(st.integers(0, len(shape) - 1))
    size = draw(st.sampled_from(((), (0,), (shape[i] + 1,), (max(0, shape[i] - 1),), (1, shape[i]), (shape[i], 2))))
    return (*shape[:i], *size, *shape[i + 1 :])


@st.composite
def spoiled(draw: st.DrawFn, case: Case) -> Case:
    """The same call with one argument spoiled, or all tensors in another dtype."""
    name = draw(st.sampled_from(sorted(case.arguments)))
    value = case.arguments[name]
    kind = KINDS.get(name, "number")
    if not isinstance(value, Sketch):
        wrong = draw(st.sampled_from(WRONG[kind]))
        if kind == "number" and draw(st.booleans()):
            # In the first place, the only one that torch looks at the type of.
            wrong = [wrong, *[1] * (case.rank - 1)]
        return replace(case, arguments={**case.arguments, name: wrong})
    how = draw(st.sampled_from(("shape", "shape", "dtype", "every dtype", "no tensor")))
    if how == "every dtype":
        dtype = draw(st.sampled_from(DTYPES))
        return replace(case, arguments={n: in_dtype(v, dtype) for n, v in case.arguments.items()})
    if how == "shape":
        wrong = replace(value, shape=spoiled_shape(draw, value.shape), layout="contiguous")
    elif how == "dtype":
        wrong = in_dtype(value, draw(st.sampled_from(DTYPES)))
    else:
        wrong = draw(st.sampled_from(WRONG["tensor"]))
    return replace(case, arguments={**case.arguments, name: wrong})


@st.composite
def reckless(draw: st.DrawFn, case: Case) -> Case:
    """The same call with a number that no geometry has."""
    names = [n for n, v in case.arguments.items() if isinstance(v, (int, tuple, list)) and n not in KINDS]
    name = draw(st.sampled_from([*names, *(["groups"] if "groups" in case.arguments else [])]))
    number: Any = draw(st.sampled_from(RECKLESS))
    if name != "groups" and (isinstance(case.arguments[name], list) or draw(st.booleans())):
        i = draw(st.integers(0, case.rank - 1))
        number = [*[1] * i, number, *[1] * (case.rank - 1 - i)]
    return replace(case, arguments={**case.arguments, name: number})
