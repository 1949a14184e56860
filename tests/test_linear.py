"""Fully connected layers: few rows and a large weight are a convolution, everything else is torch's."""

from collections.abc import Callable

import pytest
import torch
from grid import compiled_only, filled, gradients, leaf, relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv
from torchconv import ops
from torchconv.functional import linear

OUT, IN = 1031, 1024  # odd, and a whole page: more than a million elements
SHAPES = [(IN,), (1, IN), (3, IN), (32, IN), (2, 5, IN), (2, 3, 2, IN)]


def operands(shape: tuple[int, ...] = (3, IN), bias: bool = True) -> list[Tensor]:
    """Input, weight and bias that `linear` computes as a convolution."""
    tensors = [filled(shape, torch.float32), filled((OUT, IN), torch.float32, 1) / IN**0.5]
    return tensors + [filled((OUT,), torch.float32, 2)] * bias


@compiled_only
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_torch(shape: tuple[int, ...], bias: bool) -> None:
    mine = [leaf(t) for t in operands(shape, bias)]
    exact = [leaf(t.double()) for t in mine]
    assert ops.linear_serves(mine[0], mine[1], mine[2] if bias else None)
    ours, theirs = linear(*mine), F.linear(*exact)
    assert ours.shape == theirs.shape
    assert_close(ours, theirs.float())
    grad_output = filled(ours.shape, torch.float32, 3)
    for grad, expected in zip(
        gradients(ours, mine, grad_output), gradients(theirs, exact, grad_output.double()), strict=True
    ):
        assert grad.is_contiguous()
        assert relative_error(grad, expected) <= 1e-6


@compiled_only
def test_any_strides() -> None:
    input, weight, bias = operands()
    for x, w in (
        (input.T.contiguous().T, weight),
        (input, weight.T.contiguous().T),
        (input.repeat(1, 2)[:, ::2], weight),
    ):
        assert ops.linear_serves(x, w, bias)
        mine, exact = [leaf(x), leaf(w)], [leaf(x.double()), leaf(w.double())]
        ours, theirs = linear(*mine), F.linear(*exact)
        assert relative_error(ours, theirs) <= 1e-6
        grad_output = filled(ours.shape, torch.float32, 3)
        for pair in zip(
            gradients(ours, mine, grad_output), gradients(theirs, exact, grad_output.double()), strict=True
        ):
            assert relative_error(*pair) <= 1e-6


@compiled_only
def test_derivatives_of_second_order_and_forward_mode_and_vmap() -> None:
    tensors = operands()
    exact = [t.double() for t in tensors]
    directions = [filled(t.shape, torch.float32, 5 + i) for i, t in enumerate(tensors)]

    def second(function: Callable[..., Tensor], operands: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [leaf(t) for t in operands]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(
            sum((g * d.to(g.dtype)).sum() for g, d in zip(first, directions, strict=True)), leaves
        )

    for ours, theirs in zip(second(linear, tensors), second(F.linear, exact), strict=True):
        assert relative_error(ours, theirs) <= 2e-6
    _, ours = torch.func.jvp(linear, tuple(tensors), tuple(directions))
    _, theirs = torch.func.jvp(F.linear, tuple(exact), tuple(d.double() for d in directions))
    assert relative_error(ours, theirs) <= 1e-6
    inputs = filled((4, 3, IN), torch.float32, 9)
    assert_close(torch.func.vmap(lambda x: linear(x, *tensors[1:]))(inputs), F.linear(inputs, *tensors[1:]))


def test_torch_computes_what_is_faster_or_exact_there() -> None:
    input, weight, bias = operands()
    others = [
        (filled((33, IN), torch.float32), weight, bias),
        (input.double(), weight.double(), bias.double()),
        (input.bfloat16(), weight.bfloat16(), bias.bfloat16()),
        (input, weight[:1000], bias[:1000]),
        (input[:0], weight, bias),
        (input[:1], weight, bias),
    ]
    for tensors in others:
        assert not ops.linear_serves(*tensors)
        assert torch.equal(linear(*tensors), F.linear(*tensors))
    if ops.linear_serves(input, weight, bias):
        assert ops.linear_serves(input[:1], leaf(weight), bias)  # the weight's gradient is wanted
    with ops.algorithm("reference"):
        assert not ops.linear_serves(input, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(input, weight, bias).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("input", "weight", "bias"),
    [
        ((3, IN + 1), (OUT, IN), (OUT,)),
        ((3, IN), (OUT, IN), (OUT + 1,)),
        ((), (OUT, IN), (OUT,)),
        ((3, IN), (OUT, IN, 1), (OUT,)),
    ],
    ids=["features", "bias", "scalar", "rank"],
)
def test_wrong_shapes_are_torchs_errors(input: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError) as theirs:
        F.linear(torch.ones(input), torch.ones(weight), torch.ones(bias))
    with pytest.raises(RuntimeError) as ours:
        linear(torch.ones(input), torch.ones(weight), torch.ones(bias))
    assert str(ours.value) == str(theirs.value)


def test_mixed_dtypes_are_torchs_error() -> None:
    input, weight, bias = operands()
    with pytest.raises(RuntimeError, match="dtype"):
        linear(input.double(), weight, bias)


def test_modules_equal_torchs() -> None:
    torch.manual_seed(0)
    layers = torchconv.Linear(IN, OUT), torchconv.LazyLinear(OUT), torchconv.Linear(5, 3, bias=False)
    for layer in layers:
        x = filled((2, 5 if layer.out_features == 3 else IN), torch.float32)
        output = layer(x)
        assert type(layer) is torchconv.Linear
        reverted = torchconv.revert(layer)
        assert type(reverted) is nn.Linear
        assert_close(output, reverted(x))
        assert type(torchconv.convert(reverted)) is torchconv.Linear


@compiled_only
def test_enabled_reaches_calls_in_any_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    serves = ops.linear_serves
    monkeypatch.setattr(ops, "linear_serves", lambda *args: seen.append(serves(*args)) or seen[-1])
    layer, x = nn.Linear(IN, OUT), filled((2, IN), torch.float32)
    expected = layer(x)
    assert not seen
    with torchconv.enabled():
        assert_close(layer(x), expected)
    assert seen == [True]


def test_compiles() -> None:
    torch.compiler.reset()
    compiled = torch.compile(linear, fullgraph=True, dynamic=True, backend="aot_eager")
    tensors = operands()
    for x in (tensors[0], filled((40, IN), torch.float32)):
        assert_close(compiled(x, *tensors[1:]), F.linear(x, *tensors[1:]))
