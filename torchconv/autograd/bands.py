"""What surrounds a convolution's output, some rows at a time.

Whole, the output of a pooled convolution and its gradient are as large as the largest activation. Of each band of rows
they are made, used while they are in the cache, and forgotten.
"""

from collections.abc import Callable, Sequence
from math import inf, prod

import torch
from torch import Tensor

from torchconv import ops, reference
from torchconv.autograd.conv import ConvGeometry
from torchconv.autograd.transforms import Window

LARGE = 8 << 20  # bytes of a convolution's output from which on it is worth it
BANDS = 12  # of it at least,
BAND = 6 << 20  # or bytes of a band at most,
WEIGHTS = 8  # but as many times what the weight has, which is transformed for each band
TILES = 12  # rows: two or three of Winograd's tiles
WORD_BITS = 64  # of the signs

# The gradient of the convolution's output in a picture's rows from one to before another: (1, O, rows, W).
Rows = Callable[[int, int, int], Tensor]


def serves(output: torch.Size, weight_count: int, element_size: int, geometry: ConvGeometry) -> bool:
    """Whether the convolution's output, (N, O, H, W), is large, and a band much less than all."""
    large = output.numel() * element_size >= LARGE
    return set(geometry.stride) == {1} and large and 2 * _rows(output, weight_count, element_size) <= output[2]


def are_apart(pool: Window) -> bool:
    """Whether the pooling's windows lie side by side, so that bands can end between them."""
    return pool.kernel_size == pool.stride and not any(pool.padding) and set(pool.dilation) == {1}


def signs_serve(output: torch.Size) -> bool:
    """Whether the signs of a row, channels-last, are whole words."""
    return output[1] * output[3] % WORD_BITS == 0


