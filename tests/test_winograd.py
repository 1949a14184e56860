"""Winograd's algorithm, for three or five taps along one dimension or two: its error, where it is used, its limits."""

from dataclasses import replace

import geometries
import pytest
import torch
from grid import (
    CONV_PROBLEMS,
    LAYOUTS,
    WINOGRAD_LINES,
    WINOGRAD_PROBLEMS,
    WINOGRAD_STACKS,
    ConvProblem,
    assert_same_convolution,
    compiled_only,
    filled,
    gradients,
    leaf,
    relative_error,
)
from torch.nn import functional as F

from torchconv import ops
from torchconv.functional import conv1d, conv2d, conv3d

pytestmark = compiled_only


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", [*WINOGRAD_PROBLEMS, "c512"])
def test_winograd_errs_by_less_than_five_millionths(name: str, layout: str) -> None:
    problem = WINOGRAD_PROBLEMS.get(name, ConvProblem((1, 512, 13, 11), (512, 512, 3, 3), padding=1))
    input, weight, bias = problem.tensors(torch.float32)
    tensors = [leaf(LAYOUTS[layout](input)), leaf(weight), leaf(bias)]
    exact = [None if t is None else leaf(t.double()) for t in tensors]
    with ops.algorithm("winograd"):
        ours = conv2d(*tensors, **problem.arguments)
    expected = F.conv2d(*exact, **problem.arguments)
    grad_output = filled(ours.shape, torch.float32, 3)
    mine, theirs = gradients(ours, tensors[:2], grad_output), gradients(expected, exact[:2], grad_output.double())
    for a, b in zip([ours, *mine], [expected, *theirs], strict=True):
        assert relative_error(a, b) <= 5e-6


CONVOLUTIONS = {3: (conv1d, F.conv1d), 4: (conv2d, F.conv2d), 5: (conv3d, F.conv3d)}
OTHERS = WINOGRAD_STACKS | WINOGRAD_LINES


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_winograd_on_stacks_of_pictures_on_lines_and_with_gaps(name: str, dtype: torch.dtype, layout: str) -> None:
    problem = replace(OTHERS[name], winograd=True)
    input, weight, bias = problem.tensors(dtype)
    of_any_rank = geometries.LAYOUTS[layout]
    tensors = of_any_rank(input), of_any_rank(weight), bias
    with ops.algorithm("winograd"):
        assert_same_convolution(*CONVOLUTIONS[len(problem.input)], problem, tensors)


@pytest.mark.parametrize("name", WINOGRAD_LINES)
def test_winograd_on_lines_and_with_gaps_errs_by_less_than_five_millionths(name: str) -> None:
    problem = WINOGRAD_LINES[name]
    ours, theirs = CONVOLUTIONS[len(problem.input)]
    tensors = [leaf(t) for t in problem.tensors(torch.float32)]
    exact = [None if t is None else leaf(t.double()) for t in tensors]
    with ops.algorithm("winograd"):
        output = ours(*tensors, **problem.arguments)
    expected = theirs(*exact, **problem.arguments)
    grad_output = filled(output.shape, torch.float32, 3)
    mine, wanted = gradients(output, tensors[:2], grad_output), gradients(expected, exact[:2], grad_output.double())
    for a, b in zip([output, *mine], [expected, *wanted], strict=True):
        assert relative_error(a, b) <= 5e-6


AUTOMATIC = {
    "line": ConvProblem((1, 64, 60), (64, 64, 3), padding=1),
    "row": ConvProblem((1, 64, 7, 32), (64, 64, 1, 3)),
    "column": ConvProblem((1, 64, 32, 7), (64, 64, 3, 1)),
    "through": ConvProblem((1, 64, 12, 4, 4), (64, 64, 3, 1, 1), padding=(1, 0, 0)),
    "square_with_gaps": ConvProblem((1, 32, 24, 24), (32, 32, 3, 3), padding=2, dilation=2),
    "cube_with_gaps": ConvProblem((1, 32, 6, 16, 16), (32, 32, 3, 3, 3), padding=2, dilation=2),
    "line_of_five": ConvProblem((1, 64, 60), (64, 64, 5), padding=2),
    "square_of_five": ConvProblem((1, 32, 9, 9), (33, 32, 5, 5), padding=2),
}
NOT_AUTOMATIC = {
    "few_channels": ConvProblem((1, 63, 60), (64, 63, 3), padding=1),
    "few_positions": ConvProblem((1, 64, 47), (64, 64, 3), padding=1),
    "few_in_a_line": ConvProblem((1, 64, 30, 2), (64, 64, 1, 3), padding=(0, 1)),
    "gaps_beyond_its_end": ConvProblem((1, 32, 24, 24), (32, 32, 3, 3), padding=12, dilation=12),
}


