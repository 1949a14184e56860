"""The sliding window: where it stands, and what it meets there."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

Ints = Sequence[int]


def output_size(
    input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool = False
) -> list[int]:
    """Number of positions of the window along each dimension.

    floor((input + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1; `ceil_mode` (pooling) also counts a last
    window that juts out, unless it would start in the padding behind the image.
    """
    sizes = []
    for n, k, s, p, d in zip(input_size, kernel_size, stride, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        size = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (size - 1) * s >= n + p:
            size -= 1
        sizes.append(size)
    return sizes


def region(image: Tensor, spatial: Iterable[slice]) -> Tensor:
    """A view of a box in the spatial dimensions."""
    for dim, where in enumerate(spatial, 2):
        # Not image[...]: an index of everything is an op of its own (alias), which batched gradients don't know.
        image = torch.ops.aten.slice(image, dim, where.start, where.stop, where.step or 1)
    return image


def pad(input: Tensor, padding: Ints, value: float = 0, extra: Ints | None = None) -> Tensor:
    """Surround an image with `padding` pixels of `value` on every side, and `extra` more behind its end."""
    # The default is an int: Dynamo would make a float of the first call dynamic, and lose it in the second.
    spatial = input.shape[2:]
    behind = [p + e for p, e in zip(padding, extra or [0] * len(padding), strict=True)]
    if not any(padding) and not any(behind):
        return input
    padded = input.new_full(
        [*input.shape[:2], *(p + n + b for p, n, b in zip(padding, spatial, behind, strict=True))], value
    )
    region(padded, (slice(p, p + n) for p, n in zip(padding, spatial, strict=True))).copy_(input)
    return padded


def tap_views(padded: Tensor, size: Ints, kernel_size: Ints, stride: Ints, dilation: Ints) -> Iterator[Tensor]:
    """For every tap of the window, in raster order, a view of what it meets at all positions: (N, C, *size)."""
    for tap in product(*map(range, kernel_size)):
        starts = [k * d for k, d in zip(tap, dilation, strict=True)]
        stops = [start + s * (n - 1) + 1 for start, s, n in zip(starts, stride, size, strict=True)]
        yield region(padded, (slice(*where) for where in zip(starts, stops, stride, strict=True)))
