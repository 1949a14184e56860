"""Where Winograd's tiles lie: what csrc/cpu/winograd.h makes of a convolution."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

SMALL, LARGE = 4, 6  # outputs along a side of a tile


class WinogradPictures(NamedTuple):
    """The pictures that a convolution's result is, a line being along the last dimension."""

    line: bool
    number: int  # of pictures
    taps: int  # of the kernel's depth
    size: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(
        cls, batch: int, plane: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
    ) -> "WinogradPictures | None":
        """None for a kernel without three taps along one dimension or two."""
        (depth, height, width), taps, gaps = (
            (*[1] * (3 - len(each)), *map(int, each)) for each in (plane, kernel, dilation)
        )
        if taps[2] == 3 and taps[1] in (1, 3):
            return cls(taps[1] == 1, batch * depth, taps[0], (height, width), (gaps[1], gaps[2]))
        if taps[1:] == (3, 1):
            return cls(True, batch * depth, taps[0], (width, height), (gaps[2], gaps[1]))
        if taps == (3, 1, 1):
            return cls(True, batch, 1, (height * width, depth), (1, gaps[0]))
        return None

    def points(self, outs: int) -> int:
        return (outs + 2) ** (1 if self.line else 2)

    def tiles(self, outs: int) -> int:
        """tiles_along in kernels.h."""
        rows, columns = (
            n // (gap * outs) * gap + min(n % (gap * outs), gap)
            for n, gap in zip(self.size, self.dilation, strict=True)
        )
        return self.number * (self.size[0] if self.line else rows) * columns

    @property
    def saves(self) -> bool:
        """winograd_saves in winograd.h."""
        products = min(self.points(outs) * self.tiles(outs) for outs in (SMALL, LARGE))
        return 5 * products <= 3 * self.number * prod(self.size) * (3 if self.line else 9)
