"""Convolutions of bfloat16 by the kernels that multiply pairs of it: sums in float32, rounded once.

test_kernel_properties.py tries any sizes; here are those at which these kernels' tiles, blocks and parts end.
"""

import pytest
import torch
from grid import LAYOUTS, ConvProblem, compiled_only, filled
from torch.autograd import grad
from torch.nn import functional as F

from torchconv import ops
from torchconv.functional import conv2d, conv3d

pytestmark = compiled_only

ROUNDING = 2**-8
CHANNELS = [1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 47, 65]


def check(problem: ConvProblem, layout: str = "channels_last", of_weight: str = "contiguous") -> None:
    """Output and gradients beside torch's in float64: rounded once, of float32 sums that err by their size."""
    input, weight, bias = problem.tensors(torch.bfloat16)
    tensors = [t.detach().requires_grad_() for t in (LAYOUTS[layout](input), LAYOUTS[of_weight](weight))]
    wide = [t.detach().double().requires_grad_() for t in tensors]
    ours, theirs = (conv2d, F.conv2d) if input.dim() == 4 else (conv3d, F.conv3d)
    with ops.algorithm("im2col"):
        output = ours(*tensors, bias, **problem.arguments)
        grad_output = LAYOUTS[layout](filled(tuple(output.shape), torch.bfloat16, 3))
        actual = [output, *grad(output, tensors, grad_output)]
    expected = theirs(*wide, None if bias is None else bias.double(), **problem.arguments)
    for a, e in zip(actual, [expected, *grad(expected, wide, grad_output.double())], strict=True):
        assert (a.shape, a.dtype) == (e.shape, torch.bfloat16)
        scale = e.square().mean().sqrt() if e.numel() else 0
        assert ((a.double() - e).abs() <= ROUNDING * e.abs() + 1e-5 * scale).all()


@pytest.mark.parametrize("of_weight", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(isa: str, channels: int, of_weight: str) -> None:
    for kernel in (1, 2, 3):
        padding = kernel // 2
        check(ConvProblem((2, channels, 5, 19), (20, channels, kernel, kernel), padding=padding), of_weight=of_weight)
        check(ConvProblem((2, 20, 5, 19), (channels, 20, kernel, kernel), padding=padding), of_weight=of_weight)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("width", [1, 11, 12, 15, 16, 17, 31, 32, 33, 47, 48, 127, 128, 129, 200, 300])
def test_widths(isa: str, width: int, layout: str) -> None:
    """Lines that are packed, copied, or but for their ends read in place."""
    for arguments in ({"padding": 1}, {"padding": 3, "dilation": 3}, {"padding": 1, "stride": 2}, {"padding": (0, 7)}):
        check(ConvProblem((2, 18, 8, width + 6), (24, 18, 3, 3), **arguments), layout)
    check(ConvProblem((3, 34, 1, width), (40, 34, 1, 1)), layout)


@pytest.mark.parametrize("depth", [254, 256, 258, 510, 512, 514, 600, 1024, 1026])
def test_depths(isa: str, depth: int) -> None:
    check(ConvProblem((1, depth, 3, 20), (33, depth, 1, 1)))
    check(ConvProblem((1, depth, 3, 13), (17, depth, 1, 3), padding=(0, 1)))
    check(ConvProblem((1, depth, 3, 3), (40, depth, 3, 3), padding=1))
    check(ConvProblem((1, 33, 1, depth), (20, 33, 1, 3)))  # the weight's gradient sums over positions


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_weight_gradients_in_several_parts(isa: str, layout: str) -> None:
    """More of both operands than are packed at a time; small pictures, several of which are a stretch."""
    check(ConvProblem((5, 48, 60, 61), (40, 48, 3, 3), padding=1), layout)
    check(ConvProblem((40, 130, 7, 7), (70, 130, 3, 3), padding=1), layout)
    check(ConvProblem((6, 96, 40, 40), (200, 96, 1, 1)), layout)
    check(ConvProblem((3, 3, 110, 111), (64, 3, 7, 7), stride=2, padding=3), layout)


def test_groups_and_stacks(isa: str) -> None:
    for channels in (4, 16, 18):
        check(ConvProblem((2, 3 * channels, 9, 20), (3 * 17, channels, 3, 3), stride=(2, 1), padding=1, groups=3))
    check(ConvProblem((2, 18, 5, 6, 17), (20, 18, 3, 2, 3), stride=(1, 2, 1), padding=1), "contiguous")
    check(ConvProblem((1, 18, 6, 6, 8), (20, 18, 2, 2, 2), stride=2), "contiguous")
    check(ConvProblem((2, 40, 9, 8), (40, 1, 3, 3), padding=1, groups=40))


def test_without_pictures(isa: str) -> None:
    check(ConvProblem((0, 18, 9, 20), (20, 18, 3, 3), padding=1))


def test_what_lies_beside_a_window_is_not_multiplied(isa: str) -> None:
    """Infinity times a zero that fills something up would be NaN."""
    for channels in (3, 18):
        input = torch.ones(1, channels, 6, 40, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        input[0, :, 2, 20] = torch.inf
        weight = torch.ones(20, channels, 3, 3, dtype=torch.bfloat16)
        with ops.algorithm("im2col"):
            output = conv2d(input, weight, padding=1)
        assert torch.equal(output.float(), F.conv2d(input.float(), weight.float(), padding=1))


def test_threads_do_not_change_the_bits(isa: str) -> None:
    problem = ConvProblem((2, 34, 30, 31), (70, 34, 3, 3), padding=1)
    input, weight, bias = problem.tensors(torch.bfloat16)
    leaves = [t.requires_grad_() for t in (input, weight)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            output = conv2d(*leaves, bias, padding=1)
            results.append([output, *grad(output, leaves, torch.ones_like(output))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for others in results[1:] for a, b in zip(results[0], others, strict=True))
