"""A convolution that brings its outputs into [0, max_value] as it writes them: the same bits, by every kernel."""

from math import inf, nan
from typing import Any

import pytest
import torch
from grid import (
    CONV_PROBLEMS,
    LAYOUTS,
    WINOGRAD_LINES,
    WINOGRAD_PROBLEMS,
    WINOGRAD_STACKS,
    ConvProblem,
    compiled_only,
    filled,
)
from networks import assert_same_bits
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import jvp, vmap
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv
from torchconv import functional, ops, reference
from torchconv.functional import conv_relu2d

PROBLEMS = {
    **CONV_PROBLEMS,
    **{f"winograd_{name}": problem for name, problem in WINOGRAD_PROBLEMS.items()},
    **{f"stack_{name}": problem for name, problem in WINOGRAD_STACKS.items()},
    **WINOGRAD_LINES,
    "few_positions": ConvProblem((2, 300, 3, 5), (130, 300, 1, 1)),
    "fewer_positions": ConvProblem((2, 100, 1, 5), (130, 100, 1, 1)),
    "dot_products": ConvProblem((1, 512, 3, 4), (50, 512, 3, 3), padding=1),
    "first_layer": ConvProblem((1, 3, 40, 41), (65, 3, 7, 7), stride=2, padding=3),
    "picture": ConvProblem((2, 130, 20, 21), (70, 130, 1, 1)),
    "groups_of_panels": ConvProblem((1, 12, 16, 15), (140, 3, 3, 2), padding=1, groups=4),
    "strided_and_deep": ConvProblem((1, 150, 14, 15), (96, 150, 3, 3), stride=2, padding=1),
    "depthwise_7x7": ConvProblem((1, 48, 20, 23), (48, 1, 7, 7), padding=3, groups=48),
}
DTYPES = [torch.float64, torch.float32]


@compiled_only
@pytest.mark.parametrize("max_value", [inf, 0.4])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_bits_are_those_of_both_steps(isa: str, name: str, dtype: torch.dtype, max_value: float) -> None:
    problem = PROBLEMS[name]
    input, weight, bias = problem.tensors(dtype)
    packed = (
        torch.ops.torchconv.pack_weight(weight, problem.groups) if dtype in DTYPES and 0 not in input.shape else None
    )
    for algorithm in ("auto", "im2col", "winograd"):
        for channels_last in {False, input.dim() > 3}:
            x = input.contiguous(memory_format=ops.memory_format_of(input.dim(), channels_last))
            args = (x, weight, bias, *problem.geometry, algorithm, channels_last)
            for panels in (None, packed):
                try:
                    expected = torch.ops.torchconv.conv(*args, panels)
                except RuntimeError:
                    assert algorithm == "winograd"
                    continue
                reference.rectify_(expected, None, max_value)
                assert_same_bits([torch.ops.torchconv.conv(*args, panels, max_value)], [expected])


@compiled_only
def test_special_values_stay_what_they_are(isa: str) -> None:
    """-0 and NaN pass, as through torch.relu and torch.nn.functional.relu6; whole vectors and rests of them."""
    values = torch.tensor([-0.0, 0.0, nan, -1.0, inf, -inf, 6.0, 5.0, 7.0]).repeat(5)[:39].reshape(1, 1, 3, 13)
    identity = torch.ones(1, 1, 1, 1)
    for max_value, theirs in ((inf, torch.relu), (6.0, F.relu6)):
        output = ops.conv(values, identity, None, (1, 1), (0, 0), (1, 1), 1, "im2col", max_value)
        assert_close(output, theirs(values), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 63, 64, 65, 200, 70000])
