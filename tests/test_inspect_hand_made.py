"""Filters made by hand: what they answer on, by name."""

import pytest
import torch
from torch import Tensor

from torchconv.inspect import HAND_MADE_FILTERS, apply_filter, plot_hand_made, response_picture


def step(axis: str) -> Tensor:
    """The textbook's 6×6 picture: bright, and from the middle on dark."""
    values = torch.tensor([10.0, 10, 10, 0, 0, 0])
    return values.expand(6, 6) if axis == "vertical" else values.view(-1, 1).expand(6, 6)


def line(kind: str) -> Tensor:
    places = {"vertical": (slice(None), 4), "horizontal": (4, slice(None))}
    if kind in places:
        picture = torch.zeros(9, 9)
        picture[places[kind]] = 1
        return picture
    return torch.eye(9) if kind == "falling" else torch.eye(9).flip(0)


def test_the_textbooks_edge() -> None:
    answer = apply_filter(step("vertical"), "vertical edges")
    assert torch.equal(answer, torch.tensor([0.0, 30, 30, 0]).expand(4, 4))
    assert torch.equal(apply_filter(step("horizontal"), "horizontal edges"), answer.T)


@pytest.mark.parametrize("name", [name for name in HAND_MADE_FILTERS if name.endswith("edges")])
def test_edges_are_found_in_their_own_direction_only(name: str) -> None:
    own, other = ("vertical", "horizontal") if "vertical" in name else ("horizontal", "vertical")
    assert apply_filter(step(own), name).abs().max() > 0
    assert apply_filter(step(other), name).abs().max() == 0
    assert apply_filter(step(own), name).min() >= 0  # the left, or the upper side, is the bright one


@pytest.mark.parametrize("name", [name for name in HAND_MADE_FILTERS if name.endswith("lines") and name != "outlines"])
def test_lines_of_the_named_direction_answer_most(name: str) -> None:
    answers = {kind: float(apply_filter(line(kind), name)[1:-1, 1:-1].max()) for kind in LINES}
    strongest = max(answers, key=answers.__getitem__)
    assert strongest in name
    assert answers[strongest] > 1.5 * max(value for kind, value in answers.items() if kind != strongest)


LINES = ("vertical", "horizontal", "rising", "falling")


@pytest.mark.parametrize(("name", "gain"), [("blur", 1), ("Gaussian blur", 1), ("sharpen", 1), ("Laplacian", 0)])
def test_on_an_even_picture_a_filter_gives_the_sum_of_its_weights(name: str, gain: float) -> None:
    answer = apply_filter(torch.full((9, 9), 0.5), name)
    torch.testing.assert_close(answer, torch.full_like(answer, gain / 2))


def test_colours_count_by_their_luminance() -> None:
    picture = torch.zeros(3, 4, 5)
    picture[1] = 1
    torch.testing.assert_close(apply_filter(picture, "identity", padding="same"), torch.full((4, 5), 0.587))


def test_filters_of_ones_own_and_names_as_the_shell_writes_them() -> None:
    picture = torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    own = apply_filter(picture, HAND_MADE_FILTERS["Sobel vertical edges"])
    assert own.shape == (6, 7)
    assert torch.equal(own, apply_filter(picture, "sobel-vertical-edges"))
    assert apply_filter(picture, "blur", padding="same").shape == (8, 9)


def test_a_response_as_a_picture_lies_between_0_and_1() -> None:
    response = apply_filter(step("vertical").flip(1) / 10, "vertical edges")
    assert response.min() < 0
    assert torch.equal(response_picture(response, "vertical edges"), torch.tensor([0.0, 1, 1, 0]).expand(4, 4))
    bright = response_picture(apply_filter(torch.full((5, 5), 2.0), "sharpen"), "sharpen")
    assert torch.equal(bright, torch.ones(3, 3))


def test_the_figure_shows_the_picture_and_each_response() -> None:
    figure = plot_hand_made(torch.rand(3, 12, 16), ["vertical edges", "blur"])
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["the picture", "vertical edges", "blur"]
    drawn = [axes.images[0].get_array().shape for axes in figure.axes if axes.images]
    assert drawn[:3] == [(12, 16, 3), (10, 14), (8, 12)]


def test_what_cannot_be_applied_is_refused() -> None:
    with pytest.raises(ValueError, match="filter='edges': expected one of vertical edges, horizontal edges"):
        apply_filter(torch.rand(3, 8, 8), "edges")
    with pytest.raises(ValueError, match=r"filter: expected .* got \(2, 3, 3\)"):
        apply_filter(torch.rand(3, 8, 8), torch.rand(2, 3, 3))
    with pytest.raises(ValueError, match=r"picture: expected the shape \(3, H, W\).* got \(2, 8, 8\)"):
        apply_filter(torch.rand(2, 8, 8), "blur")
    with pytest.raises(ValueError, match="at least 7×7 pixels for this filter, got 6×6"):
        apply_filter(torch.rand(6, 6), "long vertical lines")
    with pytest.raises(ValueError, match="padding='full'"):
        apply_filter(torch.rand(6, 6), "blur", padding="full")
