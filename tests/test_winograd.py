"""Winograd's algorithm for 3x3 kernels: its error, where it is used, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from grid import (
    CONV_PROBLEMS,
    LAYOUTS,
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


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", WINOGRAD_STACKS)
def test_winograd_on_stacks_of_pictures(name: str, dtype: torch.dtype, channels_last: bool) -> None:
    problem = replace(WINOGRAD_STACKS[name], winograd=True)
    input, weight, bias = problem.tensors(dtype)
    if channels_last:
        input, weight = (t.contiguous(memory_format=torch.channels_last_3d) for t in (input, weight))
    with ops.algorithm("winograd"):
        assert_same_convolution(conv3d, F.conv3d, problem, (input, weight, bias))


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


CONVOLUTIONS = {3: conv1d, 4: conv2d, 5: conv3d}
UNSERVED = {
    "kernel": ConvProblem((1, 2, 6, 6), (2, 2, 2, 3)),
    "stride": ConvProblem((1, 2, 6, 6), (2, 2, 3, 3), stride=(1, 2)),
    "dilation": ConvProblem((1, 2, 6, 6), (2, 2, 3, 3), dilation=2),
    "groups": ConvProblem((1, 2, 6, 6), (2, 1, 3, 3), groups=2),
    "stride_in_depth": ConvProblem((1, 2, 6, 6, 6), (2, 2, 3, 3, 3), stride=(2, 1, 1)),
    "dilation_in_depth": ConvProblem((1, 2, 6, 6, 6), (2, 2, 3, 3, 3), dilation=(2, 1, 1)),
    "one_dimension": ConvProblem((1, 2, 6), (2, 2, 3)),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_a_geometry_that_winograd_does_not_serve_is_an_error(name: str) -> None:
    problem = UNSERVED[name]
    with ops.algorithm("winograd"), pytest.raises(RuntimeError, match="algorithm 'winograd' serves 3x3 kernels"):
        CONVOLUTIONS[len(problem.input)](*problem.tensors(), **problem.arguments)
