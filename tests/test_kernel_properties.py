"""Every kernel right at every size: around those at which another kernel takes over, or a loop has a remainder.

test_geometry.py tries what arguments can be, on pictures of a few pixels; here they are wide and deep enough for each
kernel of each instruction set, and a convolution is held to the error that its algorithm may have.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import pytest
import torch
from geometries import FLOATS, LAYOUTS, Case, Sketch, pooling, some_window_is_empty
from grid import ConvProblem, compiled_only
from hypothesis import assume, note
from hypothesis import strategies as st
from test_geometry import SEED, cases, check_valid
from torch.nn import functional as F
from torch_suite import call_of, one_thread, results, widened  # noqa: F401  # one_thread is a fixture

from torchconv import functional, ops

pytestmark = compiled_only

# Vectors have 2 to 16 lanes, tiles 6 or 14 rows and two vectors' columns; blocks are 128 deep, or up to 160.
EDGES = (2, 4, 6, 8, 14, 16, 28, 32, 56, 64, 84, 112, 128, 160)
PRODUCTS = 2_000_000  # of one convolution, about: enough for each loop, and soon done
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
WINOGRAD_BOUND = 5e-6  # in float32
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # once, of what was computed in float32

layouts = st.sampled_from(("contiguous", "channels_last") * 5 + tuple(sorted(LAYOUTS)))
ranks = st.sampled_from((2, 2, 2, 1, 3))


def about(least: int, most: int) -> st.SearchStrategy[int]:
    """Any size between two; half of them an edge, or one less or more."""
    near = sorted({n for edge in EDGES for n in (edge - 1, edge, edge + 1) if least <= n <= most})
    sizes = st.integers(least, most)
    return st.one_of(sizes, st.sampled_from(near)) if near else sizes


class Family(NamedTuple):
    """Bounds of a convolution's sizes; channels are those of a group."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    groups: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 3)
    stride: int = 1
    dilation: int = 1
    size: int = 130


FAMILIES = {
    "few_inputs": Family((1, 5), (7, 70), kernel=(2, 11), stride=3),
    "few_channels": Family((1, 33), (1, 33), kernel=(1, 5), stride=3, dilation=2),
    "many_channels": Family((30, 200), (30, 70), stride=2, dilation=2),
    "one_tap": Family((1, 270), (1, 140), kernel=(1, 1), stride=3),
    "depthwise": Family((1, 1), (1, 1), groups=(2, 70), kernel=(1, 7), stride=3, dilation=2),
    "groups": Family((1, 20), (1, 20), groups=(2, 5), stride=2, dilation=2),
    "small_pictures": Family((1, 270), (1, 140), stride=2, size=6),
    "wide_gaps": Family((1, 70), (1, 70), groups=(1, 2), kernel=(2, 5), stride=2, dilation=12, size=24),
    "side_by_side": Family((1, 140), (1, 70), groups=(1, 3), kernel=(1, 4), size=60),
    "winograd": Family((1, 140), (1, 140), kernel=(3, 5), dilation=4, size=60),
}


@st.composite
def convolutions(draw: st.DrawFn, family: Family) -> ConvProblem:
    rank = draw(ranks)
    inputs, outputs, groups = (draw(about(*bounds)) for bounds in (family.inputs, family.outputs, family.groups))
    batch, longest = draw(st.sampled_from((0, 1, 1, 1, 2, 2, 3))), min(family.kernel[1], (11, 7, 3)[rank - 1])
    numbers = ((min(family.kernel[0], longest), longest), (1, family.stride), (1, family.dilation), (0, 3))
    kernel, stride, dilation, padding = (tuple(draw(st.integers(*n)) for _ in range(rank)) for n in numbers)
    if family is FAMILIES["wide_gaps"]:  # whose outermost taps may meet nothing but padding
        padding = tuple(
            draw(st.sampled_from((p, d * (k - 1) // 2))) for p, k, d in zip(padding, kernel, dilation, strict=True)
        )
    if family is FAMILIES["winograd"] and rank > 1:
        plane = draw(st.sampled_from(((3, 3), (3, 3), (1, 3), (3, 1), (5, 5), (1, 5), (5, 1))))
        kernel = (*[draw(st.integers(1, 4))] * (rank - 2), *plane)
    if family is FAMILIES["side_by_side"]:  # windows that tile the input
        stride, dilation, padding = kernel, (1,) * rank, (0,) * rank
    room, sizes = PRODUCTS // (max(batch, 1) * groups * inputs * outputs * prod(kernel)), []
    for i in reversed(range(rank)):  # the width first: rows are what vectors and blocks are cut from
        least = max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i])
        sizes.append(max(least, min(draw(about(1, family.size)), room)))
        sizes[-1] -= sizes[-1] % kernel[i] if family is FAMILIES["side_by_side"] else 0
        room //= sizes[-1]
    input, weight = (batch, groups * inputs, *reversed(sizes)), (groups * outputs, inputs, *kernel)
    return ConvProblem(input, weight, stride, padding, dilation, groups, draw(st.booleans()))


def served_by_winograd(problem: ConvProblem) -> bool:
    stride, padding, _, groups = problem.geometry
    *depth, height, width = (1, *problem.weight[2:]) if len(stride) == 1 else problem.weight[2:]
    through = depth in ([3], [5]) and height == width == 1 and not any(padding[1:])
    return {*stride, groups} == {1} and (through or {height, width} in ({3}, {5}, {1, 3}, {1, 5}))


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = ops.isa()
    ops.set_isa(name)
    try:
        yield
    finally:
        ops.set_isa(str(before))


def check_convolution(isa: str, family: str, data: st.DataObject) -> None:
    problem = data.draw(convolutions(FAMILIES[family]))
    dtypes = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
    # Of other dtypes the kernels of amx are those of avx512.
    dtype = torch.bfloat16 if isa == "amx" else data.draw(st.sampled_from(dtypes))
    winograd = served_by_winograd(problem)
    algorithm = data.draw(st.sampled_from(("auto", "im2col", "winograd")[: 3 if winograd else 2]))
    names = [data.draw(layouts) for _ in range(3)]
    of_input, of_weight, of_grad = (LAYOUTS[layout] for layout in names)
    input, weight, bias = problem.tensors(dtype)
    name, arguments = f"conv{len(problem.stride)}d", (of_input(input), of_weight(weight), bias)  # type: ignore[arg-type]
    ours, tensors = call_of(getattr(functional, name), arguments, problem.arguments)
    theirs, _ = call_of(getattr(F, name), arguments, problem.arguments)
    with instruction_set(isa), ops.algorithm(algorithm):
        actual = results(ours, tensors, 1, layout=of_grad)
    wide = [widened(t).contiguous() for t in tensors]
    exact = results(theirs, wide, 1, layout=of_grad)
    # Where a sum cancels, its error is still that of its terms: of their squares' sum, or, where terms repeat and their
    # errors with them, of their absolute values'.
    power = 1 if any("expanded" in layout for layout in names) else 2
    terms = results(theirs, [t.abs() ** power for t in wide], 1, layout=lambda t: of_grad(t).abs() ** power)
    bound = WINOGRAD_BOUND if winograd and algorithm != "im2col" and dtype != torch.float64 else BOUNDS[dtype]
    for kind, expected in exact.items():
        for i, (a, e, powers) in enumerate(zip(actual[kind], expected, terms[kind], strict=True)):
            assert (a.shape, a.dtype) == (e.shape, dtype)
            error, size = (a.double() - e).norm(), max(e.norm(), (powers ** (1 / power)).norm())
            note(f"{kind} {i}: error {error:.1e} of {size:.1e}")
            assert error <= bound * size + ROUNDING.get(dtype, 0) * e.norm()


POOLING_ISAS = [isa for isa in ops.available_isas() if isa != "amx"]  # which has avx512's
POOLINGS = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "unfold", "fold")


