"""Each instruction set in turn, at the edges of its vectors and tiles; and how one is chosen."""

import os
import subprocess
import sys

import pytest
import torch
from grid import ConvProblem, assert_same_convolution, compiled_only, filled, gradients, leaf, relative_error
from torch.nn import functional as F
from torch.testing import assert_close

from torchconv import ops, reference
from torchconv.functional import adaptive_avg_pool2d, col2im, conv2d, conv3d, im2col, max_pool2d

pytestmark = compiled_only

ISAS = ops.available_isas()
# One less and one more than a vector of 4, 8 or 16, and than the two or so that make a tile; rows of tiles are 6 or 14.
CHANNELS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
WIDTHS = (1, 2, 5, 6, 7, 13, 14, 15, 27, 28, 29, 83, 84, 85, 111, 112, 113)
DEPTHS = (95, 96, 97, 159, 160, 161, 191, 192, 193, 200, 319, 320, 321, 383, 384, 385)
DTYPES = [torch.float64, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(isa: str, channels: int, dtype: torch.dtype) -> None:
    problems = [
        ConvProblem((2, channels, 5, 7), (6, channels, 3, 3), padding=1),
        ConvProblem((2, 5, 5, 7), (channels, 5, 3, 2), stride=2),
        ConvProblem((1, 2 * channels, 4, 5), (2 * channels, channels, 2, 2), groups=2),
        ConvProblem((2, channels, 5, 7), (channels, 1, 3, 3), padding=1, groups=channels),
    ]
    with ops.algorithm("im2col"):
        for problem in problems:
            assert_same_convolution(conv2d, F.conv2d, problem, problem.tensors(dtype))


# Threads share the channels where rows are few; a weight's gradient is summed up for 32 vectors of channels at a time.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [*CHANNELS, 127, 128, 129, 145, 300, 530])
def test_depthwise_convolutions_of_few_rows_and_many(isa: str, channels: int, dtype: torch.dtype) -> None:
    problems = [
        ConvProblem((2, channels, 4, 7), (channels, 1, 7, 7), padding=3, groups=channels),
        ConvProblem((3, channels, 5, 6), (channels, 1, 3, 5), stride=2, padding=(0, 2), groups=channels),
        ConvProblem((1, channels, 6, 5), (channels, 1, 3, 3), padding=2, dilation=2, groups=channels, bias=False),
    ]
    if channels <= 17:
        problems.append(ConvProblem((1, channels, 1700, 3), (channels, 1, 3, 3), padding=1, groups=channels))
        problems.append(ConvProblem((1, channels, 40, 37), (channels, 1, 5, 7), padding=(3, 4), groups=channels))
    with ops.algorithm("im2col"):
        for problem in problems:
            assert_same_convolution(conv2d, F.conv2d, problem, problem.tensors(dtype))


# Weights larger than what they meet: read in place where they can be, and long runs of their gradient are written at a
# time. Pixels of 1024 and 512 numbers are a page apart.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positions", [1, 8, 13, 15, 29, 64, 65])
def test_few_positions_and_large_weights(isa: str, positions: int, dtype: torch.dtype) -> None:
    problems = [
        ConvProblem((positions, 1024, 1, 1), (33, 1024, 1, 1)),
        ConvProblem((positions, 144, 1, 1), (512, 144, 1, 1), bias=False),
        ConvProblem((1, 20, 1, positions), (70, 10, 1, 1), groups=2),
        ConvProblem((1, 67, 1, positions), (130, 67, 1, 1)),
        ConvProblem((positions, 2049, 1, 1), (7, 2049, 1, 1)),
    ]
    with ops.algorithm("im2col"):
        for problem in problems:
            assert_same_convolution(conv2d, F.conv2d, problem, problem.tensors(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_positions(isa: str, width: int, dtype: torch.dtype) -> None:
    with ops.algorithm("im2col"):
        for problem in (ConvProblem((1, 3, 1, width), (7, 3, 1, 1)), ConvProblem((1, 3, 3, width), (7, 3, 3, 3), 1, 1)):
            assert_same_convolution(conv2d, F.conv2d, problem, problem.tensors(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", DEPTHS)
def test_depths(isa: str, depth: int, dtype: torch.dtype) -> None:
    # The output sums over input channels, the input's gradient over output channels, the weight's over positions.
    problems = [
        ConvProblem((1, depth, 2, 3), (5, depth, 1, 1)),
        ConvProblem((1, 5, 2, 3), (depth, 5, 1, 1)),
        ConvProblem((1, 5, 1, depth), (3, 5, 1, 1)),
    ]
    with ops.algorithm("im2col"):
        for problem in problems:
            assert_same_convolution(conv2d, F.conv2d, problem, problem.tensors(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 7, 8, 15, 16, 17, 31, 32, 33, 65, 129])
def test_winograd_on_stacks_of_pictures(isa: str, channels: int, dtype: torch.dtype) -> None:
    problems = [
        ConvProblem((2, channels, 3, 9, 14), (5, channels, 3, 3, 3), padding=1, winograd=True),
        ConvProblem((1, 6, 4, 7, 31), (channels, 6, 2, 3, 3), winograd=True),
        ConvProblem((1, channels, 2, 5, 4), (channels + 1, channels, 3, 3, 3), padding=1, winograd=True),
        ConvProblem((1, channels, 10, 3, 2), (channels + 1, channels, 3, 1, 1), padding=(1, 0, 0), winograd=True),
    ]
    with ops.algorithm("winograd"):
        for problem in problems:
            assert_same_convolution(conv3d, F.conv3d, problem, problem.tensors(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 7, 8, 15, 16, 17, 31, 32, 33, 65, 191, 192, 193])
def test_winograd(isa: str, channels: int, dtype: torch.dtype) -> None:
    bound = 5e-6 if dtype == torch.float32 else 1e-13
    problems = [
        ConvProblem((2, channels, 9, 14), (5, channels, 3, 3), padding=1),
        ConvProblem((1, 6, 7, 61), (channels, 6, 3, 3)),
        ConvProblem((1, channels, 13, 18), (channels + 1, channels, 3, 3), padding=1),  # 6x6 from 32 on
        ConvProblem((1, channels, 13, 18), (channels + 1, channels, 3, 3), padding=(3, 0), dilation=(3, 2)),
        ConvProblem((2, channels, 3, 61), (channels + 1, channels, 1, 3), dilation=(1, 2)),
        ConvProblem((1, channels, 21, 2), (channels + 1, channels, 3, 1), padding=(1, 0)),
        ConvProblem((1, channels, 13, 9), (channels + 1, channels, 5, 5), padding=2),
        ConvProblem((1, channels, 3, 61), (channels + 1, channels, 1, 5), padding=(0, 1)),
    ]
    for problem in problems:
        tensors = [leaf(t) for t in problem.tensors(dtype)]
        exact = [leaf(t.double()) for t in tensors]  # type: ignore[union-attr]
        with ops.algorithm("winograd"):
            ours = conv2d(*tensors, **problem.arguments)
        theirs = F.conv2d(*exact, **problem.arguments)
        grad_output = filled(ours.shape, dtype, 3)
        mine, expected = gradients(ours, tensors, grad_output), gradients(theirs, exact, grad_output.double())
        for a, b in zip([ours, *mine], [theirs, *expected], strict=True):
            assert relative_error(a, b) <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17, 63, 64, 65])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pooling_and_columns(isa: str, format: torch.memory_format, channels: int, dtype: torch.dtype) -> None:
    for width in (5, 16, 33):
        input = filled((2, channels, 6, width), dtype).contiguous(memory_format=format)
        mine, exact = leaf(input), leaf(input.double())
        ours, theirs = max_pool2d(mine, 3, 2, 1), F.max_pool2d(exact, 3, 2, 1)
        assert torch.equal(ours.double(), theirs)
        grad_output = filled(ours.shape, dtype, 3).contiguous(memory_format=format)
        (grad,), (expected,) = gradients(ours, [mine], grad_output), gradients(theirs, [exact], grad_output.double())
        assert_close(grad, expected.to(dtype))
        columns = im2col(input, 3, padding=1)
        assert torch.equal(columns, F.unfold(input, 3, padding=1))
        back = F.fold(columns.double(), (6, width), 3, padding=1)
        assert_close(col2im(columns, (6, width), 3, padding=1), back.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("save", [True, False], ids=["saving", "not_saving"])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (2, 1), (3, 2), (3, 1), (4, 3)])
def test_max_pooling_of_special_values(isa: str, kernel: int, stride: int, save: bool, dtype: torch.dtype) -> None:
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, -torch.inf, 1.0, 2.0], dtype=dtype)
    window = ([kernel] * 2, [stride] * 2, [1, 1], [1, 1], False)
    for shape, channels_last in (((2, 3, 6, 37), False), ((2, 3, 5, 8), False), ((2, 37, 6, 5), True)):
        input = special[filled(shape, seed=9).mul(4).round().remainder(8).long()]
        output, positions = torch.ops.torchconv.max_pool(input, *window, save, channels_last)
        expected, places = reference.max_pool(input, *window)
        assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
        number = ~expected.isnan()
        assert torch.equal(output.signbit()[number], expected.signbit()[number])  # a zero keeps its sign
        assert torch.equal(positions, places) if save else positions.numel() == 0


