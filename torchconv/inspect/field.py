"""The arithmetic of receptive fields.

A. Araujo, W. Norris and J. Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019,
https://distill.pub/2019/computing-receptive-fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that the outputs of a layer see; each attribute has one number for each dimension, (height, width).

    Output u sees the pixels from u · stride - padding to u · stride - padding + size - 1. Dilation and strides above
    the kernel leave gaps, which count as seen. At the border a field juts out into the padding.

    Attributes:
        size: how many pixels an output sees.
        stride: how far the fields of neighbouring outputs are apart.
        padding: how many pixels before the picture's first the field of the first output begins.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def __str__(self) -> str:
        facts = {"stride": self.stride, "padding": self.padding, "centre": self.centre}
        rest = ", ".join(f"{name} {as_text(numbers)}" for name, numbers in facts.items())
        return f"{'×'.join(map(str, self.size))} pixels, {rest}"

    @property
    def centre(self) -> tuple[float, ...]:
        """The middle of the first output's field, in pixels: 0 is the first pixel, 0.5 lies between it and the next."""
        return tuple((size - 1) / 2 - padding for size, padding in zip(self.size, self.padding, strict=True))

    def pixels(self, position: Sequence[int]) -> tuple[range, ...]:
        """What the output at this position sees, in each dimension; some may lie outside the picture."""
        starts = [u * s - p for u, s, p in zip(position, self.stride, self.padding, strict=True)]
        return tuple(range(start, start + size) for start, size in zip(starts, self.size, strict=True))

    def nearest(self, pixel: Sequence[float]) -> tuple[int, ...]:
        """The position of the output whose field has its middle nearest to a pixel; of two, the first."""
        each = zip(pixel, self.centre, self.stride, strict=True)
        return tuple(ceil((where - centre) / stride - 0.5) for where, centre, stride in each)

    def then(
        self, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> "ReceptiveField":
        """The field of a layer with this window behind the layer with this field; padding is that before the first."""
        new = zip(self.size, self.stride, self.padding, kernel_size, stride, padding, dilation, strict=True)
        each = [(size + d * (k - 1) * step, step * s, pad + p * step) for size, step, pad, k, s, p, d in new]
        sizes, strides, paddings = zip(*each, strict=True)
        return ReceptiveField(sizes, strides, paddings)

    def union(self, other: "ReceptiveField") -> "ReceptiveField":
        """What both see together, as where branches meet.

        Raises:
            ValueError: their strides differ, so the fields drift apart.
        """
        if self.stride != other.stride:
            raise ValueError(f"branches with strides of {self.stride} and {other.stride} pixels meet")
        paddings = tuple(map(max, self.padding, other.padding))
        ends = map(max, self._ends(), other._ends())
        sizes = tuple(end + padding for end, padding in zip(ends, paddings, strict=True))
        return ReceptiveField(sizes, self.stride, paddings)

    def _ends(self) -> list[int]:
        """One behind the last pixel that the first output sees."""
        return [size - padding for size, padding in zip(self.size, self.padding, strict=True)]


def as_text(numbers: Sequence[float]) -> str:
    """One number for equal ones, or 3×5; without a point where it is whole."""
    return "×".join(f"{number:g}" for number in (numbers[:1] if len(set(numbers)) == 1 else numbers))
