"""The gradient of a pooled convolution in its input, some rows at a time.

Unpooled whole, the gradient of the convolution's output is as large as the largest activation. Of each band of rows it
is made, used while it is in the cache, and forgotten.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchconv import ops
from torchconv.autograd.conv import ConvGeometry
from torchconv.autograd.transforms import Window

LARGE = 1 << 25  # bytes of a convolution's output, of one picture, from which on it is worth it
BAND = 1 << 23  # bytes of a band of it


def serves(output: torch.Size, element_size: int, geometry: ConvGeometry, pool: Window) -> bool:
    """Whether few rows of the gradients belong together, and are much less than all.

    Args:
        output: of the convolution, (N, O, H, W).
        element_size: in bytes.
        geometry: of the convolution.
        pool: the windows of the pooling.
    """
    apart = pool.kernel_size == pool.stride and not any(pool.padding) and set(pool.dilation) == {1}
    return apart and set(geometry.stride) == {1} and output[1:].numel() * element_size >= LARGE


def conv_pool_input(
    grad_output: Tensor,
    positions: Tensor,
    weight: Tensor,
    input_size: torch.Size,
    output_size: torch.Size,
    geometry: ConvGeometry,
    pool: Window,
) -> Tensor:
    """`conv_input(max_pool_scatter(grad_output, positions), weight)`, where `serves` says so.

    Args:
        grad_output, positions: of the pooling, (N, O, h, w), channels-last.
        weight: (O, C / groups, kH, kW).
        input_size, output_size: (H, W) of the convolution.
        geometry: of the convolution.
        pool: the windows of the pooling.

    Returns:
        (N, C, H, W), channels-last.
    """
    size = (grad_output.shape[0], weight.shape[1] * geometry.groups, *input_size)
    grad_input = torch.empty(
        size, dtype=grad_output.dtype, device=grad_output.device, memory_format=torch.channels_last
    )
    reach, stride = geometry.dilation[0] * (weight.shape[2] - 1), pool.stride[0]
    rows = max(1, BAND // (weight.shape[0] * output_size[1] * grad_output.element_size()))
    # A band lies in an output of its own, which begins `reach` rows before what the padding would leave of it.
    local = geometry._replace(padding=(reach, geometry.padding[1]))
    for n in range(size[0]):
        for begin in range(0, input_size[0], rows):
            end = min(begin + rows, input_size[0])
            # The output rows that see the band.
            first, last = begin + geometry.padding[0] - reach, end + geometry.padding[0]
            inside = max(first, 0), min(last, output_size[0])
            windows = slice(inside[0] // stride, min(-(-inside[1] // stride), grad_output.shape[2]))
            if inside[0] >= inside[1] or windows.start >= windows.stop:
                grad_input[n, :, begin:end] = 0
                continue
            origin = windows.start * stride
            grads = ops.max_pool_scatter(
                grad_output[n : n + 1, :, windows],
                positions[n : n + 1, :, windows],
                (max(windows.stop * stride, inside[1]) - origin, output_size[1]),
                *pool,
                channels_last=True,
            )[:, :, inside[0] - origin : inside[1] - origin]
            if inside != (first, last):
                grads = pad(grads, (0, 0, inside[0] - first, last - inside[1]))
            grad_input[n : n + 1, :, begin:end] = ops.conv_input(grads, weight, (end - begin, input_size[1]), *local)
    return grad_input
