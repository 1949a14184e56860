"""What the ops of a fused block by Winograd's tiles stand for: its convolution, pooling and ReLU, one at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchconv import ops

ONES = (1, 1)
POOL = ((2, 2), (2, 2), (0, 0), ONES)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def winograd_block(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    pool: bool,
    save: bool,
    algorithm: str = "winograd",
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, its signs and the positions, as of ops.winograd_block."""
    with ops.algorithm(algorithm):
        output = ops.conv(channels_last(input), weight, bias, ONES, padding, ONES, 1, algorithm)
        positions = torch.empty(0, dtype=torch.uint8)
        if pool:
            output, positions = ops.max_pool(output, *POOL, False, save)
        return output, ops.rectify_(output, None, save), positions


def winograd_block_input(
    grad_output: Tensor,
    kept: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    padding: Sequence[int],
    algorithm: str = "winograd",
) -> Tensor:
    """The gradient of the input, as of ops.winograd_block_input."""
    with ops.algorithm(algorithm):
        grad = channels_last(grad_output)
        if kept.dtype == torch.uint8:
            size = [n + 2 * p - 2 for n, p in zip(input_size, padding, strict=True)]
            grad = ops.max_pool_scatter(grad, kept, size, *POOL, True)
        else:
            grad = ops.rectify_input(grad, kept, True)
        return ops.conv_input(grad, weight, input_size, ONES, padding, ONES, 1, algorithm)
