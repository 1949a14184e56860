"""What a layer makes of a picture."""

from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchconv.inspect.evaluation import evaluating
from torchconv.inspect.figure import new_figure, show
from torchconv.inspect.layers import find_layer, known_name
from torchconv.inspect.picture import as_batch, as_input, normalized

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def feature_maps(model: nn.Module, layer: nn.Module | str, picture: Tensor) -> Tensor:
    """The feature maps that a layer gives of a picture, in evaluation mode and without gradients.

    A model that says how its input must be normalized, as those with trained weights do, gets it so.

    Args:
        model: takes pictures of (1, 3, H, W) or (1, 1, H, W).
        layer: a module or its dotted name; in VGG networks also a name such as "relu4_2". Of a module that runs several
            times the last run counts.
        picture: (3, H, W) or (1, 3, H, W) with values in [0, 1], or one channel in the place of three.

    Returns:
        (C, H', W').

    Raises:
        ValueError: there is no such layer, it doesn't run or gives no maps; or the picture has another shape.
    """
    name, module = find_layer(model, layer)
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _input: Any, output: Any) -> None:
        seen.append(check_maps(name, module, output).clone())  # what follows may change it in place

    handle = module.register_forward_hook(hook)
    try:
        with torch.no_grad(), evaluating(model):
            model(as_input(model, picture))
    finally:
        handle.remove()
    if not seen:
        raise ValueError(f"layer={name!r}: expected a layer that runs, this one doesn't")
    return seen[-1][0]


def check_maps(name: str, module: nn.Module, output: Any) -> Tensor:
    """The maps that a module gives.

    Raises:
        ValueError: it gives something else, or is computed by a fused convolution together with layers behind it.
    """
    fusion: Any = vars(module).get("_fusion")
    if fusion is not None and module is not fusion.followers[-1]:
        last = type(fusion.followers[-1]).__name__
        raise ValueError(
            f"layer={name!r}: is computed as one with the layers up to a {last}, whose maps alone can be seen; "
            "expected that layer, or a model that is not fused"
        )
    if not isinstance(output, Tensor) or output.dim() != 4:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"layer={name!r}: expected a layer that gives maps (1, C, H, W), got {got}")
    return output


def plot_feature_maps(model: nn.Module, layer: nn.Module | str, picture: Tensor, most: int = 16) -> "Figure":
    """A picture and the feature maps that a layer gives of it, those with the largest mean first.

    Each map is scaled to its own range, and named by its channel and mean.

    Args:
        model, layer, picture: see `feature_maps`.
        most: how many maps to draw at most.

    Raises:
        ValueError: as `feature_maps`.
        ModuleNotFoundError: matplotlib is not installed.
    """
    maps = feature_maps(model, layer, picture).float().cpu()
    means = maps.mean((1, 2))
    strongest = means.argsort(descending=True)[:most].tolist()
    columns = min(len(strongest), ceil(len(strongest) ** 0.5))
    rows = ceil(len(strongest) / columns)
    width = 2.0
    height = width * maps.shape[1] / maps.shape[2]
    whole = width * columns * 0.5
    figure = new_figure(width * columns + whole, max(rows * (height + 0.3), 1.5))
    parts: Any = figure.subfigures(1, 2, width_ratios=[whole, width * columns])
    left, right = parts
    show(left.subplots(), as_batch(picture)[0], "the picture")
    right.suptitle(
        f"{known_name(model, find_layer(model, layer)[0])}: {len(strongest)} of {len(maps)} maps", fontsize="medium"
    )
    grid = right.subplots(rows, columns, squeeze=False).flatten()
    for axes, channel in zip(grid, strongest, strict=False):
        show(axes, normalized(maps[channel]), cmap="magma", interpolation="nearest")
        axes.set_title(f"{channel}: {means[channel]:.3g}", fontsize="small")
    for axes in grid[len(strongest) :]:
        axes.set_axis_off()
    return figure
