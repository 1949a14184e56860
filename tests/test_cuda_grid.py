"""The kernels of csrc/cuda, body by body as a GPU runs them, on a grid of loops on the CPU: against torch."""

from collections.abc import Iterator
from dataclasses import replace
from math import inf

import pytest
import torch
from geometries import layouts
from grid import CONV_PROBLEMS, LAYOUTS, assert_same_convolution, compiled_only
from grid_library import NARROW_INDEX, grid
from hypothesis import strategies as st
from test_geometry import FAMILIES, cases, check_valid
from torch.nn import functional as F
from torch.testing import assert_close

from torchconv import functional, ops, reference
from torchconv.functional import conv2d

pytestmark = compiled_only  # whose schemas these ops have

# As a GPU has it; and as if every tensor were too large for 32 bits, or the columns of a few positions for the memory.
LIMITS = {"as_on_a_gpu": {}, "wide_indices": {"narrow_index": 0}, "columns_in_parts": {"column_bytes": 2000}}


@pytest.fixture(params=LIMITS, ids=str)
def limits(request: pytest.FixtureRequest) -> Iterator[str]:
    with grid(**LIMITS[request.param]):
        yield request.param


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second_column"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_convolution_equals_torch(name: str, dtype: torch.dtype, layout: str, limits: str) -> None:
    problem = CONV_PROBLEMS[name]
    input, *rest = problem.tensors(dtype)
    assert_same_convolution(conv2d, F.conv2d, problem, [LAYOUTS[layout](input), *rest])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_convolution_of_16_bits_is_rounded_before_the_bias_is_added(name: str, dtype: torch.dtype) -> None:
    problem = replace(CONV_PROBLEMS[name], bias=False)
    input, weight, _ = problem.tensors(dtype)
    bias = torch.randn(weight.shape[0]).to(dtype)
    with grid():
        assert_same_convolution(conv2d, F.conv2d, problem, [input, weight, None])
        sums, output = (conv2d(input, weight, b, **problem.arguments) for b in (None, bias))
    bound = {torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]  # a direct convolution rounds but once
    assert_close(output, sums + bias.view(-1, 1, 1), rtol=0, atol=4 * bound)


@cases(30)
def test_any_geometry_equals_torch(family: str, data: st.DataObject) -> None:
    case, layout = data.draw(FAMILIES[family]), data.draw(layouts)
    narrow, columns = data.draw(st.sampled_from((0, NARROW_INDEX))), data.draw(st.sampled_from((1, 2000, 2**27)))
    with grid(narrow, columns):
        check_valid(case, "auto", layout)


@pytest.mark.parametrize("most", [inf, 0.7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 1, 3), (3, 64, 8, 8), (0, 3, 4, 4)], ids=str)
def test_rectify_equals_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, bias: bool, most: float, limits: str
) -> None:
    values, shift = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype) if bias else None
    values.view(-1)[::5] = torch.nan
    for tensor in (values, values.contiguous(memory_format=torch.channels_last)) if len(shape) == 4 else (values,):
        ours, theirs = tensor.clone(), tensor.clone()
        signs, expected = ops.rectify_(ours, shift, True, most), reference.rectify_(theirs, shift, most)
        assert torch.equal(signs, expected)
        assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        grad_output = torch.randn(shape).to(dtype)
        last = ops.is_channels_last(tensor)
        expected = reference.rectify_input(
            grad_output.contiguous(memory_format=ops.memory_format_of(len(shape), last)), expected
        )
        assert torch.equal(ops.rectify_input(grad_output, signs, last), expected)


def test_fused_layers_equal_torch(limits: str) -> None:
    x, w, b = torch.randn(2, 5, 9, 8, requires_grad=True), torch.randn(6, 5, 3, 3, requires_grad=True), torch.randn(6)
    ours = functional.conv_relu_pool2d(x, w, b, padding=1, pool_kernel_size=2)
    theirs = F.max_pool2d(F.relu(F.conv2d(x, w, b, padding=1)), 2)
    assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    for a, e in zip(
        torch.autograd.grad(ours, (x, w), direction), torch.autograd.grad(theirs, (x, w), direction), strict=True
    ):
        assert_close(a, e)


def test_what_has_no_kernel_says_so() -> None:
    x, w = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 3, 3)
    with grid(), ops.algorithm("winograd"), pytest.raises(RuntimeError, match="'winograd', which has no CUDA kernel"):
        conv2d(x, w)
