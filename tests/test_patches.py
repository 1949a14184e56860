"""conv_with: torch's convolutions when given the inner product, and the definition when given something else."""

import weakref
from collections.abc import Callable, Iterator
from itertools import product
from math import inf
from typing import Any

import pytest
import torch
from grid import BACKENDS, CONV_PROBLEMS, ConvProblem, assert_same_convolution, filled, gradients, leaf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv
from torchconv.functional import conv_with
from torchconv.functional.patches import Reduction

TORCHS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
PROBLEMS: dict[str, ConvProblem] = CONV_PROBLEMS | {
    "1d": ConvProblem((2, 3, 17), (4, 3, 3), padding=1),
    "1d_strided_dilated_groups": ConvProblem((2, 6, 17), (4, 3, 4), 3, 2, 2, 2),
    "3d": ConvProblem((2, 3, 5, 6, 7), (4, 3, 3, 3, 3), padding=1),
    "3d_uneven": ConvProblem((2, 4, 6, 5, 7), (6, 2, 2, 1, 3), (2, 1, 3), (1, 0, 2), (1, 3, 2), 2),
}


def inner(patches: Tensor, weight: Tensor) -> Tensor:
    return weight @ patches


def l1(patches: Tensor, weight: Tensor) -> Tensor:
    return -(patches.unsqueeze(2) - weight.unsqueeze(-1)).abs().sum(3)


def max_plus(patches: Tensor, weight: Tensor) -> Tensor:
    return (patches.unsqueeze(2) + weight.unsqueeze(-1)).amax(3)


def smooth(patches: Tensor, weight: Tensor) -> Tensor:
    """All of whose derivatives are there and differ from zero."""
    return (patches.unsqueeze(2) * weight.unsqueeze(-1)).sin().sum(3) + inner(patches, weight).square()


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with torchconv.algorithm(request.param):
        yield request.param


# The inner product


@pytest.mark.parametrize("block", [None, 50])
@pytest.mark.parametrize("name", PROBLEMS)
def test_inner_product_is_torchs_convolution(name: str, block: int | None) -> None:
    problem = PROBLEMS[name]

    def ours(*args: Any, **kwargs: Any) -> Tensor:
        return conv_with(inner, *args, **kwargs, block=block)

    assert_same_convolution(ours, TORCHS[len(problem.input)], problem, problem.tensors())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3,), (4,), (2, 3), (4, 1), (2, 3, 4)], ids=str)
def test_padding_strings_mean_what_they_mean_to_torch(kernel: tuple[int, ...], padding: str) -> None:
    input, weight = filled((2, 3, *[9] * len(kernel))), filled((4, 3, *kernel), seed=1)
    expected = TORCHS[weight.dim()](input, weight, padding=padding, dilation=2)
    assert_close(conv_with(inner, input, weight, padding=padding, dilation=2), expected)


@pytest.mark.parametrize("block", [None, 3])
def test_input_without_a_batch(block: int | None) -> None:
    for rank in (1, 2, 3):
        input, weight = filled((2, *[5] * rank)), filled((4, 1, *[3] * rank), seed=1)
        output = conv_with(l1, input, weight, padding=1, groups=2, block=block)
        assert_close(output, conv_with(l1, input[None], weight, padding=1, groups=2, block=block)[0])


# Other functions


def by_definition(
    reduce: Callable[[Tensor, Tensor], Tensor], input: Tensor, weight: Tensor, problem: ConvProblem, value: float
) -> Tensor:
    """One output at a time: what a window meets, taken out of the padded picture, beside a filter."""
    stride, padding, dilation, groups = problem.geometry
    padded = F.pad(input, [p for p in reversed(padding) for _ in range(2)], value=value)
    spans = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    size = [(n - span) // s + 1 for n, span, s in zip(padded.shape[2:], spans, stride, strict=True)]
    output = input.new_empty(input.shape[0], weight.shape[0], *size)
    for n, o, *where in product(*map(range, output.shape)):
        first = o // (weight.shape[0] // groups) * weight.shape[1]
        window = [slice(s * i, s * i + span, d) for i, s, span, d in zip(where, stride, spans, dilation, strict=True)]
        patch = padded[(n, slice(first, first + weight.shape[1]), *window)]
        output[(n, o, *where)] = reduce(patch, weight[o])
    return output


@st.composite
def problems(draw: st.DrawFn) -> ConvProblem:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    groups, inputs, outputs = draw(st.tuples(*[st.integers(1, 2)] * 3))
    return ConvProblem(
        (draw(st.integers(0, 2)), groups * inputs, *each(1, 5)),
        (groups * outputs, inputs, *each(1, 3)),
        each(1, 3),
        each(0, 2),
        each(1, 2),
        groups,
    )


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the algorithm stays the same for all examples
)
@given(problem=problems(), value=st.sampled_from((0.0, -1.5, -inf)), block=st.sampled_from((None, 1, 4, 1000)))
def test_any_geometry_is_the_definition(problem: ConvProblem, value: float, block: int | None) -> None:
    input, weight, _ = problem.tensors()
    arguments = {**problem.arguments, "padding_value": value, "block": block}
    spans = [d * (k - 1) + 1 for k, d in zip(problem.weight[2:], problem.geometry[2], strict=True)]
    if any(n + 2 * p < span for n, p, span in zip(problem.input[2:], problem.geometry[1], spans, strict=True)):
        with pytest.raises(RuntimeError, match="the kernel spans"):
            conv_with(l1, input, weight, **arguments)
        return
    distance = by_definition(lambda x, w: -(x - w).abs().sum(), input, weight, problem, value)
    assert_close(conv_with(l1, input, weight, **arguments), distance)
    maximum = by_definition(lambda x, w: (x + w).max(), input, weight, problem, value)
    assert torch.equal(conv_with(max_plus, input, weight, **arguments), maximum)


