"""Filters made by hand, as every textbook on pictures has them, and what they answer."""

from collections.abc import Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchconv.functional import conv2d
from torchconv.inspect.figure import new_figure, show
from torchconv.inspect.picture import as_batch, luminance

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _filters() -> dict[str, Tensor]:
    def outer(rows: Sequence[float], columns: Sequence[float]) -> Tensor:
        return torch.outer(torch.tensor(rows), torch.tensor(columns))

    vertical = {
        "edges": outer([1.0, 1, 1], [1.0, 0, -1]),  # Prewitt's
        "Sobel {} edges": outer([1.0, 2, 1], [1.0, 0, -1]),
        "Scharr {} edges": outer([3.0, 10, 3], [1.0, 0, -1]),
        "lines": outer([1.0, 1, 1], [-1.0, 2, -1]),
        "long {} lines": outer([1 / 7] * 7, [0.0, 0, 0, 1, 0, 0, 0]),
    }
    filters = {}
    for name, weight in vertical.items():
        pattern = name if "{}" in name else "{} " + name
        filters[pattern.format("vertical")] = weight
        filters[pattern.format("horizontal")] = weight.T.contiguous()
    binomial = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
    return filters | {
        "rising lines": torch.tensor([[-1.0, -1, 2], [-1, 2, -1], [2, -1, -1]]),
        "falling lines": torch.tensor([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2]]),
        "Laplacian": torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]),
        "outlines": torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]]),
        "blur": torch.full((5, 5), 1 / 25),
        "Gaussian blur": outer(binomial, binomial),
        "sharpen": torch.tensor([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
        "emboss": torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]]),
        "identity": torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]),
    }


HAND_MADE_FILTERS: Mapping[str, Tensor] = MappingProxyType(_filters())
"""Filters by the name of what they answer on or do, each (height, width).

"vertical edges" answers where left and right differ: with positive numbers where the left is the brighter side;
"horizontal edges" where above and below differ. Lines are bright on dark; "rising lines" go up to the right. "long
vertical lines" averages 7 pixels one above the other, so that all other lines fade.
"""


def find_filter(filter: str | Tensor) -> Tensor:
    """A filter (height, width) by its name, whose case doesn't matter and where a hyphen may stand for a space.

    Raises:
        ValueError: no such filter.
    """
    if isinstance(filter, Tensor):
        weight = filter.reshape(filter.shape[-2:]) if filter.dim() >= 2 and filter.shape[:-2].numel() == 1 else filter
        if weight.dim() != 2 or not weight.is_floating_point():
            raise ValueError(
                "filter: expected the name of one, or floating-point weights (height, width), "
                f"got {tuple(filter.shape)} of {filter.dtype}"
            )
        return weight.detach()
    for name, weight in HAND_MADE_FILTERS.items():
        if name.casefold() == filter.casefold().replace("-", " "):
            return weight
    raise ValueError(f"filter={filter!r}: expected one of {', '.join(HAND_MADE_FILTERS)}")


def apply_filter(picture: Tensor, filter: str | Tensor, padding: str = "valid") -> Tensor:
    """What a filter answers on a picture, by `torchconv.functional.conv2d`, which like all of its kind doesn't flip it.

        >>> step = torch.tensor([10.0, 10, 10, 0, 0, 0]).expand(6, 6)
        >>> apply_filter(step, "vertical edges")[0]
        tensor([ 0., 30., 30.,  0.])

    Args:
        picture: (3, H, W), (1, 3, H, W), or one channel in the place of three, or (H, W). Of colours the luminance
            counts.
        filter: one of HAND_MADE_FILTERS by name, or weights (height, width).
        padding: "valid" or "same".

    Returns:
        (H', W'), as large as the picture under "same"; under "valid" smaller by the filter's size less one.

    Raises:
        ValueError: no such filter, or a picture of another shape, or one that is smaller than the filter.
    """
    weight, batch = find_filter(filter), luminance(as_batch(picture))
    if padding not in ("valid", "same"):
        raise ValueError(f"padding={padding!r}: expected 'valid' or 'same'")
    if padding == "valid" and any(n < k for n, k in zip(batch.shape[2:], weight.shape, strict=True)):
        raise ValueError(
            f"picture: expected at least {weight.shape[0]}×{weight.shape[1]} pixels for this filter, "
            f"got {batch.shape[2]}×{batch.shape[3]}"
        )
    return conv2d(batch, weight.to(batch)[None, None], padding=padding)[0, 0]


def response_picture(response: Tensor, filter: str | Tensor) -> Tensor:
    """A filter's response as a picture (H, W) in [0, 1].

    Where the weights sum to 0, black means no response, and brightness its strength of either sign; other filters give
    pictures already.
    """
    weight = find_filter(filter)
    if weight.sum().abs() > 1e-3 * weight.abs().sum():
        return response.clamp(0, 1)
    strength = response.abs()
    # A few strong edges would leave everything else in the dark.
    white = torch.quantile(strength.flatten()[:: max(1, strength.numel() // 100_000)].float(), 0.99)
    return (strength / white.clamp(min=1e-6)).clamp(0, 1)


def plot_hand_made(picture: Tensor, names: Sequence[str] = tuple(HAND_MADE_FILTERS)) -> "Figure":
    """A picture, and what filters of HAND_MADE_FILTERS make of it, each with its weights in a corner.

    Raises:
        ValueError: no such filter.
        ModuleNotFoundError: matplotlib is not installed.
    """
    batch = as_batch(picture)
    responses = {name: response_picture(apply_filter(batch, name), name) for name in names}
    columns = min(4, len(names) + 1) if len(names) != 5 else 3
    rows = ceil((len(names) + 1) / columns)
    width = 3.2
    figure = new_figure(width * columns, rows * (width * batch.shape[2] / batch.shape[3] + 0.35))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    show(grid[0], batch[0], "the picture")
    for axes, (name, response) in zip(grid[1:], responses.items(), strict=False):
        show(axes, response, name)
        weight = find_filter(name)
        most = float(weight.abs().max())
        inset = axes.inset_axes((0.0, 0.0, 0.2, 0.2 * batch.shape[3] / batch.shape[2]))
        inset.imshow(weight.numpy(), cmap="gray", vmin=-most, vmax=most)
        inset.set(xticks=[], yticks=[])
        for spine in inset.spines.values():
            spine.set_edgecolor("grey")
    for axes in grid[len(responses) + 1 :]:
        axes.set_axis_off()
    return figure
