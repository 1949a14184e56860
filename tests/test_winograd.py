"""Winograd's algorithm for 3x3 kernels: its error, where it is used, and what it refuses."""

import pytest
import torch
from grid import (
    CONV_PROBLEMS,
    LAYOUTS,
    WINOGRAD_PROBLEMS,
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
from torchconv.functional import conv2d

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
    "dilation": ConvProblem((1, 2, 6, 6), (2, 2, 3, 3), dilation=2),
    "groups": ConvProblem((1, 2, 6, 6), (2, 1, 3, 3), groups=2),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_a_geometry_that_winograd_does_not_serve_is_an_error(name: str) -> None:
    problem = UNSERVED[name]
    with ops.algorithm("winograd"), pytest.raises(RuntimeError, match="algorithm 'winograd' serves 3x3 kernels"):
        conv2d(*problem.tensors(), **problem.arguments)