def test_maximum_over_infinite_padding_is_max_pooling() -> None:
    input, flat = filled((2, 3, 8, 9)), torch.zeros(3, 1, 3, 3, dtype=torch.float64)
    output = conv_with(max_plus, input, flat, stride=2, padding=1, groups=3, padding_value=-inf)
    assert torch.equal(output, F.max_pool2d(input, 3, 2, 1))
    uneven = conv_with(max_plus, input, flat[..., :2], padding="same", groups=3, padding_value=-inf)
    assert torch.equal(uneven, F.max_pool2d(F.pad(input, (0, 1, 1, 1), value=-inf), (3, 2), 1))


def test_integers_and_their_padding() -> None:
    input = filled((1, 2, 5, 5)).mul(4).to(torch.int64)
    weight = filled((3, 2, 3, 3), seed=1).mul(4).to(torch.int64)
    output = conv_with(max_plus, input, weight, padding=1, padding_value=-1000)
    expected = conv_with(max_plus, input.double(), weight.double(), padding=1, padding_value=-inf)
    assert torch.equal(output, expected.to(torch.int64))


def test_bias_is_added_to_what_the_function_gives() -> None:
    problem = PROBLEMS["two_groups"]
    input, weight, bias = problem.tensors()
    assert bias is not None
    without = conv_with(l1, input, weight, **problem.arguments)
    assert torch.equal(conv_with(l1, input, weight, bias, **problem.arguments), without + bias[:, None, None])


def test_a_module_may_be_the_function_and_learns() -> None:
    class Sharpness(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.power = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, patches: Tensor, weight: Tensor) -> Tensor:
            return (patches.unsqueeze(2) - weight.unsqueeze(-1)).abs().pow(self.power).sum(3)

    function, input, weight = Sharpness(), filled((2, 3, 6, 6)), filled((4, 3, 3, 3), seed=1)
    (at_once,) = torch.autograd.grad(conv_with(function, input, weight).sum(), function.power)
    (in_blocks,) = torch.autograd.grad(conv_with(function, input, weight, block=5).sum(), function.power)
    assert at_once.abs() > 1
    assert_close(in_blocks, at_once)


def test_autocast_lowers_what_the_function_calls_and_nothing_else() -> None:
    input, weight = filled((2, 3, 6, 6), torch.float32), filled((4, 3, 3, 3), torch.float32, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv_with(l1, input, weight), conv_with(l1, input, weight).float())
        assert conv_with(l1, input, weight).dtype == torch.float32
        assert conv_with(inner, input, weight).dtype == torch.bfloat16


# Blocks


@pytest.mark.parametrize(("block", "widths"), [(None, [35]), (35, [35]), (100, [35]), (16, [16, 16, 3]), (1, [1] * 35)])
def test_blocks_bound_the_positions_and_are_computed_again(block: int | None, widths: list[int]) -> None:
    seen: list[int] = []

    def watched(patches: Tensor, weight: Tensor) -> Tensor:
        assert patches.shape[:3] == (2, 1, 27)
        assert weight.shape == (1, 4, 27)
        seen.append(patches.shape[3])
        return smooth(patches, weight)

    tensors = [leaf(filled((2, 3, 7, 9))), leaf(filled((4, 3, 3, 3), seed=1))]
    output = conv_with(watched, *tensors, block=block)
    assert seen == widths
    grad_output = filled(output.shape, seed=2)
    ours = gradients(output, tensors, grad_output)
    assert sorted(seen) == sorted(widths if block is None else widths * 2)
    whole = conv_with(smooth, *tensors)
    assert_close([output, *ours], [whole, *gradients(whole, tensors, grad_output)])


