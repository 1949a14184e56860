"""Where Winograd's tiles lie: what csrc/cpu/winograd.h makes of a convolution."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

SIDES = (3, 5)


class WinogradPictures(NamedTuple):
    """The pictures that a convolution's result is, a line being along the last dimension."""

    line: bool
    side: int  # taps along a line, or along both sides of a square
    number: int  # of pictures
    taps: int  # of the kernel's depth
    size: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(
        cls, batch: int, plane: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
    ) -> "WinogradPictures | None":
        """None for a kernel without three or five taps along one dimension or two."""
        (depth, height, width), taps, gaps = (
            (*[1] * (3 - len(each)), *map(int, each)) for each in (plane, kernel, dilation)
        )
        if taps[2] in SIDES and taps[1] in (1, taps[2]):
            return cls(taps[1] == 1, taps[2], batch * depth, taps[0], (height, width), (gaps[1], gaps[2]))
        if taps[1] in SIDES and taps[2] == 1:
            return cls(True, taps[1], batch * depth, taps[0], (width, height), (gaps[2], gaps[1]))
        if taps[0] in SIDES and taps[1:] == (1, 1):
            return cls(True, taps[0], batch, 1, (height * width, depth), (1, gaps[0]))
        return None

    @property
    def small(self) -> int:
        """Outputs along a side of the small tiles."""
        return 7 - self.side

    @property
    def large(self) -> int:
        return 9 - self.side

    def points(self, outs: int) -> int:
        return (outs + self.side - 1) ** (1 if self.line else 2)

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
        products = min(self.points(outs) * self.tiles(outs) for outs in (self.small, self.large))
        return 5 * products <= 3 * self.number * prod(self.size) * self.side ** (1 if self.line else 2)
