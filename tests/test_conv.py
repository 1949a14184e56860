"""Convolution: functional.conv2d, Conv2d and the three ops below them, against torch."""

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from grid import (
    ALGORITHMS,
    CONV_PROBLEMS,
    LAYOUTS,
    ConvProblem,
    assert_all_close,
    assert_same_convolution,
    filled,
    gradients,
    leaf,
    strides,
)
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.testing import assert_close

from torchconv import Conv2d, ops
from torchconv.functional import conv2d

# torch's own: for its own convolution, and at the first use of forward mode.
EVEN_SAME = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")

SMALL = ConvProblem((2, 4, 3, 4), (4, 2, 3, 2), (2, 1), (1, 2), (1, 2), 2)


@pytest.fixture(params=ALGORITHMS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_equals_torch(name: str, dtype: torch.dtype) -> None:
    problem = CONV_PROBLEMS[name]
    assert_same_convolution(conv2d, F.conv2d, problem, problem.tensors(dtype))


@pytest.mark.parametrize("name", CONV_PROBLEMS)
def test_equals_torch_in_channels_last_and_keeps_the_format(name: str) -> None:
    problem = CONV_PROBLEMS[name]
    input, weight, bias = problem.tensors(torch.float32)
    tensors = [input.contiguous(memory_format=torch.channels_last), weight, bias]
    assert_same_convolution(conv2d, F.conv2d, problem, tensors)
    ours, theirs = conv2d(*tensors, **problem.arguments), F.conv2d(*tensors, **problem.arguments)
    if theirs.numel() > 0:  # torch gives an empty batch back contiguous
        assert strides(ours) == strides(theirs)


@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("input_layout", ["contiguous", "channels_last"])
def test_results_are_channels_last_where_input_or_weight_is(input_layout: str, weight_layout: str) -> None:
    input, weight, bias = CONV_PROBLEMS["3x3_padded"].tensors(torch.float32)
    tensors = [leaf(LAYOUTS[input_layout](input)), leaf(LAYOUTS[weight_layout](weight)), leaf(bias)]
    ours, theirs = conv2d(*tensors, padding=1), F.conv2d(*tensors, padding=1)
    assert ours.stride() == theirs.stride()
    expected = "channels_last" if "channels_last" in (input_layout, weight_layout) else "contiguous"
    grad_output = LAYOUTS[expected](filled(ours.shape, torch.float32))
    for mine in gradients(ours, tensors, grad_output)[:2]:
        assert mine.stride() == LAYOUTS[expected](mine).stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("which", ["input", "weight", "grad_output"])
@pytest.mark.parametrize("problem", ["3x3_padded", "wide_enough_for_winograd", "three_groups_strided"])
def test_equals_torch_for_any_strides(problem: str, which: str, name: str, dtype: torch.dtype) -> None:
    input, weight, bias = CONV_PROBLEMS[problem].tensors(dtype)
    as_is, layout = LAYOUTS["contiguous"], LAYOUTS[name]
    tensors = [layout(input) if which == "input" else input, layout(weight) if which == "weight" else weight, bias]
    grad_layout = layout if which == "grad_output" else as_is
    assert_same_convolution(conv2d, F.conv2d, CONV_PROBLEMS[problem], tensors, grad_layout)


# Of few channels and many positions: more than one block of rows or columns, and every kind of edge between them.
FEW_CHANNELS: dict[str, ConvProblem] = {
    "several_blocks_of_columns": ConvProblem((1, 70, 6, 300), (3, 70, 3, 3), padding=1),
    "several_blocks_of_rows": ConvProblem((2, 5, 60, 70), (9, 5, 3, 3), padding=1),
    "blocks_of_a_strided_input": ConvProblem((1, 65, 7, 410), (2, 65, 3, 4), stride=(1, 2), padding=1),
    "phases_without_taps": ConvProblem((2, 3, 40, 41), (4, 3, 2, 2), stride=3, dilation=2, padding=1),
    "stride_and_dilation_with_common_divisor": ConvProblem((2, 3, 60, 70), (4, 3, 3, 4), (4, 6), (1, 3), (2, 4)),
    "many_groups": ConvProblem((2, 80, 9, 20), (120, 2, 3, 3), padding=1, groups=40),
    "first_layer_of_many_rows": ConvProblem((2, 3, 60, 70), (40, 3, 7, 7), stride=2, padding=3),
    "patches_as_a_first_layer": ConvProblem((2, 3, 40, 46), (64, 3, 4, 4), stride=4),
    "dilated_grey_first_layer": ConvProblem(
        (3, 1, 40, 46), (33, 1, 5, 3), stride=(3, 1), padding=(4, 0), dilation=(2, 1)
    ),
    "as_many_taps_as_positions": ConvProblem((2, 3, 12, 12), (4, 3, 7, 7), padding=2),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second_column", "batch_and_channels_swapped"])
@pytest.mark.parametrize("name", FEW_CHANNELS)
def test_few_channels(name: str, layout: str, dtype: torch.dtype) -> None:
    input, weight, bias = FEW_CHANNELS[name].tensors(dtype)
    tensors = [LAYOUTS[layout](input), weight, bias]
    assert_same_convolution(conv2d, F.conv2d, FEW_CHANNELS[name], tensors, LAYOUTS[layout])


@pytest.mark.parametrize("column", [0, 1, 18, 19])
def test_an_infinite_input_reaches_only_the_taps_that_meet_it(column: int) -> None:
    input, weight, _ = ConvProblem((1, 2, 9, 20), (3, 2, 3, 3)).tensors(torch.float32)
    input[0, 1, 4, column] = torch.inf
    mine, theirs = [input, leaf(weight)], [input, leaf(weight)]
    ours, expected = conv2d(*mine), F.conv2d(*theirs)
    assert_close(ours, expected)
    grad_output = filled(ours.shape, torch.float32, 3)
    (grad,), (expected_grad,) = gradients(ours, mine[1:], grad_output), gradients(expected, theirs[1:], grad_output)
    assert_close(grad, expected_grad)


def test_strided_bias() -> None:
    input, weight, bias = CONV_PROBLEMS["3x3"].tensors()
    wide = bias.repeat_interleave(3)
    assert_close(conv2d(input, weight, wide[::3]), F.conv2d(input, weight, bias))
    assert_close(conv2d(input, weight, bias[:1].expand(5)), F.conv2d(input, weight, bias[:1].repeat(5)))


@EVEN_SAME
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (5, 2), (1, 6)], ids=str)
def test_padding_strings(kernel: tuple[int, int], padding: str) -> None:
    problem = ConvProblem((2, 3, 11, 12), (4, 3, *kernel), dilation=(2, 1))

    def with_string(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *tensors, **arguments: convolution(*tensors, **{**arguments, "padding": padding})

    assert_same_convolution(with_string(conv2d), with_string(F.conv2d), problem, problem.tensors())


@EVEN_SAME
@pytest.mark.parametrize("padding", [1, "same"])
def test_without_a_batch(padding: int | str) -> None:
    input, weight, bias = CONV_PROBLEMS["even_kernel"].tensors()
    mine, theirs = [leaf(input[0]), leaf(weight), leaf(bias)], [leaf(input[0]), leaf(weight), leaf(bias)]
    ours, expected = conv2d(*mine, padding=padding), F.conv2d(*theirs, padding=padding)
    assert_close(ours, expected)
    grad_output = filled(ours.shape)
    assert_all_close(gradients(ours, mine, grad_output), gradients(expected, theirs, grad_output))


def test_no_input_channels_leave_the_bias() -> None:
    # torch gives such a convolution no output channels either, whatever the weight says; the definition, an empty sum.
    input, weight, bias = filled((2, 0, 5, 6)), filled((4, 0, 3, 3)), filled((4,))
    assert_close(conv2d(input, weight, bias), bias.reshape(4, 1, 1).expand(2, 4, 3, 4))
    assert_close(conv2d(input, weight), torch.zeros(2, 4, 3, 4, dtype=torch.float64))


def test_no_output_channels_are_refused_as_by_torch() -> None:
    for convolution in (conv2d, F.conv2d):
        with pytest.raises(RuntimeError, match="weight"):
            convolution(filled((2, 3, 5, 6)), filled((0, 3, 3, 3)))


def test_complex_values() -> None:
    tensors = [leaf(torch.complex(t, t.flip(0))) for t in SMALL.tensors() if t is not None]
    assert_close(conv2d(*tensors, **SMALL.arguments), F.conv2d(*tensors, **SMALL.arguments))
    assert gradcheck(lambda *t: conv2d(*t, **SMALL.arguments), tensors, fast_mode=True)
    assert gradgradcheck(lambda *t: conv2d(*t, **SMALL.arguments), tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_integers(dtype: torch.dtype) -> None:
    tensors = [filled(shape).mul(3).to(dtype) for shape in ((2, 3, 8, 9), (5, 3, 3, 3), (5,))]
    assert_close(conv2d(*tensors, padding=1), F.conv2d(*tensors, padding=1))


@pytest.mark.parametrize("name", [name for name in CONV_PROBLEMS if name != "wide_enough_for_winograd"])
def test_integer_valued_float32_is_exact(name: str) -> None:
    problem = CONV_PROBLEMS[name]
    shapes = [problem.input, problem.weight, problem.weight[:1]]
    tensors = [leaf(filled(shape, seed=i).mul(4).round().float()) for i, shape in enumerate(shapes)]
    exact = [None if t is None else leaf(t.double()) for t in tensors]
    ours, expected = conv2d(*tensors, **problem.arguments), F.conv2d(*exact, **problem.arguments)
    grad_output = filled(ours.shape).mul(4).round()
    mine, theirs = gradients(ours, tensors, grad_output.float()), gradients(expected, exact, grad_output)
    for a, b in zip([ours, *mine], [expected, *theirs], strict=True):
        assert torch.equal(a.double(), b)


def test_gradcheck() -> None:
    tensors = [leaf(t) for t in SMALL.tensors()]
    assert gradcheck(lambda *t: conv2d(*t, **SMALL.arguments), tensors, check_forward_ad=True)
    assert gradgradcheck(lambda *t: conv2d(*t, **SMALL.arguments), tensors, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["3x3_padded", "stride_and_dilation_with_common_divisor", "depthwise_strided_dilated"])
def test_gradcheck_along_one_direction(name: str) -> None:
    problem = CONV_PROBLEMS[name]
    tensors = [leaf(t) for t in problem.tensors()]
    # One random direction instead of the whole Jacobian: these are larger.
    assert gradcheck(lambda *t: conv2d(*t, **problem.arguments), tensors, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(lambda *t: conv2d(*t, **problem.arguments), tensors, fast_mode=True)


def test_third_derivative() -> None:
    input, weight, _ = [leaf(t) for t in SMALL.tensors()]

    def third(convolution: Callable[..., Tensor]) -> Tensor:
        result: Tensor = convolution(input, weight, **SMALL.arguments).pow(3).sum()
        for order in range(3):
            (result,) = torch.autograd.grad(result, [(input, weight)[order % 2]], create_graph=True)
            result = result.square().sum()
        return result

    assert_close(third(conv2d), third(F.conv2d))


def test_forward_mode_with_some_tangents() -> None:
    primals = SMALL.tensors()
    tangents = [filled(t.shape, seed=7) for t in primals if t is not None]
    for moving in ([0], [1], [2], [0, 1], [1, 2]):

        def moved(convolution: Callable[..., Tensor], moving: list[int] = moving) -> Tensor:
            def of_some(*some: Tensor) -> Tensor:
                tensors = list(primals)
                for i, tensor in zip(moving, some, strict=True):
                    tensors[i] = tensor
                return convolution(*tensors, **SMALL.arguments)

            at, along = tuple(primals[i] for i in moving), tuple(tangents[i] for i in moving)
            return torch.func.jvp(of_some, at, along)[1]

        assert_close(moved(conv2d), moved(F.conv2d))


# Which of input, weight and bias ask for a gradient, and which are then kept.
SAVED = {
    "all": ((True, True, True), {"input", "weight"}),
    "frozen_weight": ((True, False, False), {"weight"}),
    "constant_input": ((False, True, True), {"input"}),
    "bias_only": ((False, False, True), set()),
    "weight_only": ((False, True, False), {"input"}),
    "nothing": ((False, False, False), set()),
}


@pytest.mark.parametrize("name", SAVED)
def test_saves_only_what_the_gradients_need(name: str) -> None:
    wanted, expected = SAVED[name]
    tensors = [t.requires_grad_(want) for t, want in zip(SMALL.tensors(), wanted, strict=True)]
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = conv2d(*tensors, **SMALL.arguments)
    named = dict(zip(["input", "weight", "bias"], tensors, strict=True))
    assert {t.data_ptr() for t in saved} == {named[which].data_ptr() for which in expected}
    assert sum(t.nbytes for t in saved) == sum(named[which].nbytes for which in expected)
    if any(wanted):
        output.sum().backward()
    assert tuple(t.grad is not None for t in tensors) == wanted


def test_frozen_weight_lets_go_of_the_input() -> None:
    input, weight, bias = SMALL.tensors()
    hidden = leaf(input) * 2
    alive = weakref.ref(hidden)
    output = conv2d(hidden, weight, bias, **SMALL.arguments)
    del hidden
    assert alive() is None
    assert output.requires_grad


def test_result_in_no_grad_mode_has_no_graph() -> None:
    tensors = [leaf(t) for t in SMALL.tensors()]
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert conv2d(*tensors, **SMALL.arguments).grad_fn is None


def test_input_changed_after_forward_is_an_error_in_backward() -> None:
    input, weight, bias = SMALL.tensors()
    output = conv2d(input, leaf(weight), bias, **SMALL.arguments)
    input.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


MODULES: dict[str, dict[str, object]] = {
    "defaults": {"kernel_size": 3},
    "no_bias": {"kernel_size": (2, 3), "bias": False},
    "strided_dilated_groups": {"kernel_size": 3, "stride": (2, 1), "padding": (2, 1), "dilation": 2, "groups": 2},
    "same": {"kernel_size": (3, 4), "padding": "same", "dilation": (1, 2)},
    "valid": {"kernel_size": 3, "padding": "valid", "stride": 2},
    "reflect": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "replicate", "stride": 2},
    "circular": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"},
    "same_reflect": {"kernel_size": (2, 3), "padding": "same", "padding_mode": "reflect"},
    "same_circular": {"kernel_size": (4, 3), "padding": "same", "padding_mode": "circular", "groups": 4},
}


@pytest.mark.parametrize("name", MODULES)
@EVEN_SAME
def test_module_equals_torch(name: str) -> None:
    ours, theirs = (
        kind(4, 8, dtype=torch.float64, **MODULES[name])  # type: ignore[arg-type]
        for kind in (Conv2d, nn.Conv2d)
    )
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for shape in ((2, 4, 9, 8), (4, 9, 8), (0, 4, 9, 8)):
        input, reference_input = leaf(filled(shape)), leaf(filled(shape))
        output, expected = ours(input), theirs(reference_input)
        assert_close(output, expected)
        grad_output = filled(output.shape, seed=3)
        mine = gradients(output, [input, *ours.parameters()], grad_output)
        assert_all_close(mine, gradients(expected, [reference_input, *theirs.parameters()], grad_output))


@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("input_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_as_large_as_the_input(
    input_format: torch.memory_format, weight_format: torch.memory_format, stride: int
) -> None:
    problem = ConvProblem((5, 16, 3, 5), (9, 16, 3, 5), stride=stride)
    input, weight, bias = problem.tensors(torch.float64)
    tensors = input.to(memory_format=input_format), weight.to(memory_format=weight_format), bias
    assert_same_convolution(conv2d, F.conv2d, problem, tensors)
