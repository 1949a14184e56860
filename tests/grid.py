"""Problems, layouts and comparisons that the tests of the core share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from torchconv import _extension

compiled_only = pytest.mark.skipif(
    not _extension.LOADED, reason=f"tests the compiled ops, which are not loaded: {_extension.REASON}"
)

# Without the extension every algorithm is the reference: one of them, the default, is enough.
ALGORITHMS = ("auto", "im2col", "reference") if _extension.LOADED else ("auto",)
BACKENDS = ("auto", "reference") if _extension.LOADED else ("auto",)  # for ops that have but one algorithm

Layout = Callable[[Tensor], Tensor]

# Each gives a tensor of the same shape and dtype, with other strides; the expanded ones repeat what stands first.
LAYOUTS: dict[str, Layout] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every_second_column": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "border_cut_off": lambda t: torch.nn.functional.pad(t, (1, 2, 2, 1))[:, :, 2:-1, 1:-2],
    "some_channels": lambda t: torch.cat([t, t, t], 1)[:, t.shape[1] : 2 * t.shape[1]],
    "channels_of_channels_last": lambda t: torch.cat([t, t], 1).contiguous(memory_format=torch.channels_last)[
        :, t.shape[1] :
    ],
    "height_and_width_swapped": lambda t: t.mT.contiguous().mT,
    "batch_and_channels_swapped": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded_batch": lambda t: t[:1].expand(t.shape),
    "expanded_channels": lambda t: t[:, :1].expand(t.shape),
    "expanded_everything": lambda t: t[:1, :1, :1, :1].expand(t.shape),
    "storage_offset": lambda t: torch.cat([t.new_ones(3), t.flatten()])[3:].view(t.shape),
    "imaginary_part_of_a_conjugate": lambda t: torch.complex(t, -t).conj().imag,  # has torch's lazy negative bit
}


def filled(shape: Sequence[int], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Normally distributed values, the same at each call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class ConvProblem:
    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    bias: bool = True
    winograd: bool = False  # "auto" may compute it in float32 by Winograd's algorithm

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias; the weight is as small as an initialised layer's, so that outputs are of size 1."""
        bias = filled(self.weight[:1], dtype, 2) if self.bias else None
        weight = filled(self.weight, seed=1) / sqrt(max(1, prod(self.weight[1:])))
        return filled(self.input, dtype, 0), weight.to(dtype), bias

    @property
    def arguments(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Stride, padding, dilation and groups, as the ops take them."""
        rank = len(self.input) - 2
        each = [
            list(value) if isinstance(value, tuple) else [value] * rank
            for value in (self.stride, self.padding, self.dilation)
        ]
        return each[0], each[1], each[2], self.groups


CONV_PROBLEMS: dict[str, ConvProblem] = {
    "3x3": ConvProblem((2, 3, 8, 9), (5, 3, 3, 3)),
    "3x3_padded": ConvProblem((2, 3, 8, 9), (5, 3, 3, 3), padding=1),
    "3x3_no_bias": ConvProblem((2, 3, 8, 9), (5, 3, 3, 3), padding=1, bias=False),
    "1x1": ConvProblem((2, 7, 5, 6), (4, 7, 1, 1)),
    "1x1_strided": ConvProblem((2, 7, 5, 6), (4, 7, 1, 1), stride=2),
    "1x1_padded": ConvProblem((2, 7, 5, 6), (4, 7, 1, 1), padding=2),
    "even_kernel": ConvProblem((2, 3, 8, 9), (4, 3, 2, 4), padding=1),
    "kernel_as_large_as_the_input": ConvProblem((2, 3, 5, 4), (4, 3, 5, 4)),
    "kernel_larger_than_the_input": ConvProblem((2, 3, 2, 1), (4, 3, 4, 5), padding=2),
    "one_pixel": ConvProblem((1, 1, 1, 1), (1, 1, 1, 1)),
    "row_kernel": ConvProblem((2, 3, 6, 9), (4, 3, 1, 5), padding=(0, 2)),
    "column_kernel": ConvProblem((2, 3, 9, 6), (4, 3, 5, 1), padding=(2, 0)),
    "stride_2": ConvProblem((2, 3, 9, 8), (4, 3, 3, 3), stride=2, padding=1),
    "stride_beyond_the_kernel": ConvProblem((2, 3, 11, 12), (4, 3, 2, 2), stride=(3, 5)),
    "stride_leaves_a_rest": ConvProblem((2, 3, 10, 11), (4, 3, 3, 3), stride=(4, 3)),
    "stride_beyond_the_input": ConvProblem((2, 3, 5, 5), (4, 3, 3, 3), stride=7),
    "dilated": ConvProblem((2, 3, 9, 10), (4, 3, 3, 3), padding=2, dilation=2),
    "dilated_unevenly": ConvProblem((2, 3, 9, 12), (4, 3, 3, 2), padding=(1, 3), dilation=(1, 4)),
    "stride_and_dilation_without_common_divisor": ConvProblem(
        (2, 3, 13, 14), (4, 3, 3, 3), stride=(3, 2), padding=2, dilation=(2, 3)
    ),
    "stride_and_dilation_with_common_divisor": ConvProblem(
        (2, 3, 15, 16), (4, 3, 3, 4), stride=(4, 6), padding=(1, 3), dilation=(2, 4)
    ),
    "gaps_beyond_the_input": ConvProblem((2, 3, 5, 7), (4, 3, 3, 3), padding=6, dilation=6),
    "gaps_beyond_lines_of_the_input": ConvProblem((2, 40, 9, 14), (37, 40, 3, 5), padding=(9, 12), dilation=(9, 6)),
    "gaps_beyond_half_of_the_input": ConvProblem((1, 34, 14, 28), (36, 34, 3, 3), padding=(8, 15), dilation=(8, 15)),
    "outer_taps_in_the_padding": ConvProblem((2, 33, 2, 13), (34, 33, 7, 3), (1, 2), (3, 1)),
    "padding_beyond_the_kernel": ConvProblem((2, 3, 4, 4), (4, 3, 2, 2), padding=5),
    "two_groups": ConvProblem((2, 6, 7, 8), (4, 3, 3, 3), padding=1, groups=2),
    "three_groups_strided": ConvProblem((2, 6, 9, 8), (9, 2, 3, 3), stride=2, padding=1, groups=3),
    "depthwise": ConvProblem((2, 5, 7, 8), (5, 1, 3, 3), padding=1, groups=5),
    "depthwise_many_channels": ConvProblem((2, 35, 7, 6), (35, 1, 3, 3), padding=1, groups=35),
    "depthwise_strided_dilated": ConvProblem((2, 35, 9, 8), (35, 1, 3, 2), 2, 2, 2, groups=35),
    "depthwise_multiplier": ConvProblem((2, 5, 7, 8), (15, 1, 3, 3), padding=1, groups=5),
    "depthwise_transposed_multiplier": ConvProblem((2, 32, 7, 8), (16, 2, 3, 3), padding=1, groups=16),
    "batch_of_none": ConvProblem((0, 3, 8, 9), (5, 3, 3, 3), padding=1),
    "more_rows_than_a_block": ConvProblem((2, 4, 17, 19), (33, 4, 3, 3), padding=1),
    "deeper_than_a_block": ConvProblem((1, 70, 6, 7), (18, 70, 3, 3), padding=1),
    "wide_enough_for_winograd": ConvProblem((2, 33, 13, 15), (34, 33, 3, 3), padding=1, winograd=True),
}

# What Winograd's algorithm serves, among it more padding than its input gradient has a complement for.
WINOGRAD_PROBLEMS: dict[str, ConvProblem] = {
    "one_tile": ConvProblem((1, 3, 6, 6), (4, 3, 3, 3)),
    "odd_size_unpadded": ConvProblem((2, 3, 13, 7), (5, 3, 3, 3)),
    "odd_size_padded": ConvProblem((2, 17, 9, 11), (33, 17, 3, 3), padding=1),
    "padding_2": ConvProblem((2, 17, 5, 3), (16, 17, 3, 3), padding=2),
    "padding_uneven": ConvProblem((2, 4, 6, 7), (3, 4, 3, 3), padding=(0, 2), bias=False),
    "padding_5": ConvProblem((1, 4, 6, 7), (3, 4, 3, 3), padding=5),
    "one_pixel": ConvProblem((1, 4, 1, 1), (3, 4, 3, 3), padding=1),
    "deeper_than_a_block": ConvProblem((1, 200, 7, 9), (65, 200, 3, 3), padding=1),
    "many_tiles": ConvProblem((3, 5, 31, 29), (6, 5, 3, 3), padding=1),
    "large_tiles": ConvProblem((2, 33, 12, 17), (34, 33, 3, 3), padding=1),
    "large_tiles_unpadded": ConvProblem((1, 40, 21, 20), (35, 40, 3, 3), bias=False),
    "many_large_tiles": ConvProblem((1, 33, 47, 43), (34, 33, 3, 3), padding=1),
    "weight_gradient_in_chunks": ConvProblem((1, 201, 41, 39), (190, 201, 3, 3), padding=1),
    "weight_gradient_by_blocks": ConvProblem((1, 353, 33, 37), (340, 353, 3, 3), padding=1),
}
# The same in three dimensions: stacks of pictures, and kernels of any depth.
WINOGRAD_STACKS: dict[str, ConvProblem] = {
    "one_picture": ConvProblem((2, 5, 1, 9, 7), (4, 5, 1, 3, 3), padding=(0, 1, 1)),
    "filters_side_by_side": ConvProblem((1, 34, 4, 8, 9), (33, 34, 1, 3, 3), padding=(0, 1, 1)),
    "cube": ConvProblem((2, 33, 4, 9, 13), (34, 33, 3, 3, 3), padding=1),
    "cube_unpadded": ConvProblem((1, 17, 5, 8, 6), (20, 17, 3, 3, 3), bias=False),
    "one_picture_between_two_of_padding": ConvProblem((2, 7, 1, 6, 6), (6, 7, 3, 3, 3), padding=1),
    "more_padding_than_depth": ConvProblem((1, 6, 2, 7, 5), (5, 6, 2, 3, 3), padding=(4, 1, 0)),
    "deep_kernel": ConvProblem((1, 9, 8, 6, 7), (8, 9, 5, 3, 3), padding=(1, 2, 1)),
    "few_tiles": ConvProblem((1, 150, 2, 5, 5), (140, 150, 3, 3, 3), padding=1),
    "deeper_than_a_block": ConvProblem((1, 140, 3, 19, 18), (40, 140, 2, 3, 3), padding=(0, 1, 1)),
    "weight_gradient_in_chunks": ConvProblem((1, 130, 4, 29, 27), (120, 130, 2, 3, 3), padding=1),
}
# Of three taps along one dimension, of five taps, or with gaps between them.
WINOGRAD_LINES: dict[str, ConvProblem] = {
    "line": ConvProblem((2, 5, 31), (4, 5, 3), padding=1),
    "line_of_one": ConvProblem((2, 5, 3), (4, 5, 3), bias=False),
    "line_of_large_tiles": ConvProblem((2, 40, 35), (33, 40, 3), padding=2),
    "line_with_gaps": ConvProblem((1, 33, 41), (34, 33, 3), padding=4, dilation=4),
    "line_with_gaps_beyond_its_end": ConvProblem((2, 4, 7), (3, 4, 3), padding=9, dilation=9),
    "line_deeper_than_a_block": ConvProblem((1, 200, 61), (65, 200, 3), padding=1),
    "line_of_many_tiles": ConvProblem((1, 40, 700), (36, 40, 3), padding=1),
    "line_weight_gradient_in_chunks": ConvProblem((1, 201, 4001), (190, 201, 3), padding=1),
    "line_weight_gradient_by_blocks": ConvProblem((1, 700, 2003), (1010, 700, 3), padding=1),
    "row": ConvProblem((2, 17, 9, 11), (33, 17, 1, 3), padding=(0, 1)),
    "row_padded_all_around": ConvProblem((2, 17, 5, 7), (33, 17, 1, 3), padding=2, dilation=(3, 2)),
    "column": ConvProblem((2, 17, 9, 11), (33, 17, 3, 1), padding=(1, 0)),
    "column_padded_all_around": ConvProblem((1, 34, 7, 5), (33, 34, 3, 1), padding=(1, 2), bias=False),
    "column_with_gaps": ConvProblem((2, 6, 19, 5), (7, 6, 3, 1), padding=(2, 0), dilation=(5, 1)),
    "row_of_some_depth": ConvProblem((1, 6, 5, 7, 9), (5, 6, 2, 1, 3), padding=(1, 0, 1), dilation=(2, 1, 1)),
    "column_of_some_depth": ConvProblem((2, 6, 5, 9, 7), (5, 6, 3, 3, 1), padding=(1, 1, 0)),
    "through_a_stack": ConvProblem((2, 34, 9, 4, 5), (37, 34, 3, 1, 1), padding=(1, 0, 0)),
    "through_a_stack_with_gaps": ConvProblem((1, 6, 13, 3, 2), (7, 6, 3, 1, 1), padding=(2, 0, 0), dilation=(3, 1, 1)),
    "square_with_gaps": ConvProblem((2, 17, 19, 21), (33, 17, 3, 3), padding=2, dilation=2),
    "square_with_uneven_gaps": ConvProblem((1, 34, 13, 40), (33, 34, 3, 3), padding=(1, 0), dilation=(1, 6)),
    "square_with_gaps_beyond_its_end": ConvProblem((1, 5, 6, 4), (6, 5, 3, 3), padding=11, dilation=(11, 10)),
    "cube_with_gaps": ConvProblem((1, 7, 6, 9, 11), (6, 7, 3, 3, 3), padding=2, dilation=2),
    "line_of_five": ConvProblem((2, 5, 31), (4, 5, 5), padding=2),
    "line_of_five_in_large_tiles": ConvProblem((1, 70, 402), (36, 70, 5), padding=1),
    "line_of_five_with_gaps": ConvProblem((1, 201, 403), (34, 201, 5), padding=4, dilation=3),
    "column_of_five": ConvProblem((2, 17, 9, 11), (33, 17, 5, 1), padding=(2, 0)),
    "through_a_stack_by_five": ConvProblem((2, 34, 9, 4, 5), (37, 34, 5, 1, 1), padding=(2, 0, 0)),
    "square_of_five": ConvProblem((2, 17, 9, 11), (33, 17, 5, 5), padding=2),
    "square_of_five_unpadded": ConvProblem((1, 5, 5, 6), (6, 5, 5, 5), bias=False),
    "square_of_five_in_large_tiles": ConvProblem((1, 40, 24, 25), (35, 40, 5, 5), padding=2),
    "square_of_five_with_gaps": ConvProblem((1, 140, 14, 29), (33, 140, 5, 5), padding=(4, 1), dilation=(2, 3)),
    "square_of_five_of_some_depth": ConvProblem((1, 6, 4, 7, 9), (5, 6, 2, 5, 5), padding=(1, 2, 2)),
}


def expected_panels(weight: Tensor, groups: int, columns: int) -> Tensor:
    """What pack_weight gives: [group][panel][tap and input channel][column], zeros behind the last output channel."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    panels = -(-outputs // columns)
    padded = weight.new_zeros(groups, panels * columns, inputs, prod(weight.shape[2:]))
    padded[:, :outputs] = weight.reshape(groups, outputs, *padded.shape[2:])
    return padded.unflatten(1, (panels, columns)).permute(0, 1, 4, 3, 2).flatten(2, 3)


def rounds_every_sum(dtype: torch.dtype, algorithm: str) -> bool:
    """Whether col2im and pooling's scatter add in a 16-bit type itself, as torch does; the kernels add in float32."""
    return dtype.itemsize == 2 and (algorithm == "reference" or not _extension.LOADED)


Convolution = Callable[..., Tensor]


def gradients(output: Tensor, tensors: Sequence[Tensor | None], grad_output: Tensor) -> list[Tensor]:
    """The gradients of `output` in all tensors that are there."""
    return list(torch.autograd.grad(output, [t for t in tensors if t is not None], grad_output))


def strides(tensor: Tensor) -> list[int]:
    """The strides that mean something: not those of dimensions of one element."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """While in this context torch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def leaf(tensor: Tensor | None) -> Tensor | None:
    """The same values and strides, as a new leaf that asks for its gradient."""
    return None if tensor is None else tensor.detach().requires_grad_()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach().double() - expected.detach()).norm() / expected.detach().norm())


