"""Batches of pictures: order, shifts and flips are drawn from the seed and the number of the epoch or step alone."""

import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F

from training.data import Part


def derived_seed(*what: object) -> int:
    """A seed for one purpose, such as (seed, "order", epoch), unrelated to any other's."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big") >> 1


def order_of_epoch(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation of all pictures."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, "order", epoch)))


def prepare(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Bytes as floats in [0, 1], in the channels and size that a network takes."""
    x = images.float().div_(255)
    if x.shape[1] != shape[0]:
        x = x.expand(-1, shape[0], -1, -1) if x.shape[1] == 1 else x.mean(1, keepdim=True)
    if x.shape[2:] != shape[1:]:
        x = F.interpolate(x, size=shape[1:], mode="bilinear", antialias=True)
    return x


def augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to `shift` pixels on either axis, black coming in, and mirrored or not."""
    count, device = len(images), images.device
    moves = torch.randint(2 * shift + 1, (2, count), generator=generator).to(device)
    mirrored = (torch.rand(count, generator=generator) < 0.5).to(device)
    if shift:
        height, width = images.shape[2:]
        windows = F.pad(images, (shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(count, device=device), :, moves[0], moves[1]]
    if flip:
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


def training_batch(
    part: Part, rows: Tensor, split: tuple[int, int], *, seed: int, step: int, shift: int, flip: bool
) -> tuple[Tensor, Tensor]:
    """One process's share of a joined batch: pictures in bytes, and labels.

    Args:
        rows: of the joined batch. What is random is drawn for all of it, whoever computes it.
        split: this process's number, and how many there are.
    """
    rank, world = split
    rows = rows.to(part.images.device)
    images = part.images[rows]
    if shift or flip:
        images = augment(images, shift, flip, torch.Generator().manual_seed(derived_seed(seed, "augment", step)))
    return images.tensor_split(world)[rank], part.labels[rows].tensor_split(world)[rank]