@pytest.mark.parametrize("name", [*AUTOMATIC, *NOT_AUTOMATIC])
def test_auto_is_winograd_on_lines_and_with_gaps_where_it_saves(name: str) -> None:
    problem = (AUTOMATIC | NOT_AUTOMATIC)[name]
    by_algorithm = {}
    for algorithm in ("auto", "winograd", "im2col"):
        with ops.algorithm(algorithm):
            input, weight, bias = (leaf(t) for t in problem.tensors(torch.float32))
            output = CONVOLUTIONS[len(problem.input)][0](input, weight, bias, **problem.arguments)
            by_algorithm[algorithm] = [output, *gradients(output, [input], filled(output.shape, torch.float32))]
    used, other = ("winograd", "im2col") if name in AUTOMATIC else ("im2col", "winograd")
    for auto, same, different in zip(*(by_algorithm[each] for each in ("auto", used, other)), strict=True):
        assert torch.equal(auto, same)
        assert not torch.equal(auto, different)


def test_auto_is_winograd_on_stacks_of_pictures() -> None:
    problem = WINOGRAD_STACKS["cube"]
    input, weight, _ = problem.tensors(torch.float32)
    by_algorithm = {}
    for name in ("auto", "winograd", "im2col"):
        with ops.algorithm(name):
            by_algorithm[name] = conv3d(input, weight, padding=1)
    assert torch.equal(by_algorithm["auto"], by_algorithm["winograd"])
    assert not torch.equal(by_algorithm["auto"], by_algorithm["im2col"])


@pytest.mark.parametrize("name", WINOGRAD_PROBLEMS)
def test_winograd_in_float64(name: str) -> None:
    problem = WINOGRAD_PROBLEMS[name]
    with ops.algorithm("winograd"):
        assert_same_convolution(conv2d, F.conv2d, problem, problem.tensors())


def test_backward_uses_the_algorithm_of_forward() -> None:
    problem = CONV_PROBLEMS["wide_enough_for_winograd"]
    input, weight, _ = [leaf(t) for t in problem.tensors(torch.float32)]
    grad_output = filled((2, 34, 13, 15), torch.float32)
    by_algorithm = {}
    for name in ("im2col", "winograd"):
        with ops.algorithm(name):
            output = conv2d(input, weight, padding=1)
        by_algorithm[name] = gradients(output, [input], grad_output)[0]
        with ops.algorithm(name):
            inside = gradients(conv2d(input, weight, padding=1), [input], grad_output)[0]
        assert torch.equal(by_algorithm[name], inside)
    assert not torch.equal(by_algorithm["im2col"], by_algorithm["winograd"])


UNSERVED = {
    "kernel": ConvProblem((1, 2, 6, 6), (2, 2, 2, 3)),
    "stride": ConvProblem((1, 2, 6, 6), (2, 2, 3, 3), stride=(1, 2)),
    "groups": ConvProblem((1, 2, 6, 6), (2, 1, 3, 3), groups=2),
    "stride_in_depth": ConvProblem((1, 2, 6, 6, 6), (2, 2, 3, 3, 3), stride=(2, 1, 1)),
    "stride_in_one_dimension": ConvProblem((1, 2, 6), (2, 2, 3), stride=3),
    "one_tap": ConvProblem((1, 2, 6), (2, 2, 1)),
    "three_by_five": ConvProblem((1, 2, 6, 6), (2, 2, 3, 5)),
    "line_through_a_stack_of_padded_pictures": ConvProblem((1, 2, 6, 6, 6), (2, 2, 3, 1, 1), padding=(0, 1, 0)),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_a_geometry_that_winograd_does_not_serve_is_an_error(name: str) -> None:
    problem = UNSERVED[name]
    with ops.algorithm("winograd"), pytest.raises(RuntimeError, match="'winograd' serves kernels of three or five"):
        CONVOLUTIONS[len(problem.input)][0](*problem.tensors(), **problem.arguments)