@pytest.mark.parametrize("block", [None, 35, 10])
def test_blocks_keep_nothing_in_between(block: int | None) -> None:
    differences: list[weakref.ref[Tensor]] = []

    def watched(patches: Tensor, weight: Tensor) -> Tensor:
        difference = patches.unsqueeze(2) - weight.unsqueeze(-1)
        differences.append(weakref.ref(difference))
        return difference.abs().sum(3)  # whose gradient needs the difference

    output = conv_with(watched, leaf(filled((2, 3, 7, 9))), leaf(filled((4, 3, 3, 3), seed=1)), block=block)
    assert [ref() is not None for ref in differences] == [block is None] * len(differences)
    output.sum().backward()
    assert all(ref() is None for ref in differences)


# Derivatives and transforms

BLOCKS = pytest.mark.parametrize("block", [None, 3])
WINDOW: dict[str, Any] = {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 2, "padding_value": 0.7}


def operands(*batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Small input, weight and bias for WINDOW."""
    return filled((*batch, 2, 4, 4, 3)), filled((*batch, 4, 2, 2, 2), seed=1), filled((*batch, 4), seed=2)


def in_window(function: Reduction, block: int | None) -> Callable[..., Tensor]:
    return lambda input, weight, bias=None: conv_with(function, input, weight, bias, **WINDOW, block=block)


@BLOCKS
def test_derivatives(block: int | None) -> None:
    leaves = [leaf(filled((1, 2, 3, 3))), leaf(filled((4, 1, 2, 2), seed=1)), leaf(filled((4,), seed=2))]
    assert gradcheck(in_window(l1, block), leaves, check_forward_ad=True)
    assert gradcheck(in_window(smooth, block), leaves, check_forward_ad=True)
    assert gradgradcheck(in_window(smooth, block), leaves, check_fwd_over_rev=True)


@BLOCKS
@pytest.mark.parametrize("dims", [d for d in product((0, None), repeat=3) if d != (None,) * 3], ids=str)
def test_vmap_over_any_operands(dims: tuple[int | None, ...], block: int | None) -> None:
    function = in_window(smooth, block)
    tensors = [leaf(t if dim == 0 else t[0]) for t, dim in zip(operands(3), dims, strict=True)]
    output = vmap(function, dims)(*tensors)
    one_by_one = torch.stack(
        [function(*(t if dim is None else t[i] for t, dim in zip(tensors, dims, strict=True))) for i in range(3)]
    )
    assert_close(output, one_by_one)
    grad_output = filled(output.shape, seed=3)
    assert_close(gradients(output, tensors, grad_output), gradients(one_by_one, tensors, grad_output))


@BLOCKS
def test_torch_func(block: int | None) -> None:
    input, weight, _ = operands()
    ours, plain = in_window(smooth, block), in_window(smooth, None)
    variable = leaf(weight)
    (gradient,) = torch.autograd.grad(plain(input, variable).sum(), variable)
    assert_close(grad(lambda w: ours(input, w).sum())(weight), gradient)
    jacobian = torch.autograd.functional.jacobian(lambda w: plain(input, w), weight)
    for transform in (jacrev, jacfwd):
        assert_close(transform(lambda w: ours(input, w))(weight), jacobian)
    tangent = filled(weight.shape, seed=3)
    assert_close(
        jvp(lambda w: ours(input, w), (weight,), (tangent,))[1], torch.tensordot(jacobian, tangent, weight.dim())
    )
    expected = torch.autograd.functional.hessian(lambda w: plain(input, w).sum(), weight)
    assert_close(hessian(lambda w: ours(input, w).sum())(weight), expected)


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
@pytest.mark.parametrize(("dynamic", "block"), [(False, None), (True, None), (False, 8)])
def test_compiles_into_one_graph(dynamic: bool, block: int | None) -> None:
    torch.compiler.reset()
    function = in_window(l1, block)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 5):
        leaves = [leaf(filled((batch, 4, 4, 3))), leaf(filled((4, 2, 2, 2), seed=1)), leaf(filled((4,), seed=2))]
        outputs = compiled(*leaves), function(*leaves)
        assert_close(*outputs)
        assert_close(*(gradients(output.sin().sum(), leaves, torch.tensor(1.0)) for output in outputs))
