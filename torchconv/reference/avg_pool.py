"""Average pooling and its adjoint."""

import torch
from torch import Tensor

from torchconv.reference.boxes import (
    box_sum,
    outer_product,
    transposed_spans,
    window_spans,
)
from torchconv.reference.windows import Ints


def divide(dividend: Tensor, divisor: Tensor) -> Tensor:
    """Integers are divided as in C, towards zero."""
    divisor = divisor.to(dividend.device)
    if dividend.is_floating_point():
        return dividend / divisor.to(dividend.dtype)
    return torch.div(dividend, divisor, rounding_mode="trunc").to(dividend.dtype)


def avg_pool_divisor(
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """What each window's sum is divided by: (*size).

    The padding counts if `count_include_pad` says so; what lies behind it, where a window of `ceil_mode` juts out,
    never does.
    """
    spans = window_spans(input_size, kernel_size, stride, padding, ceil_mode)
    if divisor_override is not None:
        return torch.full([span.begin.numel() for span in spans], divisor_override)
    if not count_include_pad:
        return outer_product([span.end - span.begin for span in spans])
    counts = []
    for span, n, k, s, p in zip(spans, input_size, kernel_size, stride, padding, strict=True):
        start = torch.arange(span.begin.numel()) * s - p
        counts.append((start + k).clamp(max=n + p) - start)
    return outer_product(counts)


def avg_pool(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """The mean of each window, or its sum divided by `divisor_override`: (N, C, *spatial) to (N, C, *size)."""
    size = input.shape[2:]
    divisor = avg_pool_divisor(size, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return divide(box_sum(input, window_spans(size, kernel_size, stride, padding, ceil_mode)), divisor)


def avg_pool_input(
    grad_output: Tensor,
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """The adjoint of avg_pool: (N, C, *size) to (N, C, *input_size)."""
    divisor = avg_pool_divisor(input_size, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    spans = window_spans(input_size, kernel_size, stride, padding, ceil_mode)
    return box_sum(divide(grad_output, divisor), transposed_spans(spans, input_size))
