"""Pictures as tensors with values in [0, 1], as torchconv.style.pictures reads them."""

import torch
from torch import Tensor, nn

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def as_batch(picture: Tensor) -> Tensor:
    """A picture as (1, C, H, W), C being 1 or 3.

    Raises:
        ValueError: it has another shape, or whole numbers for values.
    """
    batch = picture[(None,) * max(0, 4 - picture.dim())]
    if batch.dim() != 4 or batch.shape[0] != 1 or batch.shape[1] not in (1, 3) or not batch.numel():
        raise ValueError(
            "picture: expected the shape (3, H, W) or (1, 3, H, W), or 1 channel in the place of 3, "
            f"got {tuple(picture.shape)}"
        )
    if not batch.is_floating_point():
        raise ValueError(f"picture: expected floating-point values in [0, 1], got {picture.dtype}")
    return batch.detach()


def luminance(batch: Tensor) -> Tensor:
    """(1, C, H, W) as (1, 1, H, W): how bright a pixel is, whatever its colour."""
    if batch.shape[1] == 1:
        return batch
    return (batch * batch.new_tensor(LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)


def as_input(model: nn.Module, picture: Tensor) -> Tensor:
    """A picture as a model takes it: in its channels, dtype and device, normalized as its weights expect it."""
    batch = as_batch(picture)
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is not None:
        batch = batch.to(first.weight)
        if first.in_channels == 1:
            batch = luminance(batch)
        elif first.in_channels == 3:
            batch = batch.expand(-1, 3, -1, -1)
    normalization = getattr(model, "normalization", None)
    if normalization is not None:
        mean, std = (batch.new_tensor(values).view(-1, 1, 1) for values in normalization)
        batch = (batch - mean) / std
    return batch


def mosaic(tiles: Tensor, columns: int, gap: int = 1) -> Tensor:
    """(n, C, h, w) in [0, 1] as one picture (C, H, W): row by row, with white lines between."""
    rows = -(-len(tiles) // columns)
    height, width = tiles.shape[2] + gap, tiles.shape[3] + gap
    picture = tiles.new_ones(tiles.shape[1], rows * height + gap, columns * width + gap)
    for place, tile in enumerate(tiles):
        top, left = place // columns * height + gap, place % columns * width + gap
        picture[:, top : top + tiles.shape[2], left : left + tiles.shape[3]] = tile
    return picture


def normalized(values: Tensor) -> Tensor:
    """Values moved and scaled to run from 0 to 1; all 0 where they are all the same."""
    low, high = values.min(), values.max()
    return torch.zeros_like(values) if low == high else (values - low) / (high - low)