# Vectors run along the width, or channels-last along the channels.
BOXES = [(3, width, False) for width in (2, 5, 15, 16, 17, 33)] + [(c, 5, True) for c in (1, 3, 15, 16, 17, 64, 65, 83)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_poolings_over_boxes(isa: str, dtype: torch.dtype) -> None:
    window = ([3, 2], [2, 1], [1, 1], True, False, None)
    for channels, width, channels_last in BOXES:
        input = filled((2, channels, 6, width), dtype)
        for op, args in (
            ("avg_pool", window),
            ("avg_pool_input", ([11, width - 1], *window)),
            ("adaptive_avg_pool", ([4, 7],)),
            ("avg_pool", ([2, 2], [2, 2], [0, 0], False, True, None)),  # even boxes
            ("avg_pool", ([3, 1], [1, 2], [1, 0], True, True, None)),
            ("adaptive_avg_pool", ([2, 1],)),  # whole lines
            ("adaptive_avg_pool", ([1, 1],)),  # all pixels
            ("adaptive_avg_pool_input", ([9, 21],)),
        ):
            output = getattr(torch.ops.torchconv, op)(input, *args, channels_last)
            assert_close(output, getattr(reference, op)(input.double(), *args).to(dtype))
        ties = input.round()
        ties[:, ::2, 2, 1] = torch.nan
        maxima, indices = torch.ops.torchconv.adaptive_max_pool(ties, [4, 7], channels_last)
        expected, places = reference.adaptive_max_pool(ties, [4, 7])
        assert torch.equal(indices, places)
        assert_close(maxima, expected, rtol=0, atol=0, equal_nan=True)


def test_winograd_with_more_tiles_than_lie_beside_a_panel(isa: str) -> None:
    problem = ConvProblem((1, 48, 107, 131), (432, 48, 3, 3), padding=1)  # 396 tiles
    x, w, b = problem.tensors(torch.float32)
    with ops.algorithm("winograd"):
        ours = conv2d(x, w, b, padding=1)
    assert relative_error(ours, F.conv2d(x.double(), w.double(), b.double(), padding=1)) <= 5e-6


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_means_over_many_pixels_err_little(isa: str, format: torch.memory_format) -> None:
    input = (1 + filled((2, 21, 301, 203), torch.float32)).contiguous(memory_format=format)  # of ones, all sums grow
    means = adaptive_avg_pool2d(input, 1)
    assert_close(means, input.double().mean((2, 3), keepdim=True).float(), rtol=2e-6, atol=0)


def test_unknown_name_is_an_error_and_changes_nothing() -> None:
    before = ops.isa()
    for name in ("sse9", "AVX2", "avx512 ", "é"):
        with pytest.raises(RuntimeError, match=r"is not available here, expected one of: .*baseline"):
            ops.set_isa(name)
    assert ops.isa() == before
    assert ISAS[-1] == "baseline"


def in_new_process(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TORCHCONV_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ISAS)
def test_environment_variable_chooses(name: str) -> None:
    done = in_new_process(name, "from torchconv import ops; print(ops.isa())")
    assert (done.stdout.strip(), done.returncode) == (name, 0), done.stderr


def test_environment_variable_with_a_wrong_name_is_an_error_at_first_use() -> None:
    done = in_new_process("sse9", "import torch, torchconv; torchconv.functional.im2col(torch.ones(1, 1, 2, 2), 2)")
    assert done.returncode == 1
    assert "instruction set 'sse9' is not available here, expected one of: " in done.stderr
    assert "RuntimeError: " in done.stderr
