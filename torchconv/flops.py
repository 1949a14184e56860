"""FLOP formulas of the compiled convolutions: FlopCounterMode counts a converted model as it counts torch.nn's.

Imported by torchconv.ops once the compiled ops are loaded. Plain PyTorch needs none: its matrix products are counted.
"""

# The schemas in csrc/torchconv.cpp are the types of these functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# ruff: noqa: D103  (each is named after its op)

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from torchconv.reference import output_size


@register_flop_formula(torch.ops.torchconv.conv)
def conv(input, weight, *_, out_shape, **__):
    return conv_flop_count(input, weight, out_shape)


@register_flop_formula(torch.ops.torchconv.conv_input)
def conv_input(grad_output, weight, *_, out_shape, **__):
    return conv_flop_count(grad_output, weight, out_shape, transposed=True)


@register_flop_formula(torch.ops.torchconv.winograd_block)
def winograd_block(input, weight, bias, padding, *_, **__):
    size = output_size(input[2:], weight[2:], (1, 1), padding, (1, 1))
    return conv_flop_count(input, weight, [input[0], weight[0], *size])


@register_flop_formula(torch.ops.torchconv.winograd_block_input)
def winograd_block_input(grad_output, kept, weight, input_size, padding, *_, out_shape, **__):
    size = output_size(input_size, weight[2:], (1, 1), padding, (1, 1))
    return conv_flop_count([*grad_output[:2], *size], weight, out_shape, transposed=True)


@register_flop_formula(torch.ops.torchconv.conv_weight)
def conv_weight(input, grad_output, kernel_size, stride, padding, dilation, groups, *_, out_shape, **__):
    # torch's own formula: it multiplies all pairs of channels, also those that groups keep apart.
    count = flop_registry[torch.ops.aten.convolution_backward]
    window, mask = (stride, padding, dilation, False, [0] * len(stride), groups), [False, True, False]
    return count(grad_output, input, out_shape, None, *window, mask, out_val=(None, out_shape, None))
