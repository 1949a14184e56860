"""Boxes of pixels, one for each position, that may differ in size; and sums over them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchconv.reference.windows import Ints, output_size


class Span(NamedTuple):
    """Where the box of each position begins and ends along one dimension."""

    begin: Tensor  # int64, one for each position; it never steps back, and neither does `end`
    end: Tensor
    longest: int  # no box has more pixels,
    most: int  # and no pixel is in more boxes


def window_spans(input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, ceil_mode: bool) -> list[Span]:
    """The parts of a window's positions that lie inside the image."""
    sizes = output_size(input_size, kernel_size, stride, padding, [1] * len(input_size), ceil_mode)
    spans = []
    for n, o, k, s, p in zip(input_size, sizes, kernel_size, stride, padding, strict=True):
        start = torch.arange(o) * s - p
        spans.append(Span(start.clamp(min=0), (start + k).clamp(max=n), min(k, n), min((k + s - 1) // s, o)))
    return spans


def adaptive_spans(input_size: Ints, output_size_: Ints) -> list[Span]:
    """Boxes that share the image out evenly: floor(o * n / size) to ceil((o + 1) * n / size)."""
    spans = []
    for n, size in zip(input_size, output_size_, strict=True):
        o, parts = torch.arange(size), max(size, 1)
        longest, most = (a // b if a % b == 0 else a // b + 2 for a, b in ((n, parts), (size, max(n, 1))))
        spans.append(Span(o * n // parts, ((o + 1) * n + parts - 1) // parts, longest, most))
    return spans


def transposed_spans(spans: Sequence[Span], input_size: Ints) -> list[Span]:
    """For each pixel the positions whose boxes hold it."""
    result = []
    for span, n in zip(spans, input_size, strict=True):
        begin, end = (torch.searchsorted(edge, torch.arange(n), right=True) for edge in (span.end, span.begin))
        result.append(Span(begin, end, span.most, span.longest))
    return result


def span_lines(input: Tensor, dim: int, span: Span) -> Iterator[tuple[Tensor, Tensor]]:
    """For every place in the longest box of a dimension: what each position finds there, and whether it has it."""
    for place in range(span.longest):
        index = span.begin + place
        inside = (index < span.end).reshape([-1 if i == dim else 1 for i in range(input.dim())])
        line = input.index_select(dim, index.clamp(max=input.shape[dim] - 1).to(input.device))
        yield line, inside.to(input.device)


def box_sum(input: Tensor, spans: Sequence[Span]) -> Tensor:
    """The sum over the box of each position, dimension by dimension: (N, C, *spatial) to (N, C, *size)."""
    for dim, span in reversed(list(enumerate(spans, 2))):
        total = input.new_zeros([span.begin.numel() if i == dim else n for i, n in enumerate(input.shape)])
        for line, inside in span_lines(input, dim, span):
            total = total + torch.where(inside, line, 0)
        input = total
    return input


def outer_product(vectors: Sequence[Tensor]) -> Tensor:
    """A vector for each spatial dimension to a tensor of all of their products."""
    product_ = torch.ones([1] * len(vectors), dtype=torch.int64)
    for dim, vector in enumerate(vectors):
        product_ = product_ * vector.reshape([-1 if i == dim else 1 for i in range(len(vectors))])
    return product_
