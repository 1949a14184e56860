"""Every operator on a GPU, beside torch's in float64 on the CPU: the problems of the CPU's own tests."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from device import DEVICE, GPU, at_device, leaves, moved, on_the_device
from geometries import FAMILIES
from grid import CONV_PROBLEMS, LAYOUTS, WINOGRAD_PROBLEMS, assert_same_convolution, filled, gradients
from hypothesis import strategies as st
from pooling import DTYPES, Pooling, assert_same_pooling
from test_adaptive_pool import SIZES
from test_adaptive_pool import pooling as adaptive_pooling
from test_avg_pool import PROBLEMS as AVG_POOLS
from test_conv_any_rank import PROBLEMS as CONV_PROBLEMS_OF_ANY_RANK
from test_fused import GEOMETRIES, POOLS, fused, operands
from test_geometry import cases
from test_lp_pool import WINDOWS as LP_POOLS
from test_lp_pool import pooling as lp_pooling
from test_max_pool import KINDS, assert_same_bits, values
from test_max_pool import PROBLEMS as MAX_POOLS
from test_max_unpool import PROBLEMS as UNPOOLS
from test_opinfo import FAST, OPS, ours, samples_of
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.testing._internal.opinfo.core import OpInfo
from torch.utils._pytree import tree_leaves
from torch_suite import (
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

pytestmark = on_the_device

CONVOLUTIONS = CONV_PROBLEMS | CONV_PROBLEMS_OF_ANY_RANK | {f"winograd_{k}": p for k, p in WINOGRAD_PROBLEMS.items()}
FEW = 12  # of PyTorch's samples of an operator in a dtype


@pytest.fixture(scope="module", autouse=True)
def arithmetic() -> Iterator[None]:
    """What a GPU has: no Winograd. And sums of 16-bit products are float32 until they are whole."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False
    with ops.algorithm("auto" if GPU else "im2col"):
        yield
    matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = before


def in_format(tensor: Tensor, channels_last: bool) -> Tensor:
    last = channels_last and tensor.dim() in (4, 5)
    return tensor.contiguous(memory_format=ops.memory_format_of(tensor.dim(), last))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, channels_last: bool, dtype: torch.dtype) -> None:
    problem = CONVOLUTIONS[name]
    if dtype in (
        torch.bfloat16,
        torch.float16,
    ):  # whose sums are rounded before the bias is added, as torch's are on a GPU
        problem = replace(problem, bias=False)
    input, weight, bias = problem.tensors(dtype)
    function = f"conv{input.dim() - 2}d"
    tensors = in_format(input, channels_last), weight, bias
    assert_same_convolution(at_device(getattr(functional, function)), getattr(F, function), problem, tensors)
    output = getattr(functional, function)(*moved(tensors), **problem.arguments)
    assert output.device.type == DEVICE.type
    if output.numel():  # an empty tensor is in both formats
        assert output.stride() == in_format(output, channels_last).stride()


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("problem", ["3x3_padded", "three_groups_strided", "depthwise"])
def test_convolution_of_any_strides(problem: str, name: str) -> None:
    # A copy to the device would lose them.
    layout, arguments = LAYOUTS[name], CONV_PROBLEMS[problem].arguments
    tensors = CONV_PROBLEMS[problem].tensors()
    x, w, b = leaves(tensors)
    output = functional.conv2d(layout(x), layout(w), b, **arguments)
    exact = leaves_on_the_cpu(tensors)
    expected = F.conv2d(layout(exact[0]), layout(exact[1]), exact[2], **arguments)
    grad_output = filled(output.shape, seed=3)
    assert_close(output.cpu(), expected)
    mine = gradients(output, [x, w, b], layout(moved(grad_output)))
    for grad, theirs in zip(mine, gradients(expected, exact, layout(grad_output)), strict=True):
        assert_close(grad.cpu(), theirs)


def leaves_on_the_cpu(tensors: tuple[Tensor | None, ...]) -> list[Any]:
    return [None if t is None else t.detach().requires_grad_() for t in tensors]


class AtDevice(Pooling):
    def ours(self, input: Tensor, **more: Any) -> Any:
        return at_device(super().ours)(input, **more)