def test_rectify_is_the_reference_s(dtype: torch.dtype, count: int) -> None:
    values = 4 * torch.randn(count, dtype=dtype)
    values[::5] = torch.tensor([-0.0, 6.0, nan, 0.0, inf], dtype=dtype).repeat(count)[: len(values[::5])]
    ours, theirs = values.clone(), values.clone()
    signs, expected = ops.rectify_(ours, None, True, 6.0), reference.rectify_(theirs, None, 6.0)
    assert torch.equal(signs, expected)
    assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert_close(ours, F.relu6(values), rtol=0, atol=0, equal_nan=True)
    passes, leaf = ops.rectify_input(torch.ones_like(values), signs, False), values.clone().requires_grad_()
    (theirs,) = grad(F.relu6(leaf).sum(), leaf)
    # At NaN torch's own kernel for ReLU6 lets pass in the rest of a vector what it doesn't in a whole one.
    assert torch.equal(passes, theirs.where(~values.isnan(), 1))


def composed(*args: Any, max_value: float, **geometry: Any) -> Tensor:
    return F.hardtanh(functional.conv2d(*args, **geometry), 0.0, max_value)


def operands(dtype: torch.dtype) -> list[Tensor]:
    return [filled(size, dtype, seed) for seed, size in enumerate([(2, 4, 9, 8), (6, 4, 3, 3), (6,)])]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("geometry", [{}, {"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2}])
def test_outputs_and_gradients_are_those_of_both_steps(geometry: dict[str, Any], layout: str) -> None:
    tensors = [t.requires_grad_() for t in operands(torch.float64)]
    results = []
    for function in (conv_relu2d, composed):
        output = function(*[LAYOUTS[layout](t) if t.dim() == 4 else t for t in tensors], max_value=0.5, **geometry)
        assert 0 < (output == 0.5).sum() < output.numel()
        results.append([output, *grad(output, tensors, filled(tuple(output.shape), torch.float64, 7))])
    assert_close(results[0], results[1])


def test_derivatives_of_every_kind() -> None:
    tensors = [t.requires_grad_() for t in operands(torch.float64)]

    def function(*args: Tensor) -> Tensor:
        return conv_relu2d(*args, max_value=0.5)

    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)
    x, *rest = (t.detach() for t in tensors)
    expected = jvp(lambda x: composed(x, *rest, max_value=0.5), (x,), (x,))
    assert_close(jvp(lambda x: function(x, *rest), (x,), (x,)), expected)
    assert_close(vmap(lambda x: function(x, *rest))(x), function(x, *rest))


def test_a_winograd_block_is_for_relu_alone() -> None:
    """Where a block of Winograd's would serve, with signs to be saved: 32 channels, 3x3, channels-last."""
    x, weight = filled((1, 32, 12, 12), torch.float32), filled((32, 32, 3, 3), torch.float32, 1)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    results = []
    for function in (conv_relu2d, composed):
        output = function(x, weight, padding=1, max_value=6.0)
        results.append([output, *grad(output.square().sum(), x)])
    assert_close(results[0], results[1])


@pytest.mark.parametrize("value", [0, -1.0, nan])
def test_a_maximum_of_nothing_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match=r"conv_relu2d: max_value is (0|-1.0|nan), expected more than 0"):
        conv_relu2d(*operands(torch.float32), max_value=value)


@compiled_only
def test_the_ops_refuse_what_they_do_not_take() -> None:
    x, weight, _ = operands(torch.float32)
    args = ((1, 1), (0, 0), (1, 1), 1, "auto", False, None)
    with pytest.raises(RuntimeError, match=r"conv: max_value is 0.* expected more than 0"):
        torch.ops.torchconv.conv(x, weight, None, *args, 0.0)
    with pytest.raises(RuntimeError, match="rectify_: max_value is nan, expected more than 0"):
        torch.ops.torchconv.rectify_(x, None, False, nan)


def test_the_layer_is_a_convolution_and_relu6() -> None:
    layer = torchconv.ConvReLU2d(4, 6, 3, max_value=6.0)
    assert "max_value=6.0" in repr(layer)
    x = 20 * filled((2, 4, 9, 8), torch.float32)
    expected = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU6())
    expected[0].load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert_close(layer(x), expected(x))


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
def test_compiled_it_is_one_graph() -> None:
    layer, x = torchconv.ConvReLU2d(4, 6, 3, max_value=0.5), filled((2, 4, 9, 8), torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), layer(x))
