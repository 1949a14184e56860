"""Any valid geometry gives what torch gives, forward and backward; where torch refuses one, so do we."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from geometries import FAMILIES, LAYOUTS, Case, Sketch, layouts, spread
from grid import ALGORITHMS
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from spoiled_geometries import reckless, spoiled
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch_suite import (
    TERMS,
    assert_near,
    assert_same_form,
    assert_same_results,
    call_of,
    is_smooth,
    one_thread,  # noqa: F401  # a fixture
    picks,
    results,
    widened,
)

from torchconv import functional, ops

SEED = int(os.environ.get("TORCHCONV_SEED", "0"))
# In the names of the tests, so that each report has it.
families = pytest.mark.parametrize("family", [pytest.param(name, id=f"{name}-seed{SEED}") for name in FAMILIES])

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning"),
]


def cases(count: int, parametrized: Callable[[Any], Any] = families) -> Callable[[Any], Any]:
    """So many for each family (or what else is given), the same at each run; a failure prints how to call it again."""
    chosen = settings(
        max_examples=count,
        deadline=None,
        derandomize=False,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    return lambda test: parametrized(seed(SEED)(chosen(given(data=st.data())(test))))


def every_case(test: Any) -> Any:
    return pytest.mark.exhaustive(pytest.mark.slow(cases(600)(test)))


def without_float16(case: Case) -> Case:
    """What torch can be given: some of its float16 convolutions, which are oneDNN's, crash the process."""
    sketches = {name: value for name, value in case.arguments.items() if isinstance(value, Sketch)}
    if not case.function.startswith("conv") or {value.dtype for value in sketches.values()} != {torch.float16}:
        return case
    brain = {name: replace(value, dtype=torch.bfloat16) for name, value in sketches.items()}
    return replace(case, arguments={**case.arguments, **brain})


def check_valid(case: Case, algorithm: str, grad_layout: str) -> None:
    made = case.made()
    ours, tensors = call_of(getattr(functional, case.function), (), made)
    theirs, _ = call_of(getattr(F, case.function), (), made)
    # Some of torch's functions lack a dtype, or stumble over strides: what is exact is computed without either.
    wide = [widened(t).contiguous() for t in tensors]
    # Torch's backward refuses an output of no pixels.
    order = int(is_smooth(made["input"]) and all(0 not in t.shape[-case.rank :] for t in tree_leaves(theirs(*wide))))
    layout = LAYOUTS[grad_layout]
    with ops.algorithm(algorithm):
        actual = results(ours, tensors, order, layout=layout)
    assert_same_results(actual, results(theirs, wide, order, layout=layout))
    assert all(t.dtype == made["input"].dtype for t in actual["output"][:1])
    try:
        plain = tree_leaves(getattr(F, case.function)(**without_float16(case).made()))
    except RuntimeError:
        return
    for a, e in zip(actual["output"], plain, strict=True):
        assert_same_form(a, e.to(a.dtype), made["input"])
        assert torch.equal(a, e) or not picks(case.function)


@cases(40)
def test_valid_geometry(family: str, data: st.DataObject) -> None:
    check_valid(data.draw(FAMILIES[family]), data.draw(st.sampled_from(ALGORITHMS)), data.draw(layouts))


@every_case
def test_valid_geometry_at_length(family: str, data: st.DataObject) -> None:
    check_valid(data.draw(FAMILIES[family]), data.draw(st.sampled_from(ALGORITHMS)), data.draw(layouts))


def outcome(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[list[Any], Exception | None]:
    """What a call returns, and what it raises."""
    try:
        return tree_leaves(function(**arguments)), None
    except Exception as error:
        return [], error


# What Python raises inside torch's own code, when that stumbles over an argument, isn't to be imitated.
STUMBLED = AttributeError, ValueError, IndexError, AssertionError, ZeroDivisionError


def went_unseen_by_torch(case: Case, outputs: list[Any]) -> bool:
    """Whether torch returned something without a look at what is wrong."""
    if all(isinstance(t, Tensor) and t.numel() == 0 for t in outputs):
        return True
    if case.function.startswith("max_unpool"):  # the window is there for the output's size, or not at all
        return True
    if case.function.startswith("adaptive_avg_pool"):  # to one pixel: the mean, of whatever dimensions there are
        return set(spread(case.arguments["output_size"], case.rank)) == {1}
    if case.function.startswith("conv_transpose"):  # which of its kernels look at these depends on the dtype
        bias, dilation = case.arguments["bias"], spread(case.arguments["dilation"], case.rank)
        return 0 in dilation or (bias is not None and bias.dtype != case.arguments["input"].dtype)
    return False


def check_invalid(case: Case) -> None:
    made = without_float16(case).made()
    contiguous = {name: value.contiguous() if isinstance(value, Tensor) else value for name, value in made.items()}
    expected, theirs = outcome(getattr(F, case.function), contiguous)
    actual, ours = outcome(getattr(functional, case.function), made)
    note(f"torch: {theirs!r}\ntorchconv: {ours!r}")
    if ours is not None and not isinstance(ours, NotImplementedError):
        assert str(ours).startswith(f"{case.function}: ")
        assert "\n" not in str(ours)
    if theirs is None and ours is None:
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == e.dtype
            assert_near(a, e, TERMS["output"])
    elif theirs is None:
        assert went_unseen_by_torch(case, expected)
    elif ours is None:
        assert isinstance(theirs, NotImplementedError)  # torch has it not in this dtype
    elif isinstance(theirs, (NotImplementedError, *STUMBLED)) or case.function.startswith("max_unpool"):
        # Of a dtype that torch doesn't have, ours looks further, at what else is wrong.
        assert isinstance(ours, (RuntimeError, TypeError, ValueError))
    else:
        assert isinstance(ours, RuntimeError if isinstance(theirs, RuntimeError) else type(theirs))


@cases(40)
def test_invalid_geometry(family: str, data: st.DataObject) -> None:
    check_invalid(data.draw(spoiled(data.draw(FAMILIES[family]))))


@every_case
def test_invalid_geometry_at_length(family: str, data: st.DataObject) -> None:
    check_invalid(data.draw(spoiled(data.draw(FAMILIES[family]))))


@cases(40)
def test_geometry_beyond_all_bounds(family: str, data: st.DataObject) -> None:
    case = data.draw(reckless(data.draw(FAMILIES[family])))
    with pytest.raises((RuntimeError, ValueError, TypeError), match=rf"\A{case.function}: .*\Z"):
        getattr(functional, case.function)(**case.made())