POOLINGS: dict[str, Pooling] = {
    **{f"avg_{name}": problem for name, problem in AVG_POOLS.items()},
    **{f"adaptive_{kind}_{name}": adaptive_pooling(kind, name) for kind in ("avg", "max") for name in SIZES},
    **{f"lp_{name}_{norm}": lp_pooling(name, norm) for name in LP_POOLS for norm in (1, 2.0, 3)},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling(name: str, dtype: torch.dtype) -> None:
    pooling = POOLINGS[name]
    problem = AtDevice(pooling.name, pooling.input, pooling.arguments)
    # In a 16-bit type the reference of powers rounds each of its steps, and torch.gather's backward each sum.
    rounds = name.startswith(("lp", "adaptive_max")) and dtype.itemsize == 2
    loose = {"rtol": 16 * torch.finfo(dtype).eps, "atol": 16 * torch.finfo(dtype).eps} if rounds else {}
    for format in ("contiguous", "channels_last"):
        values = filled(problem.input, dtype)
        assert_same_pooling(problem, values.abs() + 0.1 if name.startswith("lp") else values, format, **loose)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", MAX_POOLS)
def test_max_pooling_to_the_bit_and_its_gradient(name: str, layout: str, kind: str, dtype: torch.dtype) -> None:
    shape, window = MAX_POOLS[name]
    input = values(shape, kind, dtype)
    input = LAYOUTS[layout](input) if input.dim() == 4 else input
    expected, indices = F.max_pool2d(input, **window, return_indices=True)
    output, places = at_device(functional.max_pool2d)(input, **window, return_indices=True)
    assert_same_bits(output, expected)
    assert torch.equal(places, indices)
    mine, exact = input.clone().requires_grad_(), input.double().requires_grad_()
    pooled = at_device(functional.max_pool2d)(mine, **window)
    assert_same_bits(pooled.detach(), expected)
    grad_output = filled(expected.shape, dtype, 3)
    (theirs,) = gradients(F.max_pool2d(exact, **window), [exact], grad_output.double())
    assert_close(gradients(pooled, [mine], grad_output)[0], theirs.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", UNPOOLS)
def test_unpooling(name: str, dtype: torch.dtype) -> None:
    problem, (maxima, indices) = UNPOOLS[name].pooling, UNPOOLS[name].tensors(dtype)
    mine, theirs = maxima.clone().requires_grad_(), maxima.clone().requires_grad_()
    output = at_device(getattr(functional, problem.name))(mine, indices, **problem.arguments)
    expected = getattr(F, problem.name)(theirs, indices, **problem.arguments)
    assert torch.equal(output, expected)
    grad_output = filled(output.shape, dtype, 3)
    assert torch.equal(gradients(output, [mine], grad_output)[0], gradients(expected, [theirs], grad_output)[0])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("pool", [None, *POOLS])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_fused_layers(
    geometry: dict[str, Any], pool: dict[str, Any] | None, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    window = {name.removeprefix("pool_"): value for name, value in (pool or {}).items()}

    def pieces(*args: Any) -> Tensor:
        output = torch.relu(F.conv2d(*args, **geometry))
        return output if pool is None else F.max_pool2d(output, **{"kernel_size": 2, **window})

    # Values of some hundredths apart: no pooling, and no ReLU, falls out differently in float32.
    x, w, b = (t.detach().mul(4).round().div(4) for t in operands(torch.float64, geometry.get("groups", 1)))
    b += 1 / 32
    x, w = x.contiguous(memory_format=memory_format), w.contiguous(memory_format=memory_format)
    actual = results(at_device(lambda *t: fused(pool)(*t, **geometry)), [t.to(dtype) for t in (x, w, b)], order=2)
    assert_same_results(actual, results(pieces, [x, w, b], order=2))


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name.removeprefix("nn.functional.")) for op in OPS])
@pytest.mark.parametrize("dtype", FAST, ids=str)
def test_torch_s_own_samples(op: OpInfo, dtype: torch.dtype) -> None:
    if dtype not in op.supported_dtypes("cpu") & op.supported_dtypes(DEVICE.type):
        pytest.skip(f"torch's has no {dtype}")
    samples = samples_of(op, dtype)
    backward = dtype in op.supported_backward_dtypes("cpu") & op.supported_backward_dtypes(DEVICE.type)
    orders = {"order": backward * (1 + op.supports_gradgrad), "forward": backward and op.supports_forward_ad}
    for sample in Random(1).sample(samples, min(FEW, len(samples))):
        args = sample.input, *sample.args
        call, tensors = call_of(at_device(ours(op)), args, sample.kwargs)
        exact, _ = call_of(op.op, args, sample.kwargs)
        actual = results(call, tensors, **orders)
        assert_same_results(actual, results(exact, [widened(t) for t in tensors], **orders))
        for mine, theirs in zip(actual["output"], tree_leaves(op.op(*args, **sample.kwargs)), strict=True):
            assert_same_form(mine, theirs.detach(), sample.input)
            assert torch.equal(mine, theirs) or not picks(op.name.removeprefix("nn.functional."))


@cases(40)
def test_random_geometries(family: str, data: st.DataObject) -> None:
    case = data.draw(FAMILIES[family])
    made = case.made()
    call, tensors = call_of(at_device(getattr(functional, case.function)), (), made)
    theirs, _ = call_of(getattr(F, case.function), (), made)
    wide = [widened(t).contiguous() for t in tensors]
    smooth = is_smooth(made["input"])
    if not smooth:  # torch has no convolution nor pooling of integers on a GPU
        tensors = wide = [t.double() for t in wide]
    order = int(smooth and all(0 not in t.shape[-case.rank :] for t in tree_leaves(theirs(*wide))))
    assert_same_results(results(call, tensors, order), results(theirs, wide, order))
