"""Adaptive pooling: boxes that share the image out evenly."""

from math import prod

import torch
from torch import Tensor

from torchconv.reference.avg_pool import divide
from torchconv.reference.boxes import adaptive_spans, box_sum, outer_product, span_lines, transposed_spans
from torchconv.reference.windows import Ints


def adaptive_avg_pool(input: Tensor, output_size_: Ints) -> Tensor:
    """The means of boxes that share the image out evenly: (N, C, *spatial) to (N, C, *output_size_)."""
    spans = adaptive_spans(input.shape[2:], output_size_)
    return divide(box_sum(input, spans), outer_product([span.end - span.begin for span in spans]))


def adaptive_avg_pool_input(grad_output: Tensor, input_size: Ints) -> Tensor:
    """The adjoint of adaptive_avg_pool: (N, C, *size) to (N, C, *input_size)."""
    spans = adaptive_spans(input_size, grad_output.shape[2:])
    divisor = outer_product([span.end - span.begin for span in spans])
    return box_sum(divide(grad_output, divisor), transposed_spans(spans, input_size))


def adaptive_max_pool(input: Tensor, output_size_: Ints) -> tuple[Tensor, Tensor]:
    """The maximum of each box of adaptive_avg_pool, and where it stands in the flattened spatial dimensions.

    Ties go to the first maximum; a NaN wins, the last one if there are several. (N, C, *spatial) to (N, C, *size), and
    int64 of the same.
    """
    best, spatial = input, input.shape[2:]
    index = torch.arange(prod(spatial), device=input.device).reshape(spatial).expand(input.shape)
    # Dimension by dimension, the last one first: of two equal maxima the first in raster order is kept.
    for dim, span in reversed(list(enumerate(adaptive_spans(spatial, output_size_), 2))):
        lines, indices = span_lines(best, dim, span), span_lines(index, dim, span)
        size = [span.begin.numel() if i == dim else n for i, n in enumerate(best.shape)]
        best, index = best.new_empty(size), index.new_empty(size)
        for place, ((line, inside), (line_index, _)) in enumerate(zip(lines, indices, strict=True)):
            better = inside & ((line > best) | (line != line)) if place else inside
            best, index = torch.where(better, line, best), torch.where(better, line_index, index)
    return best, index
