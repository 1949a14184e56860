"""The losses alone, and the objective that adds them up."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchconv.style import CONTENT_LAYERS, STYLE_LAYERS, ContentLoss, StyleLoss, StyleObjective, gram_matrix


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(picture: Tensor) -> dict[str, Tensor]:
    """Stands for VGG: every layer another function of the picture, of another number of channels."""
    layers = sorted({*CONTENT_LAYERS, *STYLE_LAYERS})
    return {name: torch.cat([picture.pow(i + 1), picture[:, :i]], dim=1) for i, name in enumerate(layers)}


def test_content_loss_is_the_mean_squared_difference() -> None:
    target, x = random(1, 4, 3, 5), random(1, 4, 3, 5, seed=1)
    loss = ContentLoss(target)
    assert loss(target) == 0
    torch.testing.assert_close(loss(x), ((x - target) ** 2).mean())
    with pytest.raises(ValueError, match=r"features: expected the shape \(1, 4, 3, 5\), got \(1, 4, 3, 4\)"):
        loss(x[..., :4])


def test_content_loss_is_differentiable_twice_and_keeps_nothing_of_its_own() -> None:
    target, x = random(1, 4, 3, 5), random(1, 4, 3, 5, seed=1).requires_grad_()
    loss = ContentLoss(target)
    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)
    pictures = random(5, 1, 4, 3, 5, seed=2)
    expected = 2 * (pictures - target) / target.numel()
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(pictures), expected)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        loss(x)
    assert set(kept) == {x.data_ptr(), loss.target.data_ptr()}


def test_style_loss_is_a_weighted_sum_over_styles_of_any_size() -> None:
    styles = [random(1, 4, 3, 5), random(1, 4, 6, 2, seed=1)]
    grams = [gram_matrix(style) for style in styles]
    x = random(1, 4, 8, 8, seed=2)
    distances = [((gram_matrix(x) - gram) ** 2).mean() for gram in grams]
    torch.testing.assert_close(StyleLoss(grams)(x), (distances[0] + distances[1]) / 2)
    torch.testing.assert_close(StyleLoss(grams, [0.25, 3])(x), 0.25 * distances[0] + 3 * distances[1])
    assert StyleLoss(grams[:1])(styles[0]) == 0


def test_targets_are_constants_that_move_with_the_module() -> None:
    x = random(1, 4, 3, 5).requires_grad_()
    for loss in (ContentLoss(x), StyleLoss([gram_matrix(x)])):
        assert not any(buffer.requires_grad for buffer in loss.buffers())
        assert {buffer.dtype for buffer in loss.float().buffers()} == {torch.float32}
        assert not list(loss.parameters())


def test_style_loss_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="targets"):
        StyleLoss([])
    with pytest.raises(ValueError, match="weights: expected 1, one per target, got 2"):
        StyleLoss([torch.eye(3)[None]], [1, 2])


def test_objective_is_the_formula_of_its_docstring() -> None:
    content, styles, x = (
        random(1, 3, 6, 7),
        [random(1, 3, 5, 5, seed=1), random(1, 3, 4, 9, seed=2)],
        random(1, 3, 6, 7, seed=3),
    )
    losses = StyleObjective(network, content, styles, content_weight=2, style_weights=[0.5, 3])(x)
    ours = network(x)
    expected = 2 * 0.01 * ((ours["relu4_2"] - network(content)["relu4_2"]) ** 2).mean()
    torch.testing.assert_close(losses.content, expected)
    expected = torch.zeros((), dtype=torch.float64)
    for weight, style in zip([0.5, 3], styles, strict=True):
        for layer in STYLE_LAYERS:
            gram, target = gram_matrix(ours[layer]), gram_matrix(network(style)[layer])
            expected += weight * 10 / ours[layer].shape[1] ** 2 * ((gram - target) ** 2).mean()
    torch.testing.assert_close(losses.style, expected)
    torch.testing.assert_close(losses.total, losses.content + losses.style)


def test_objective_averages_styles_and_vanishes_at_its_targets() -> None:
    content, styles = random(1, 3, 6, 7), [random(1, 3, 6, 7, seed=1), random(1, 3, 6, 7, seed=2)]
    each = [StyleObjective(network, content, [style])(content).style for style in styles]
    both = StyleObjective(network, content, styles)(content)
    torch.testing.assert_close(both.style, (each[0] + each[1]) / 2)
    assert both.content == 0
    assert StyleObjective(network, content, [content])(content).total == 0


def test_objective_has_the_right_gradient() -> None:
    objective = StyleObjective(network, random(1, 3, 2, 3), [random(1, 3, 3, 2, seed=1)])
    total: Callable[[Tensor], Tensor] = lambda picture: objective(picture).total  # noqa: E731
    assert torch.autograd.gradcheck(total, random(1, 3, 2, 3, seed=2).requires_grad_())


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["content_weight", "style_weights"])
def test_objective_refuses_weights_that_are_no_weights(name: str, value: float) -> None:
    arguments = {name: value if name == "content_weight" else [value]}
    with pytest.raises(ValueError, match=f"{name}: expected 0 or a positive number, got {value}"):
        StyleObjective(network, random(1, 3, 4, 4), [random(1, 3, 4, 4)], **arguments)  # type: ignore[arg-type]


def test_objective_refuses_no_style_and_weights_that_do_not_match() -> None:
    content = random(1, 3, 4, 4)
    with pytest.raises(ValueError, match="style"):
        StyleObjective(network, content, [])
    with pytest.raises(ValueError, match="expected 1, one per target, got 2"):
        StyleObjective(network, content, [content], style_weights=[1, 1])
