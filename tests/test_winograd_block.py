"""Blocks of Winograd's kernel, bit by bit those of the passes that they take the place of; and what they refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import winograd_pieces
from geometries import LAYOUTS
from grid import compiled_only, filled, leaf, relative_error, threads
from hypothesis import assume
from hypothesis import strategies as st
from test_geometry import cases
from test_kernel_properties import instruction_set, on_each_isa
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from winograd_pieces import channels_last

from torchconv import ops
from torchconv.functional import conv_relu2d, conv_relu_pool2d

pytestmark = compiled_only

DTYPES = (torch.float32, torch.float64)
SPECIAL = (float("nan"), -0.0, 0.0, float("inf"), -float("inf"))


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert ours.dim() < 4 or ours.is_contiguous(memory_format=torch.channels_last)
    assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    if ours.is_floating_point():
        numbers = ~theirs.isnan()
        assert torch.equal(ours.signbit()[numbers], theirs.signbit()[numbers])


def check_block(isa: str, data: st.DataObject) -> None:
    def draw(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    dtype, layout = data.draw(st.sampled_from(DTYPES)), LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    pool, save, padding = data.draw(st.booleans()), data.draw(st.booleans()), [draw(0, 5), draw(0, 5)]
    inputs, outputs = 16 * draw(1, 9), 16 * draw(1, 9)
    size = [max(draw(1, 50), 3 - 2 * p) for p in padding]
    size = [n + n % 2 if pool else n for n in size]
    assume(size != [3, 3] or any(padding))  # whose input gradient, done apart, is a product
    input, weight = filled((draw(0, 3), inputs, *size), dtype), filled((outputs, inputs, 3, 3), dtype, 1)
    bias = data.draw(st.sampled_from((None, filled((outputs,), dtype, 2))))
    if data.draw(st.booleans()):
        input.flatten()[:: draw(700, 5000)] = data.draw(st.sampled_from(SPECIAL))
    call = layout(input), layout(weight), bias, padding, pool
    with instruction_set(isa), threads(draw(1, 5)):
        ours, theirs = ops.winograd_block(*call, save), winograd_pieces.winograd_block(*call, save)
        for mine, expected in zip(ours, theirs, strict=True):
            assert_same_bits(mine, expected)
        kept = winograd_pieces.winograd_block(*call, True)[2 if pool else 1]
        backward = (
            layout(filled(ours[0].shape, dtype, 3)),
            layout(kept) if pool else kept,
            layout(weight),
            size,
            padding,
        )
        assert_same_bits(ops.winograd_block_input(*backward), winograd_pieces.winograd_block_input(*backward))


@cases(60, on_each_isa(["block"]))
def test_the_bits_are_those_of_one_pass_after_the_other(isa: str, family: str, data: st.DataObject) -> None:
    check_block(isa, data)


@pytest.mark.exhaustive
@pytest.mark.slow
@cases(300, on_each_isa(["block"]))
def test_the_bits_at_length(isa: str, family: str, data: st.DataObject) -> None:
    check_block(isa, data)


def relu(*args: Tensor) -> Tensor:
    return F.conv2d(*args, padding=1).relu()


def relu_pool(*args: Tensor) -> Tensor:
    return F.max_pool2d(relu(*args), 2)


FUSED: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [(conv_relu2d, relu), (conv_relu_pool2d, relu_pool)]


class Ops(TorchDispatchMode):
    """The names of torchconv's ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "torchconv":
            self.names.append(func._schema.name.removeprefix("torchconv::"))
        return func(*args, **(kwargs or {}))


def operands(dtype: torch.dtype, channels: int = 32, size: tuple[int, int] = (8, 10)) -> list[Tensor]:
    input, weight = filled((2, channels, *size), dtype), filled((channels, channels, 3, 3), dtype, 1)
    return [channels_last(input), weight / (3 * channels**0.5), filled((channels,), dtype, 2)]


