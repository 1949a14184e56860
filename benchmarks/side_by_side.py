"""Two sides timed in one process, and the table that shows them.

The two sides are torch.nn and torchconv, each in contiguous (nchw) and in channels-last (nhwc) tensors. They take
turns, and the order is turned round after each round: whatever else happens on the machine happens to all of them.
Times are medians.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SIDES = [f"{library} {layout}" for library in ("torch", "torchconv") for layout in FORMATS]
MOST_ROUNDS = 1000

Calls = Mapping[str, Callable[[], Any]]
Seconds = dict[str, float]


@dataclass
class Timing:
    """Seconds of each side: the median, and the least, over as many rounds."""

    median: Seconds
    least: Seconds
    rounds: int


def alternate(calls: Calls, budget: float, least: int = 3, pause: float = 0.0) -> Timing:
    """Time calls in alternation.

    Args:
        calls: by side. Each runs once untimed at first.
        budget: seconds after which no further round begins.
        least: rounds that there are in any case.
        pause: seconds of rest before each turn, and an untimed call after it, for sides with threads of their own that
            spin on for a while.
    """
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    for call in calls.values():
        call()
    gc.collect()
    gc.disable()
    began, rounds = time.perf_counter(), 0
    while rounds < least or (time.perf_counter() - began < budget and rounds < MOST_ROUNDS):
        for side in sorted(calls, key=list(calls).index, reverse=rounds % 2 == 1):
            if pause:
                time.sleep(pause)
                calls[side]()
            start = time.perf_counter()
            calls[side]()
            seconds[side].append(time.perf_counter() - start)
        rounds += 1
    gc.enable()
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    return Timing(medians, {side: min(values) for side, values in seconds.items()}, rounds)


def best(seconds: Seconds, library: str) -> float:
    """The time of a library, or of what else the names of sides begin with, in its better memory format."""
    return min(value for side, value in seconds.items() if f"{side} ".startswith(f"{library} "))


def speedup(seconds: Seconds, layout: str = "") -> float:
    """How often torchconv fits into torch's time: each in its better memory format, or both in this one."""
    if layout:
        return seconds[f"torch {layout}"] / seconds[f"torchconv {layout}"]
    return best(seconds, "torch") / best(seconds, "torchconv")


def geometric_mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values) if values else float("nan")


def difference(value: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over the norm of what was expected, in float64, which large tensors see in parts."""
    pairs = zip(torch.atleast_1d(value), torch.atleast_1d(expected), strict=True)
    squares = [((v.double() - e.double()).square().sum(), e.double().square().sum()) for v, e in pairs]
    error, norm = (sum(column) for column in zip(*squares, strict=True))
    return (error / norm).sqrt().item()


def greatest_difference(calls: Calls) -> float:
    """Of torchconv's results from torch's in contiguous tensors."""
    expected = calls["torch nchw"]()
    return max(difference(call(), expected) for side, call in calls.items() if side.startswith("torchconv "))


class Table:
    """Rows of fixed width, printed as they come. A column is a title and a width, negative to align left."""

    def __init__(self, **columns: int) -> None:
        self.widths = list(columns.values())
        self.row(*(title.replace("_", " ") for title in columns))

    def row(self, *cells: str) -> None:
        aligned = (
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, width in zip(cells, self.widths, strict=True)
        )
        print("  ".join(aligned).rstrip(), flush=True)


# The four times in milliseconds; how much faster torchconv is, with each side in its better memory format, with both in
# contiguous and with both in channels-last tensors; and how far the results are apart.
FOUR = {
    "torch_nchw": 10,
    "torch_nhwc": 10,
    "torchconv_nchw": 14,
    "torchconv_nhwc": 14,
    "faster": 7,
    "in_nchw": 7,
    "in_nhwc": 7,
    "differs": 7,
}


def four(seconds: Seconds, differs: float | None = None) -> list[str]:
    """The cells of `FOUR`."""
    times = [f"{1e3 * seconds[side]:.3f}" if side in seconds else "–" for side in SIDES]
    layouts = [layout for layout in FORMATS if {f"torch {layout}", f"torchconv {layout}"} <= set(seconds)]
    same = [f"{speedup(seconds, layout):.2f}x" if layout in layouts else "–" for layout in FORMATS]
    return [*times, f"{speedup(seconds):.2f}x", *same, "–" if differs is None else f"{differs:.0e}"]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Both sides on so many threads: they share torch's pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
