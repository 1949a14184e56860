"""Filters drawn: every weight is where it should be, in its own colour."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchconv
from torchconv.inspect import plot_filters, save_figure


def drawn(figure: Any, panel: int = 0) -> np.ndarray:
    return np.asarray(figure.axes[panel].images[0].get_array())


def test_colour_filters_are_tiles_scaled_to_their_largest_weight() -> None:
    weight = torch.zeros(4, 3, 2, 2)
    weight[0, 0] = 0.5  # red
    weight[1, :, 0, 0] = 4  # a white corner
    weight[2, 2] = -1  # blue is missing
    picture = drawn(plot_filters(weight))
    assert picture.shape == (4, 13, 3)  # four tiles of 2×2 in a row, white lines around them
    assert picture[:, 0].min() == 1
    assert picture[1, 1].tolist() == [1, 0.5, 0.5]
    assert picture[1, 4].tolist() == [1, 1, 1]
    assert picture[2, 5].tolist() == [0.5, 0.5, 0.5]
    assert picture[1, 7].tolist() == [0.5, 0.5, 0]
    assert picture[1, 10].tolist() == [0.5, 0.5, 0.5]  # all zeros


def test_other_layers_have_a_row_for_each_filter_and_a_column_for_each_input() -> None:
    weight = torch.rand(5, 4, 3, 3) - 0.5
    picture = drawn(plot_filters(weight))
    assert picture.shape == (5 * 4 + 1, 4 * 4 + 1)
    expected = weight[3, 2] / weight[3].abs().max() / 2 + 0.5
    torch.testing.assert_close(torch.from_numpy(picture[13:16, 9:12]), expected)


def test_before_and_after_training_stand_side_by_side() -> None:
    layer, before = torchconv.Conv2d(1, 6, 5), nn.Conv2d(1, 6, 5)
    figure = plot_filters(layer, before)
    assert [axes.get_title() for axes in figure.axes] == ["before training", "after training"]
    assert np.array_equal(drawn(figure, 0), drawn(plot_filters(before)))
    assert np.array_equal(drawn(figure, 1), drawn(plot_filters(layer.weight)))


def test_a_figure_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    from PIL import Image

    figure = plot_filters(torch.rand(4, 3, 3, 3))
    save_figure(figure, tmp_path / "filters.png")
    with Image.open(tmp_path / "filters.png") as image:
        assert image.size == tuple(figure.get_size_inches() * figure.dpi // 1)
    with pytest.raises(ValueError, match="expected a name that ends in"):
        save_figure(figure, tmp_path / "filters.xyz")
    with pytest.raises(OSError, match="missing"):
        save_figure(figure, tmp_path / "missing" / "filters.png")
    assert [path.name for path in tmp_path.iterdir()] == ["filters.png"]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'torchconv\[inspect\]'"):
        plot_filters(torch.rand(4, 3, 3, 3))


@pytest.mark.parametrize(
    ("layer", "before", "message"),
    [
        (nn.ReLU(), None, "layer: expected a Conv2d or its weight .* got ReLU"),
        (torch.rand(3, 3), None, r"layer: expected .* got the shape \(3, 3\)"),
        (
            torch.rand(4, 3, 3, 3),
            torch.rand(4, 3, 5, 5),
            r"before: expected the shape of the layer, \(4, 3, 3, 3\), got",
        ),
    ],
)
def test_what_has_no_filters_is_refused(layer: Any, before: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_filters(layer, before)
