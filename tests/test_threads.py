"""Results are the same to the last bit for every number of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch
from grid import BACKENDS, ConvProblem, compiled_only, filled, gradients, leaf
from torch import Tensor

from torchconv import ops
from torchconv.functional import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    col2im,
    conv2d,
    im2col,
    max_pool2d,
)


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_independent_of_threads(compute: Callable[[], list[Tensor]]) -> None:
    results = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        results.append(compute())
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert torch.equal(one, other)


# Large enough that every number of threads cuts them, and cuts them elsewhere.
PROBLEMS: dict[str, ConvProblem] = {
    "many_positions": ConvProblem((2, 5, 41, 47), (13, 5, 3, 3), padding=1),
    "many_channels": ConvProblem((1, 130, 9, 11), (150, 130, 3, 3), padding=1),
    "one_position": ConvProblem((1, 300, 3, 3), (170, 300, 3, 3)),
    "strided": ConvProblem((3, 20, 33, 35), (40, 20, 5, 5), stride=(2, 3), padding=2),
    "groups": ConvProblem((2, 48, 19, 21), (72, 16, 3, 3), padding=2, dilation=2, groups=3),
    "depthwise_narrow": ConvProblem((2, 150, 6, 7), (150, 1, 7, 7), padding=3, groups=150),
    "depthwise": ConvProblem((2, 100, 25, 27), (100, 1, 3, 3), padding=1, groups=100),
    "wide_enough_for_winograd": ConvProblem((2, 70, 33, 35), (90, 70, 3, 3), padding=1),
    "deep_weight_gradient": ConvProblem((4, 3, 64, 65), (8, 3, 3, 3), padding=1),
}


@pytest.mark.parametrize("algorithm", [pytest.param(name, marks=compiled_only) for name in ("auto", "im2col")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_convolution(name: str, format: torch.memory_format, dtype: torch.dtype, algorithm: str) -> None:
    problem = PROBLEMS[name]
    input, weight, bias = problem.tensors(dtype)
    tensors = [leaf(input.contiguous(memory_format=format)), leaf(weight), leaf(bias)]

    def compute() -> list[Tensor]:
        with ops.algorithm(algorithm):
            output = conv2d(*tensors, **problem.arguments)
        grad_output = filled(output.shape, dtype, 3).contiguous(memory_format=format)
        # Without the bias: its gradient is a sum of torch's.
        return [output, *gradients(output, tensors[:2], grad_output)]

    assert_independent_of_threads(compute)


@compiled_only
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_winograd(padding: int) -> None:
    problem = ConvProblem((3, 17, 45, 50), (20, 17, 3, 3), padding=padding)
    tensors = [leaf(t) for t in problem.tensors(torch.float32)]

    def compute() -> list[Tensor]:
        with ops.algorithm("winograd"):
            output = conv2d(*tensors, **problem.arguments)
        return [output, *gradients(output, tensors[:2], filled(output.shape, torch.float32, 3))]

    assert_independent_of_threads(compute)


@pytest.mark.parametrize("algorithm", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pooling_and_columns(format: torch.memory_format, dtype: torch.dtype, algorithm: str) -> None:
    input = leaf(filled((2, 37, 41, 43), dtype).contiguous(memory_format=format))

    def compute() -> list[Tensor]:
        with ops.algorithm(algorithm):
            output = max_pool2d(input, 3, 2, 1)
            grad_output = leaf(filled(output.shape, dtype, 3))
            (scattered,) = torch.autograd.grad(output, input, grad_output, create_graph=True)
            (gathered,) = torch.autograd.grad(scattered, grad_output, input.detach())
            columns = im2col(input.detach(), 3, padding=1)
            return [output, scattered, gathered, columns, col2im(columns, (41, 43), 3, padding=1)]

    assert_independent_of_threads(compute)


@pytest.mark.parametrize("algorithm", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_poolings_over_boxes(format: torch.memory_format, dtype: torch.dtype, algorithm: str) -> None:
    input = leaf(filled((2, 37, 41, 43), dtype).contiguous(memory_format=format))

    def compute() -> list[Tensor]:
        with ops.algorithm(algorithm):
            outputs = [avg_pool2d(input, 3, 2, 1, True, False), adaptive_avg_pool2d(input, (9, 50))]
            grads = [gradients(output, [input], filled(output.shape, dtype, 3))[0] for output in outputs]
            # Not its gradient: where boxes overlap torch.gather's backward adds.
            return [*outputs, *grads, *adaptive_max_pool2d(input, (9, 50), True)]

    assert_independent_of_threads(compute)