def conv_relu_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    pool: Window,
    ceil_mode: bool,
    save_positions: bool,
) -> tuple[Tensor, Tensor]:
    """The pooled output and its positions, channels-last, where `serves` and `are_apart` say so."""
    size = reference.output_size(input.shape[2:], weight.shape[2:], *geometry[:3])
    stride, count = pool.stride[0], len(input)
    height, width = (-(-n // step) if ceil_mode else n // step for n, step in zip(size, pool.stride, strict=True))
    output = ops.empty(input, (count, weight.shape[0], height, width), True)
    positions = None
    rows = max(1, _rows((count, weight.shape[0], *size), weight.numel(), weight.element_size()) // stride)
    for n in range(count):
        for first in range(0, height, rows):
            last = min(first + rows, height)
            values = _relu_rows(input[n : n + 1], weight, bias, geometry, first * stride, min(last * stride, size[0]))
            output[n : n + 1, :, first:last], found = ops.max_pool(values, *pool, ceil_mode, save_positions)
            if save_positions:
                positions = ops.empty(found, output.shape, True) if positions is None else positions
                positions[n : n + 1, :, first:last] = found
    return output, found if positions is None else positions


def conv_pool_input(
    grad_output: Tensor,
    positions: Tensor,
    weight: Tensor,
    input_size: torch.Size,
    output_size: torch.Size,
    geometry: ConvGeometry,
    pool: Window,
) -> Tensor:
    """`conv_input(max_pool_scatter(grad_output, positions), weight)`, where `serves` and `are_apart` say so.

    Args:
        grad_output, positions: of the pooling, (N, O, h, w), channels-last.
        weight: (O, C / groups, kH, kW).
        input_size, output_size: (H, W) of the convolution.
        geometry: of the convolution.
        pool: the windows of the pooling.

    Returns:
        (N, C, H, W), channels-last.
    """
    stride = pool.stride[0]

    def rows(n: int, first: int, last: int) -> Tensor:
        windows = slice(first // stride, min(-(-last // stride), grad_output.shape[2]))
        origin = windows.start * stride
        if windows.start >= windows.stop:  # rows that no window reaches
            return grad_output.new_zeros(1, weight.shape[0], last - first, output_size[1])
        grads = ops.max_pool_scatter(
            grad_output[n : n + 1, :, windows],
            positions[n : n + 1, :, windows],
            (max(windows.stop * stride, last) - origin, output_size[1]),
            *pool,
            channels_last=True,
        )
        return grads[:, :, first - origin : last - origin]

    return _conv_input(rows, grad_output, weight, input_size, output_size, geometry)


def conv_relu_input(
    grad_output: Tensor,
    signs: Tensor,
    weight: Tensor,
    input_size: torch.Size,
    output_size: torch.Size,
    geometry: ConvGeometry,
) -> Tensor:
    """`conv_input(rectify_input(grad_output, signs), weight)`, where `serves` and `signs_serve` say so.

    Args and result as for `conv_pool_input`; the signs are those of a channels-last output.
    """
    words = weight.shape[0] * output_size[1] // WORD_BITS  # of a row

    def rows(n: int, first: int, last: int) -> Tensor:
        start = n * output_size[0]
        part = signs[(start + first) * words : (start + last) * words]
        return ops.rectify_input(grad_output[n : n + 1, :, first:last], part, True)

    return _conv_input(rows, grad_output, weight, input_size, output_size, geometry)


def _rows(output: Sequence[int], weight_count: int, element_size: int) -> int:
    """How many rows of the output, (N, O, H, W), are a band: where that fits, whole tiles of Winograd's."""
    band = max(min(prod(output) // BANDS, BAND // element_size), WEIGHTS * weight_count)
    rows = max(1, band // (output[1] * output[3]))
    return rows // TILES * TILES or rows


def _padded(rows: Tensor, before: int, after: int) -> Tensor:
    """(1, C, H, W) with so many rows of zeros around."""
    if not before and not after:
        return rows
    height = rows.shape[2]
    padded = ops.empty(rows, (1, rows.shape[1], before + height + after, rows.shape[3]), True)
    padded[:, :, before : before + height] = rows
    padded[:, :, :before] = 0
    padded[:, :, before + height :] = 0
    return padded


def _relu_rows(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, first: int, last: int
) -> Tensor:
    """The rows of the rectified output from `first` to before `last`, of one picture."""
    begin = first - geometry.padding[0]
    end = last - geometry.padding[0] + geometry.dilation[0] * (weight.shape[2] - 1)
    top = min(max(begin, 0), input.shape[2])
    bottom = max(min(end, input.shape[2]), top)
    above = min(max(-begin, 0), end - begin)  # rows of padding; all are where it is wider than the band
    below = end - begin - above - (bottom - top)
    seen = _padded(input[:, :, top:bottom], above, below)
    return ops.conv(seen, weight, bias, *geometry._replace(padding=(0, geometry.padding[1])), inf)


def _conv_input(
    rows: Rows, like: Tensor, weight: Tensor, input_size: torch.Size, output_size: torch.Size, geometry: ConvGeometry
) -> Tensor:
    """The gradient of the input, from that of the output, band by band."""
    size = (len(like), weight.shape[1] * geometry.groups, *input_size)
    grad_input = ops.empty(like, size, True)
    reach = geometry.dilation[0] * (weight.shape[2] - 1)
    # A band lies in an output of its own, which begins `reach` rows before what the padding would leave of it.
    local = geometry._replace(padding=(reach, geometry.padding[1]))
    height = _rows((len(like), weight.shape[0], *output_size), weight.numel(), weight.element_size())
    for n in range(size[0]):
        for begin in range(0, input_size[0], height):
            end = min(begin + height, input_size[0])
            # The output rows that see the band.
            first, last = begin + geometry.padding[0] - reach, end + geometry.padding[0]
            top, bottom = max(first, 0), min(last, output_size[0])
            if top >= bottom:
                grad_input[n, :, begin:end] = 0
                continue
            grads = _padded(rows(n, top, bottom), top - first, last - bottom)
            grad_input[n : n + 1, :, begin:end] = ops.conv_input(grads, weight, (end - begin, input_size[1]), *local)
    return grad_input
