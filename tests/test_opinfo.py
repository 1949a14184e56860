"""PyTorch's own samples of these operators, and its own mistakes in calling them: torchconv answers as torch does."""

import re
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch_suite import (
    FUNCTIONS,
    assert_same_form,
    assert_same_results,
    call_of,
    is_smooth,
    one_thread,  # noqa: F401  # a fixture
    picks,
    results,
    widened,
)

from torchconv import functional

PREFIX = "nn.functional."
OPS = [op for op in op_db if op.name.removeprefix(PREFIX) in FUNCTIONS and op.name.startswith(PREFIX)]
CASES = [
    pytest.param(op, dtype, id=f"{op.name.removeprefix(PREFIX)}{op.variant_test_name}-{str(dtype)[6:]}")
    for op in OPS
    for dtype in sorted(op.supported_dtypes("cpu"), key=str)
]
# Drawing the samples, of which max_pool2d has 1440 for each dtype, is what takes time.
FAST = (torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int64, torch.bool)
FEW = 12

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def ours(op: OpInfo) -> Any:
    return getattr(functional, op.name.removeprefix(PREFIX))


def samples_of(op: OpInfo, dtype: torch.dtype) -> list[SampleInput]:
    """The samples, the same at each run."""
    torch.manual_seed(0)
    return list(op.sample_inputs("cpu", dtype))


def views(sample: SampleInput, dtype: torch.dtype) -> Iterator[SampleInput]:
    """The sample, and its values with other strides and with torch's lazy conjugation."""
    yield sample
    if dtype in (torch.float64, torch.complex128):
        yield sample.noncontiguous()
    if dtype.is_complex:
        yield sample.transform(lambda t: t.conj().resolve_conj().conj() if isinstance(t, Tensor) else t)


def compare(op: OpInfo, dtype: torch.dtype, sample: SampleInput) -> None:
    args = (sample.input, *sample.args)
    actual_call, tensors = call_of(ours(op), args, sample.kwargs)
    expected_call, _ = call_of(op.op, args, sample.kwargs)
    backward = dtype in op.supported_backward_dtypes("cpu")
    orders: dict[str, Any] = {
        "order": backward * (1 + op.supports_gradgrad),
        "forward": backward and op.supports_forward_ad,
    }
    actual = results(actual_call, tensors, **orders)
    plain = results(expected_call, tensors)
    for a, e in zip(actual["output"], plain["output"], strict=True):
        assert_same_form(a, e, sample.input)
        assert torch.equal(a, e) or (is_smooth(e) and not picks(op.name.removeprefix(PREFIX)))
    # In narrow types torch may round more than once: its result in a wide one is what both are meant to be.
    assert_same_results(actual, results(expected_call, [widened(t) for t in tensors], **orders))


def check(op: OpInfo, dtype: torch.dtype, samples: Iterable[SampleInput]) -> None:
    failures = []
    for sample in samples:
        for view in views(sample, dtype):
            try:
                compare(op, dtype, view)
            except Exception as error:
                failures.append(f"{view.summary()}\n    {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} failures, among them\n" + "\n".join(failures[:: len(failures) // 4 + 1])


def test_every_operator_of_these_families_is_here() -> None:
    family = re.compile(r"nn\.functional\..*(conv|pool|fold|local_response).*")
    others = {"nn.functional.fractional_max_pool2d", "nn.functional.fractional_max_pool3d"}
    assert {op.name for op in OPS} == {op.name for op in op_db if family.fullmatch(op.name)} - others


@pytest.mark.parametrize(("op", "dtype"), [case for case in CASES if case.values[1] in FAST])
def test_some_samples(op: OpInfo, dtype: torch.dtype) -> None:
    samples = samples_of(op, dtype)
    check(op, dtype, Random(0).sample(samples, min(FEW, len(samples))))


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_every_sample(op: OpInfo, dtype: torch.dtype) -> None:
    check(op, dtype, samples_of(op, dtype))


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "dtype"), [case for case in CASES if case.values[1] in (torch.float64, torch.complex128)]
)
def test_derivatives_are_those_of_finite_differences(op: OpInfo, dtype: torch.dtype) -> None:
    for sample in Random(0).sample(samples := samples_of(op, dtype), min(6, len(samples))):
        if "unpool" in op.name and op.variant_test_name != "grad":
            continue  # two indices may be the same place, which a finite difference can't see
        call, tensors = call_of(ours(op), (sample.input, *sample.args), sample.kwargs)
        smooth = [t.detach().requires_grad_() for t in tensors if is_smooth(t)]
        rest = [t for t in tensors if not is_smooth(t)]
        function = lambda *smooth, call=call, rest=rest: call(*smooth, *rest)  # noqa: E731
        assert gradcheck(function, smooth, check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(function, smooth, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize(
    "op", [pytest.param(op, id=op.name.removeprefix(PREFIX)) for op in OPS if op.error_inputs_func]
)
def test_mistakes_raise_what_torch_raises(op: OpInfo) -> None:
    failures = []
    for error in op.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex) as theirs:
            op.op(sample.input, *sample.args, **sample.kwargs)
        try:
            ours(op)(sample.input, *sample.args, **sample.kwargs)
        except theirs.type:
            continue
        except Exception as other:
            failures.append(f"{sample.summary()}\n    {theirs.value!r}\n    {other!r}")
        else:
            failures.append(f"{sample.summary()}\n    {theirs.value!r}\n    nothing")
    assert not failures, "\n".join(failures)
