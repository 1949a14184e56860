"""How much time and memory a style transfer will take, from one evaluation of a small copy of it."""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torchconv.style.objective import Network, StyleObjective
from torchconv.style.transfer import HISTORY

TRIAL_SIDE = 256  # pixels, at most: time per pixel is higher for smaller pictures

# The largest activation, its gradient and one on the way: live beside the saved ones while backward passes them.
TRANSIENT = 3
# Pictures that L-BFGS keeps: two per step remembered, and direction, gradients, variable and best.
OPTIMIZER_PICTURES = 2 * HISTORY + 7


@dataclass(frozen=True)
class Estimate:
    """What one evaluation will take.

    Attributes:
        seconds: of one evaluation, forward and backward.
        bytes: peak resident memory of the process, in bytes.
    """

    seconds: float
    bytes: int


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure on Linux takes over the parent process's
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(peak.split()[1])
    peak_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_kilobytes if sys.platform == "darwin" else 1024 * peak_kilobytes


def estimate(network: Network, height: int, width: int, device: torch.device | str = "cpu") -> Estimate:
    """Predict one evaluation's time and the run's peak memory, by evaluating a picture of at most 256 x 256 pixels.

    Args:
        network: as for `StyleTransfer`.
        height, width: of the picture to be painted, in pixels.
        device: where it will be painted.
    """
    size = min(height, TRIAL_SIDE), min(width, TRIAL_SIDE)
    trial = torch.rand((1, 3, *size), device=device)
    ratio = height * width / (size[0] * size[1])
    objective = StyleObjective(network, trial, [trial.flip(3)])

    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    seconds = []
    for _ in range(3):  # the first one also warms up
        picture = trial.clone().requires_grad_()
        saved.clear()
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            total = objective(picture).total
        total.backward()
        seconds.append(time.perf_counter() - began)
    activations = sum(saved.values()) + TRANSIENT * max(saved.values())
    pictures = OPTIMIZER_PICTURES * trial.numel() * trial.element_size()
    return Estimate(min(seconds) * ratio, int(peak_memory() + ratio * (activations + pictures)))
