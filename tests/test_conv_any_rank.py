"""The ops conv, conv_input and conv_weight in one, two and three spatial dimensions, against torch."""

from collections.abc import Iterator

import pytest
import torch
from grid import ALGORITHMS, CONV_PROBLEMS, ConvProblem, assert_all_close, filled, gradients, leaf
from torch import Tensor
from torch.nn import functional as F

from torchconv import ops

PROBLEMS: dict[str, ConvProblem] = {
    "1d": ConvProblem((2, 3, 17), (4, 3, 3), padding=1),
    "1d_strided_dilated": ConvProblem((2, 3, 17), (4, 3, 4), 3, 2, 2),
    "1d_groups": ConvProblem((2, 6, 9), (9, 2, 3), 2, 1, 1, 3),
    "1d_depthwise": ConvProblem((2, 33, 9), (33, 1, 3), 1, 2, 2, 33),
    "1d_one_tap": ConvProblem((2, 20, 9), (17, 20, 1)),
    "1d_batch_of_none": ConvProblem((0, 3, 9), (4, 3, 3)),
    "3d": ConvProblem((2, 3, 5, 6, 7), (4, 3, 3, 3, 3), padding=1),
    "3d_uneven": ConvProblem((2, 3, 6, 5, 7), (4, 3, 2, 1, 3), (2, 1, 3), (1, 0, 2), (1, 3, 2)),
    "3d_strided_dilated": ConvProblem((1, 3, 9, 8, 7), (4, 3, 3, 3, 2), (4, 2, 3), 2, (2, 1, 4)),
    "3d_groups": ConvProblem((2, 4, 5, 4, 6), (6, 2, 3, 2, 3), 2, 1, 1, 2),
    "3d_depthwise": ConvProblem((2, 17, 5, 4, 6), (17, 1, 3, 2, 3), 1, 1, 1, 17),
    "3d_flat": ConvProblem((2, 40, 1, 12, 13), (36, 40, 1, 3, 3), 1, (0, 1, 1), winograd=True),
    "3d_wide_enough_for_winograd": ConvProblem((2, 33, 4, 9, 13), (34, 33, 3, 3, 3), padding=1, winograd=True),
    "3d_batch_of_none": ConvProblem((0, 3, 5, 6, 7), (4, 3, 3, 3, 3)),
}

TORCHS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


def in_format(tensor: Tensor, channels_last: bool) -> Tensor:
    return tensor.contiguous(memory_format=ops.memory_format_of(tensor.dim(), channels_last))


def assert_ops_equal_torch(
    problem: ConvProblem, dtype: torch.dtype, algorithm: str, channels_last: bool = False
) -> None:
    input, weight, bias = problem.tensors(dtype)
    exact = [None if t is None else leaf(t.double()) for t in (input, weight, bias)]
    expected = TORCHS[input.dim()](*exact, **problem.arguments)
    input = in_format(input, channels_last)
    output = ops.conv(input, weight, bias, *problem.geometry, algorithm)
    grad_output = in_format(filled(output.shape, dtype, 3) / max(1, output[:, 0].numel()) ** 0.5, channels_last)
    mine = [
        output,
        ops.conv_input(grad_output, weight, input.shape[2:], *problem.geometry, algorithm),
        ops.conv_weight(input, grad_output, weight.shape[2:], *problem.geometry, algorithm),
    ]
    theirs = [expected, *gradients(expected, exact[:2], grad_output.double())]
    assert_all_close(mine, theirs, problem.winograd)
    for ours in mine:
        assert ours.dtype == dtype
        if 0 not in input.shape:  # an empty tensor is in both formats
            assert ours.stride() == in_format(ours, channels_last).stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*PROBLEMS, *CONV_PROBLEMS])
def test_ops_equal_torch(name: str, dtype: torch.dtype, algorithm: str) -> None:
    assert_ops_equal_torch((PROBLEMS | CONV_PROBLEMS)[name], dtype, algorithm)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name.startswith("3d")])
def test_ops_equal_torch_in_channels_last_3d(name: str, algorithm: str) -> None:
    assert_ops_equal_torch(PROBLEMS[name], torch.float64, algorithm, channels_last=True)


@pytest.mark.parametrize("name", PROBLEMS)
def test_three_maps_are_adjoint(name: str, algorithm: str) -> None:
    problem = PROBLEMS[name]
    input, weight, _ = problem.tensors()
    output = ops.conv(input, weight, None, *problem.geometry, algorithm)
    other = filled(output.shape, seed=5)
    by_output = (output * other).sum()
    by_input = (input * ops.conv_input(other, weight, input.shape[2:], *problem.geometry, algorithm)).sum()
    by_weight = (weight * ops.conv_weight(input, other, weight.shape[2:], *problem.geometry, algorithm)).sum()
    torch.testing.assert_close(by_input, by_output)
    torch.testing.assert_close(by_weight, by_output)
