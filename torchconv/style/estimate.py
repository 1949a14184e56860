"""How much time and memory a style transfer will take, and the largest picture that there is memory for."""

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from torchconv.inspect import memory
from torchconv.style.objective import Network, StyleObjective
from torchconv.style.transfer import HISTORY

TRIAL_SIDE = 256  # pixels, at most: time per pixel is higher for smaller pictures
# Pictures that L-BFGS keeps: two per step remembered, and direction, gradients, variable and best.
OPTIMIZER_PICTURES = 2 * HISTORY + 7

# Pixels of the largest picture that is tried, as far as memory goes: from half of them on it grows in proportion.
TRIAL_PIXELS = 1024**2
NARROWEST = 64  # pixels

SIZE_STEP = 8  # pixels
CLOSE = 0.98  # of a limit: a larger picture is not looked for

# Where a container's limit stands: a number of bytes, or "max".
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Estimate:
    """What one evaluation will take.

    Attributes:
        seconds: of one evaluation, forward and backward.
        bytes: peak resident memory of the process, in bytes.
    """

    seconds: float
    bytes: int


def _status(field: str) -> int | None:
    """A figure of this process's memory, in bytes; None where the system doesn't say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    peak = _status("VmHWM:")  # getrusage's figure on Linux takes over the parent process's
    if peak is not None:
        return peak
    peak_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_kilobytes if sys.platform == "darwin" else 1024 * peak_kilobytes


def available_memory() -> int:
    """The resident memory, in bytes, that this process can come to now: what it has and what the system has left."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resident = _status("VmRSS:")
    if resident is not None:
        lines = Path("/proc/meminfo").read_text().splitlines()
        left = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        total = min(total, resident + left)
    texts = [Path(path).read_text().strip() for path in CONTAINER_LIMITS if Path(path).exists()]
    return min([total, *(int(text) for text in texts if text.isdigit())])


def peak_bytes(
    network: Network, height: int, width: int, device: torch.device | str = "cpu", tile: int | None = None
) -> int:
    """Predict the peak resident memory of this process, in bytes, from a run that computes nothing.

    Args:
        network: as for `StyleTransfer`.
        height, width: of the picture to be painted, in pixels; the style's is as large.
        device: where it will be painted.
        tile: as for `StyleTransfer`.
    """
    model = network if isinstance(network, nn.Module) else nn.Module()

    def paint(content: Tensor) -> None:
        objective = StyleObjective(network, content, [content], tile=tile)
        objective(torch.empty_like(content).requires_grad_()).total.backward()

    def needed(height: int, width: int) -> int:
        with torch.enable_grad():
            return memory(model, (1, 3, height, width), step=paint).peak

    pixels = height * width
    if pixels <= TRIAL_PIXELS or tile is not None:
        peak: float = needed(height, width)
    else:
        scales = (sqrt(TRIAL_PIXELS / 2 / pixels), sqrt(TRIAL_PIXELS / pixels))
        trials = [tuple(max(NARROWEST, round(side * scale)) for side in (height, width)) for scale in scales]
        (half, whole), (less, more) = (prod(trial) for trial in trials), (needed(*trial) for trial in trials)
        peak = more + (pixels - whole) * (more - less) / (whole - half)
    resident = _status("VmRSS:") if torch.device(device).type == "cpu" else None
    pictures = OPTIMIZER_PICTURES * 3 * pixels * torch.get_default_dtype().itemsize
    return (peak_memory() if resident is None else resident) + int(peak) + pictures


def largest_size(bytes_of: Callable[[int], int], least: int, most: int, limit: int) -> int | None:
    """The largest size from `least` to `most` that a limit of memory has room for, or one that comes close to it.

    Args:
        bytes_of: the memory that a size takes; about linear in its square.
        least, most: sizes; those between them are tried at multiples of 8.
        limit: in the unit of `bytes_of`.

    Returns:
        A size; None where not even the least one fits.
    """
    fewest = bytes_of(least)
    if fewest > limit:
        return None
    fits, over = least, most + 1
    size = min(most, max(TRIAL_SIDE, 2 * least))
    while fits < size < over:
        count = bytes_of(size)
        if count <= limit:
            fits = size
            if count >= CLOSE * limit:
                break
        else:
            over = size
        share = (limit - fewest) / max(count - fewest, 1e-9)
        size = int(sqrt(least**2 + share * (size**2 - least**2))) // SIZE_STEP * SIZE_STEP
        size = min(max(size, fits // SIZE_STEP * SIZE_STEP + SIZE_STEP), over - 1)
        if over <= most and over - fits <= SIZE_STEP:
            break
    return fits


def estimate(
    network: Network, height: int, width: int, device: torch.device | str = "cpu", tile: int | None = None
) -> Estimate:
    """Predict a run's peak memory, and one evaluation's time, for which a picture of at most 256 x 256 is evaluated.

    Args:
        network, height, width, device, tile: as for `peak_bytes`.
    """
    needed = peak_bytes(network, height, width, device, tile)
    size = min(height, TRIAL_SIDE), min(width, TRIAL_SIDE)
    trial = torch.rand((1, 3, *size), device=device)
    objective = StyleObjective(network, trial, [trial.flip(3)], tile=tile)
    seconds = []
    for _ in range(3):  # the first one also warms up
        picture = trial.clone().requires_grad_()
        began = time.perf_counter()
        objective(picture).total.backward()
        seconds.append(time.perf_counter() - began)
    return Estimate(min(seconds) * height * width / (size[0] * size[1]), max(needed, peak_memory()))
