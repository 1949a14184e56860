"""Max pooling, and the two linear maps that its positions define."""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from torchconv.reference.windows import Ints, output_size, pad, region, tap_views


def lowest(dtype: torch.dtype) -> float:
    """What padding is worth to a maximum: -inf, or an integer type's least value."""
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def max_pool_views(
    input: Tensor, size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, value: float
) -> Iterator[Tensor]:
    """tap_views of an image padded for pooling: windows of `ceil_mode` may jut out behind its end."""
    extra = [
        max(0, s * (o - 1) + d * (k - 1) + 1 - n - 2 * p)
        for n, o, k, s, p, d in zip(input.shape[2:], size, kernel_size, stride, padding, dilation, strict=True)
    ]
    return tap_views(pad(input, padding, value, extra), size, kernel_size, stride, dilation)


def first_taps(size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """The first tap of each window that lies inside the image: (*size), int64."""
    taps = torch.zeros([1] * len(size), dtype=torch.int64)
    for i, (n, k, s, p, d) in enumerate(zip(size, kernel_size, stride, padding, dilation, strict=True)):
        start = torch.arange(n) * s - p
        first = torch.where(start < 0, (-start + d - 1) // d, 0).clamp(max=k - 1)
        taps = taps * k + first.reshape([-1 if j == i else 1 for j in range(len(size))])
    return taps


def position_dtype(kernel_size: Ints) -> torch.dtype:
    """What a tap's number is stored in: one byte for up to 256 of them."""
    return torch.uint8 if prod(kernel_size) <= 256 else torch.int32


def max_pool(
    input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """The largest value in each window, and its position: the number of the tap that won.

    Ties go to the first maximum; a NaN wins, the last one if there are several; padding never does.
    (N, C, *spatial) to two of (N, C, *size).
    """
    size = output_size(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    worst = lowest(input.dtype)
    best = input.new_full([*input.shape[:2], *size], worst)
    positions = first_taps(size, kernel_size, stride, padding, dilation).to(input.device).expand(best.shape)
    for tap, view in enumerate(max_pool_views(input, size, kernel_size, stride, padding, dilation, worst)):
        better = (view > best) | (view != view)
        best = torch.where(better, view, best)
        positions = torch.where(better, tap, positions)
    return best, positions.to(position_dtype(kernel_size))


def max_pool_gather(
    input: Tensor, positions: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """What stands in `input` at saved positions: max pooling made linear. (N, C, *spatial) to (N, C, *size)."""
    views = max_pool_views(input, positions.shape[2:], kernel_size, stride, padding, dilation, 0.0)
    output = input.new_zeros(positions.shape)
    for tap, view in enumerate(views):
        output = torch.where(positions == tap, view, output)
    return output


def max_pool_scatter(
    grad_output: Tensor,
    positions: Tensor,
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    """The adjoint of max_pool_gather: each value goes back to where it came from.

    (N, C, *size) to (N, C, *input_size).
    """
    size = grad_output.shape[2:]
    behind = [
        max(n + p, s * (o - 1) + d * (k - 1) + 1 - p)
        for n, o, k, s, p, d in zip(input_size, size, kernel_size, stride, padding, dilation, strict=True)
    ]
    padded = grad_output.new_zeros([*grad_output.shape[:2], *(p + b for p, b in zip(padding, behind, strict=True))])
    for tap, view in enumerate(tap_views(padded, size, kernel_size, stride, dilation)):
        view += grad_output * (positions == tap)
    inside = region(padded, (slice(p, p + n) for p, n in zip(padding, input_size, strict=True)))
    return inside.clone(memory_format=torch.contiguous_format)


def max_pool_indices(
    positions: Tensor, input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """Saved positions as torch's `return_indices=True` has them: int64 indices into the flattened spatial input."""
    rest = positions.to(torch.int64)
    index = torch.zeros_like(rest)
    scale = 1
    for i in reversed(range(len(input_size))):
        tap = rest % kernel_size[i]
        rest = rest // kernel_size[i]
        start = torch.arange(positions.shape[2 + i], device=positions.device) * stride[i] - padding[i]
        start = start.reshape([-1 if j == i else 1 for j in range(len(input_size))])
        index += (start + tap * dilation[i]) * scale
        scale *= input_size[i]
    return index