@st.composite
def poolings(draw: st.DrawFn, family: str) -> Case:
    columns = family in ("unfold", "fold")  # torch has them for pictures only
    rank, name = (2, family) if columns else (draw(ranks), "")
    window, kernel, stride, padding = pooling(draw, rank)
    if draw(st.integers(0, 3)) == 0:
        kernel, stride, padding, window = [2] * rank, [2] * rank, [0] * rank, {"kernel_size": 2, "stride": 2}
    window["dilation"] = dilation = draw(st.sampled_from((1, 1, 2))) if columns or family == "max_pool" else 1
    most = (5, 9, 140)[-rank:]
    sizes = [draw(about(dilation * (k - 1) + 1, n)) for k, n in zip(kernel, most, strict=True)]
    assume(not any(some_window_is_empty(*of, dilation) for of in zip(sizes, kernel, stride, padding, strict=True)))
    shape = draw(st.integers(1, 3)), draw(about(1, 70)), *sizes
    options: dict[str, Any] = {"ceil_mode": draw(st.booleans())}
    if family == "max_pool":
        options["return_indices"] = draw(st.booleans())
    elif family == "avg_pool":
        options["count_include_pad"] = draw(st.booleans())
        del window["dilation"]
    elif columns:
        window["padding"], window["stride"], options = tuple(padding), tuple(stride), {}
    else:
        window, options = {}, {"output_size": [draw(about(1, n)) for n in most]}
    if family == "fold":
        spans = [dilation * (k - 1) + 1 for k in kernel]
        counts = [(n + 2 * p - d) // s + 1 for n, p, d, s in zip(sizes, padding, spans, stride, strict=True)]
        shape, options = (shape[0], shape[1] * prod(kernel), prod(counts)), {"output_size": sizes}
    values = draw(st.sampled_from(("normal", "rounded")))
    input = Sketch(shape, draw(st.sampled_from(FLOATS)), draw(layouts), values)
    return Case(name or f"{family}{rank}d", {"input": input, **window, **options})


def on_each_isa(names: Any, isas: Sequence[str] = ops.available_isas()) -> Callable[[Any], Any]:
    each = pytest.mark.parametrize("isa", isas or ["none"])
    families = pytest.mark.parametrize("family", [pytest.param(name, id=f"{name}-seed{SEED}") for name in names])
    return lambda test: each(families(test))


@cases(60, on_each_isa(FAMILIES))
def test_convolution(isa: str, family: str, data: st.DataObject) -> None:
    check_convolution(isa, family, data)


@pytest.mark.exhaustive
@pytest.mark.slow
@cases(200, on_each_isa(FAMILIES))
def test_convolution_at_length(isa: str, family: str, data: st.DataObject) -> None:
    check_convolution(isa, family, data)


def check_pooling(isa: str, family: str, data: st.DataObject) -> None:
    case, grad_layout = data.draw(poolings(family)), data.draw(layouts)
    with instruction_set(isa):
        check_valid(case, "auto", grad_layout)


@cases(30, on_each_isa(POOLINGS, POOLING_ISAS))
def test_pooling(isa: str, family: str, data: st.DataObject) -> None:
    check_pooling(isa, family, data)


@pytest.mark.exhaustive
@pytest.mark.slow
@cases(100, on_each_isa(POOLINGS, POOLING_ISAS))
def test_pooling_at_length(isa: str, family: str, data: st.DataObject) -> None:
    check_pooling(isa, family, data)