@pytest.mark.parametrize(("function", "expected"), FUSED)
def test_a_frozen_block_is_two_ops_and_torch_s_numbers(
    function: Callable[..., Tensor], expected: Callable[..., Tensor]
) -> None:
    input, weight, bias = operands(torch.float32)
    mine = leaf(input)
    with Ops() as ran:
        output = function(mine, weight, bias, padding=1)
        grad_output = filled(output.shape, torch.float32, 3)
        (gradient,) = grad(output, mine, grad_output)
    pooled = function is conv_relu_pool2d
    assert ran.names == ["winograd_block", *["rectify_input"] * pooled, "winograd_block_input"]
    exact = leaf(input.double())
    theirs = expected(exact, weight.double(), bias.double())
    assert relative_error(output, theirs) <= 5e-6
    assert relative_error(gradient, grad(theirs, exact, grad_output.double())[0]) <= 5e-6


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w, b: (x.contiguous(), w, b),
        lambda x, w, b: (x[:, :24].contiguous(memory_format=torch.channels_last), w[:, :24], b),
        lambda x, w, b: (x, w[:24], b[:24]),
        lambda x, w, b: (x[:1, :, :4, :4], w, b),
        lambda x, w, b: (x.double(), w.double(), b.double()),
    ],
    ids=["contiguous", "inputs", "outputs", "few_positions", "float64"],
)
def test_what_the_tiles_do_not_serve_is_composed(change: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    tensors = change(*operands(torch.float32))
    for function, expected in FUSED:
        with Ops() as ran:
            output = function(*tensors, padding=1)
        assert "winograd_block" not in ran.names
        assert relative_error(output, expected(*tensors)) <= 5e-6


def test_windows_that_do_not_cover_the_output_are_pooled_on_their_own() -> None:
    tensors = operands(torch.float32, size=(9, 10))
    with Ops() as ran:
        output = conv_relu_pool2d(*tensors, padding=1)
    assert "winograd_block" not in ran.names
    assert relative_error(output, relu_pool(*tensors)) <= 5e-6


@pytest.mark.parametrize("function", [conv_relu2d, conv_relu_pool2d])
def test_derivatives_of_a_frozen_block(function: Callable[..., Tensor]) -> None:
    input, weight, bias = operands(torch.float64, 16, (4, 4))
    with ops.algorithm("winograd"):
        assert gradcheck(lambda x: function(x[:1], weight, bias, padding=1), leaf(input), fast_mode=True)
        assert gradgradcheck(lambda x: function(x[:1], weight, bias, padding=1), leaf(input), fast_mode=True)


@pytest.mark.parametrize(("function", "expected"), FUSED)
def test_flops_are_those_of_torch(function: Callable[..., Tensor], expected: Callable[..., Tensor]) -> None:
    counts = []
    for call in (lambda *args: function(*args, padding=1), expected):
        input, weight, bias = operands(torch.float32)
        with FlopCounterMode(display=False) as counter:
            call(leaf(input), weight, bias).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "channels": ("24 input and 32 output channels, expected multiples of 16", lambda x, w: (x[:, :24], w[:, :24])),
    "kernel": (r"weight has shape \(32, 32, 3, 2\), expected \(32, 32, 3, 3\)", lambda x, w: (x, w[..., :2])),
    "rank": ("input has 5 dimensions, expected 4", lambda x, w: (x[..., None], w)),
    "odd": ("the convolution's output is 7 x 10, expected multiples of 2 to pool", lambda x, w: (x[:, :, :7], w)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_op_does_not_serve_is_an_error(name: str) -> None:
    message, change = WRONG[name]
    input, weight, _ = operands(torch.float32)
    with pytest.raises(RuntimeError, match=f"winograd_block: {message}"):
        torch.ops.torchconv.winograd_block(*change(input, weight), None, [1, 1], True, True)


def test_what_was_kept_is_checked() -> None:
    input, weight, _ = operands(torch.float32)
    call = torch.ops.torchconv.winograd_block_input
    for kept, message in (
        (torch.zeros(80, dtype=torch.int32), "kept has dtype Int, expected Long for signs or Byte for positions"),
        (torch.zeros(79, dtype=torch.int64), "kept has shape"),
        (torch.zeros(2, 32, 8, 10, dtype=torch.uint8), "grad_output has shape"),
    ):
        with pytest.raises(RuntimeError, match=f"winograd_block_input: {message}"):
            call(input, kept, weight, [8, 10], [1, 1])
