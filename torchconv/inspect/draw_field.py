"""Receptive fields as a drawing."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from torchconv.inspect.dry_run import usual_input_size
from torchconv.inspect.field import ReceptiveField
from torchconv.inspect.figure import new_figure, show
from torchconv.inspect.layers import find_layer, known_name
from torchconv.inspect.picture import as_batch
from torchconv.inspect.receptive_field import receptive_field, receptive_fields

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW_PIXELS = 64  # so many are drawn one by one


def draw_receptive_field(
    model: nn.Module,
    layers: nn.Module | str | Sequence[nn.Module | str] | None = None,
    input_size: Sequence[int] | None = None,
    *,
    picture: Tensor | None = None,
) -> "Figure":
    """What one output of each layer sees of the picture: a frame for each, around the same place in the middle.

    Args:
        model: see `receptive_field`.
        layers: a layer or several; by default all that see more than the layer before them.
        input_size: the shape of the input, (1, C, H, W); by default that of the picture, or as for `receptive_field`.
        picture: drawn behind the frames, (3, H, W) or (1, 3, H, W); without one, the pixels of an empty one.

    Raises:
        ValueError: as `receptive_field`; or the input is no picture of two dimensions.
        ModuleNotFoundError: matplotlib is not installed.
    """
    batch = None if picture is None else as_batch(picture)
    if input_size is None:
        input_size = tuple(batch.shape) if batch is not None else usual_input_size(model)
    if len(input_size) != 4:
        raise ValueError(f"input_size={tuple(input_size)}: expected the shape (1, C, H, W) of a picture")
    if layers is None:
        fields = receptive_fields(model, input_size)
        # Of several that see as much, the first.
        fields = {name: field for name, field in reversed(fields.items()) if field.size != (1, 1)}
        first = {field.size: (known_name(model, name), field) for name, field in fields.items()}
        chosen = dict(reversed(first.values()))
    else:
        several = [layers] if isinstance(layers, str | nn.Module) else layers
        chosen = {_name(model, layer): receptive_field(model, layer, input_size) for layer in several}
    return _draw(chosen, batch, input_size[2], input_size[3])


def _name(model: nn.Module, layer: nn.Module | str) -> str:
    return layer if isinstance(layer, str) else known_name(model, find_layer(model, layer)[0])


def _draw(fields: Mapping[str, ReceptiveField], batch: Tensor | None, height: int, width: int) -> "Figure":
    if not fields:
        raise ValueError("layers: expected one or more that see more than a pixel, there are none")
    # Around the deepest layer's output whose field is nearest to the middle of the picture.
    deepest = max(fields.values(), key=lambda field: (field.stride, field.size))
    position = deepest.nearest([(length - 1) / 2 for length in (height, width)])
    middle = [(pixels.start + pixels.stop - 1) / 2 for pixels in deepest.pixels(position)]
    frames = {name: field.pixels(field.nearest(middle)) for name, field in fields.items()}
    edges = [(ys.start, ys.stop, xs.start, xs.stop) for ys, xs in frames.values()]
    tops, bottoms, lefts, rights = zip((0, height, 0, width), *edges, strict=True)
    top, bottom, left, right = min(tops), max(bottoms), min(lefts), max(rights)
    inches = 6.0
    figure = new_figure(inches + 3, inches * (bottom - top) / (right - left))
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    axes = figure.subplots()
    if batch is not None:
        show(axes, batch[0], extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="black", linewidth=1.5))
    if batch is None and max(height, width) <= FEW_PIXELS:
        axes.hlines([y - 0.5 for y in range(1, height)], -0.5, width - 0.5, "lightgrey", linewidth=0.5)
        axes.vlines([x - 0.5 for x in range(1, width)], -0.5, height - 0.5, "lightgrey", linewidth=0.5)
    for place, (name, (ys, xs)) in enumerate(reversed(frames.items())):
        colour = colormaps["turbo"](0.05 + 0.9 * (1 - place / max(1, len(frames) - 1)))
        corner = xs.start - 0.5, ys.start - 0.5
        look: dict[str, Any] = {
            "edgecolor": colour,
            "linewidth": 1.8,
            "zorder": 3,
            "label": f"{name}: {len(ys)}×{len(xs)}",
        }
        axes.add_patch(Rectangle(corner, len(xs), len(ys), fill=False, **look))
    axes.set(xlim=(left - 1, right), ylim=(bottom, top - 1), aspect="equal")
    axes.set_axis_off()
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center")
    return figure
