"""Fake kernels of the compiled ops: shapes, dtypes and strides, for torch.compile, torch.export and the meta device.

Imported by torchconv.ops once the compiled ops are loaded.
"""

# The schemas in csrc/torchconv.cpp are the types of these functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# ruff: noqa: D103  (each is named after its op)

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from torchconv import ops
from torchconv.reference import output_size, position_dtype


def empty(like: Tensor, size: Sequence[int], channels_last: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """A result beside `like`, contiguous or channels-last."""
    memory_format = torch.contiguous_format
    if channels_last:
        memory_format = torch.channels_last if len(size) == 4 else torch.channels_last_3d
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake("torchconv::empty")
def factory(size, dtype, channels_last):
    return empty(torch.empty(0, dtype=dtype), size, channels_last)


@torch.library.register_fake("torchconv::im2col")
def im2col(input, kernel_size, stride, padding, dilation):
    size = output_size(input.shape[2:], kernel_size, stride, padding, dilation)
    return empty(input, [input.shape[0], input.shape[1] * prod(kernel_size), prod(size)])


@torch.library.register_fake("torchconv::col2im")
def col2im(columns, output_size, kernel_size, stride, padding, dilation):
    return empty(columns, [columns.shape[0], columns.shape[1] // prod(kernel_size), *output_size])


@torch.library.register_fake("torchconv::conv")
def conv(input, weight, bias, stride, padding, dilation, groups, algorithm, channels_last, packed=None, max_value=None):
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return empty(input, [input.shape[0], weight.shape[0], *size], channels_last)


@torch.library.register_fake("torchconv::pack_weight")
def pack_weight(weight, groups):
    columns = 2 * ops.vector_bytes() // weight.element_size()  # a panel has two vectors
    outputs = weight.shape[0] // groups
    return empty(weight, [groups, -(-outputs // columns), weight[0].numel(), columns])


@torch.library.register_fake("torchconv::conv_input")
def conv_input(grad_output, weight, input_size, stride, padding, dilation, groups, algorithm, channels_last):
    return empty(grad_output, [grad_output.shape[0], weight.shape[1] * groups, *input_size], channels_last)


@torch.library.register_fake("torchconv::conv_weight")
def conv_weight(input, grad_output, kernel_size, stride, padding, dilation, groups, algorithm, channels_last):
    return empty(input, [grad_output.shape[1], input.shape[1] // groups, *kernel_size], channels_last)


@torch.library.register_fake("torchconv::winograd_block")
def winograd_block(input, weight, bias, padding, pool, save, packed=None):
    spatial = output_size(input.shape[2:], weight.shape[2:], (1, 1), padding, (1, 1))
    size = [input.shape[0], weight.shape[0], *(count // 2 if pool else count for count in spatial)]
    signs = empty(input, [(prod(size) + 63) // 64 if save else 0], False, torch.int64)
    keeps = pool and save
    return empty(input, size, True), signs, empty(input, size if keeps else [0], keeps, torch.uint8)


@torch.library.register_fake("torchconv::winograd_block_input")
def winograd_block_input(grad_output, kept, weight, input_size, padding):
    return empty(grad_output, [grad_output.shape[0], weight.shape[1], *input_size], True)


@torch.library.register_fake("torchconv::max_pool")
def max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, save_positions, channels_last):
    spatial = output_size(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    size = [*input.shape[:2], *spatial]
    dtype = position_dtype(kernel_size)
    positions = empty(input, size, channels_last, dtype) if save_positions else empty(input, [0], False, dtype)
    return empty(input, size, channels_last), positions


@torch.library.register_fake("torchconv::max_pool_gather")
def max_pool_gather(input, positions, kernel_size, stride, padding, dilation, channels_last):
    return empty(input, positions.shape, channels_last)


@torch.library.register_fake("torchconv::max_pool_scatter")
def max_pool_scatter(grad_output, positions, input_size, kernel_size, stride, padding, dilation, channels_last):
    return empty(grad_output, [*grad_output.shape[:2], *input_size], channels_last)


@torch.library.register_fake("torchconv::rectify_")
def rectify_(values, bias, save_signs, max_value=None):
    return empty(values, [(values.numel() + 63) // 64 if save_signs else 0], False, torch.int64)


@torch.library.register_fake("torchconv::rectify_input")
def rectify_input(grad_output, signs, channels_last):
    return empty(grad_output, grad_output.shape, channels_last)


@torch.library.register_fake("torchconv::avg_pool")
def avg_pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, channels_last):
    spatial = output_size(input.shape[2:], kernel_size, stride, padding, [1] * len(kernel_size), ceil_mode)
    return empty(input, [*input.shape[:2], *spatial], channels_last)


@torch.library.register_fake("torchconv::avg_pool_input")
def avg_pool_input(
    grad_output, input_size, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, channels_last
):
    return empty(grad_output, [*grad_output.shape[:2], *input_size], channels_last)


@torch.library.register_fake("torchconv::adaptive_avg_pool")
def adaptive_avg_pool(input, output_size, channels_last):
    return empty(input, [*input.shape[:2], *output_size], channels_last)


@torch.library.register_fake("torchconv::adaptive_avg_pool_input")
def adaptive_avg_pool_input(grad_output, input_size, channels_last):
    return empty(grad_output, [*grad_output.shape[:2], *input_size], channels_last)


@torch.library.register_fake("torchconv::adaptive_max_pool")
def adaptive_max_pool(input, output_size, channels_last):
    size = [*input.shape[:2], *output_size]
    return empty(input, size, channels_last), empty(input, size, channels_last, torch.int64)
