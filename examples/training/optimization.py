"""What a run is made with, its learning rate at each step, and its optimizer."""

import math
from dataclasses import dataclass

import torch
from torch import nn

SCHEDULES = ("constant", "cosine", "one-cycle")


@dataclass(frozen=True)
class Settings:
    """All that the result depends on, beside the data and the number of processes and threads."""

    model: str
    norm: str
    layers: str
    data: str
    seed: int
    epochs: int
    max_steps: int | None
    batch_size: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup: int
    label_smoothing: float
    shift: int
    flip: bool
    autocast: str
    channels_last: bool


def rate(settings: Settings, step: int, total: int) -> float:
    """The learning rate of a step, of `total`."""

    def cosine(first: float, last: float, share: float) -> float:
        return last + (first - last) * (1 + math.cos(math.pi * share)) / 2

    if settings.schedule == "one-cycle":  # L. N. Smith and N. Topin, https://arxiv.org/abs/1708.07120
        rise = max(1, round(0.3 * total))
        up = cosine(1 / 25, 1, step / rise)
        return settings.lr * (up if step < rise else cosine(1, 1e-4, (step - rise) / max(1, total - rise)))
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "cosine":
        return settings.lr * cosine(1, 0, (step - settings.warmup) / max(1, total - settings.warmup))
    return settings.lr


def make_optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Biases and normalizations don't decay."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
    )
