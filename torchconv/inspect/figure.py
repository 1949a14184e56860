"""Figures by matplotlib, which is needed only where something is drawn. No pyplot: nothing is shared or left open."""

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "figures need matplotlib, which is not installed: pip install 'torchconv[inspect]'", name=error.name
        ) from None
    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def show(axes: Any, picture: Tensor, title: str = "", **options: Any) -> None:
    """A picture, (3, H, W), (1, H, W) or (H, W), in [0, 1] unless options say otherwise, without ticks."""
    picture = picture.detach().float().cpu()
    if picture.dim() == 3 and picture.shape[0] == 3:
        axes.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy(), **options)
    else:
        grey = picture[0] if picture.dim() == 3 else picture
        axes.imshow(grey.numpy(), **{"cmap": "gray", "vmin": 0, "vmax": 1, **options})
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize="medium")


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure as a picture; the file is there whole or not at all. See `torchconv.style.save_picture`.

    Raises:
        ValueError: an extension that no format goes by.
        OSError: the folder is missing, can't be written to, or is full.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from torchconv.style.pictures import save_picture

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    save_picture(pixels.view(height, width, 4)[:, :, :3].permute(2, 0, 1)[None].float() / 255, path)