def assert_all_close(actual: Sequence[Tensor], expected: Sequence[Tensor], winograd: bool = False) -> None:
    """Equal within assert_close's bounds for the actual dtype; `expected` may be more precise.

    Winograd's transforms cost digits of the largest values (its corner outputs weigh products up to 64-fold), which
    elements near zero lack: float32 results of it are compared by norm.
    """
    for ours, theirs in zip(actual, expected, strict=True):
        if winograd and ours.dtype == torch.float32:
            assert ours.shape == theirs.shape
            assert relative_error(ours, theirs) <= 5e-6
        else:
            assert_close(ours, theirs.to(ours.dtype))


def assert_same_convolution(
    ours: Convolution,
    theirs: Convolution,
    problem: ConvProblem,
    tensors: Sequence[Tensor | None],
    grad_layout: Layout = lambda t: t,
) -> None:
    """Output and gradients equal to those that torch computes from the same values in float64."""
    mine = [leaf(t) for t in tensors]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    output, expected = ours(*mine, **problem.arguments), theirs(*exact, **problem.arguments)
    assert output.dtype == tensors[0].dtype  # type: ignore[union-attr]
    assert_all_close([output], [expected], problem.winograd)
    # As small as the gradient of a mean: the weight's gradient, a sum over all positions, is then of size 1 too.
    terms = max(1, output.numel() // problem.weight[0])
    grad_output = grad_layout((filled(output.shape, seed=3) / sqrt(terms)).to(output.dtype))
    theirs_by_tensor = gradients(expected, exact, grad_output.double())
    assert_all_close(gradients(output, mine, grad_output), theirs_by_tensor, problem.winograd)
