"""Feature maps and Grad-CAM: held to what the network computes, and to networks that look where they were told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchconv
from torchconv import models
from torchconv.inspect import activation_map, feature_maps, grad_cam, last_maps, plot_feature_maps, plot_overlay

PICTURE = torch.rand(3, 32, 40, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    """Activations in place, and layers that differ between training and evaluation."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(torchconv.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), torchconv.MaxPool2d(2), nn.BatchNorm2d(6)),
        *(torchconv.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Dropout(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(8, 4)),
    )


def test_maps_are_the_layers_own_whatever_follows_in_place() -> None:
    model = network().eval()
    assert torch.equal(feature_maps(model, "0", PICTURE), model[0](PICTURE[None])[0])
    assert feature_maps(model, model[0], PICTURE).min() < 0
    assert torch.equal(feature_maps(model, "5", PICTURE), model[:6](PICTURE[None])[0])


def test_a_picture_is_normalized_as_the_weights_expect() -> None:
    model = network()
    plain = feature_maps(model, "0", PICTURE)
    model.normalization = models.Normalization(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    normalized = (PICTURE - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    expected = model[0](normalized[None]).detach()[0]
    torch.testing.assert_close(feature_maps(model, "0", PICTURE), expected)
    assert not torch.allclose(plain, expected)


def test_a_network_of_one_channel_sees_the_luminance() -> None:
    model = models.ModernLeNet5()
    colours = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1).expand(3, 28, 28)
    grey = torch.full((1, 28, 28), 0.2 * 0.299 + 0.4 * 0.587 + 0.6 * 0.114)
    torch.testing.assert_close(feature_maps(model, "features.0", colours), feature_maps(model, "features.0", grey))


def test_the_strongest_maps_are_drawn_first() -> None:
    model = network()
    means = feature_maps(model, "1", PICTURE).mean((1, 2))
    figure = plot_feature_maps(model, "1", PICTURE, most=4)
    titles = [axes.get_title() for axes in figure.axes if ":" in axes.get_title()]
    assert [int(title.split(":")[0]) for title in titles] == means.argsort(descending=True)[:4].tolist()


class Spot(nn.Module):
    """Two classes, whose scores are the sums of green and of blue; red is in the maps and counts for neither."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = torchconv.Conv2d(3, 3, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        nn.init.eye_(self.maps.weight.data.view(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.maps(x))[:, 1:].sum((2, 3))


def spots() -> Tensor:
    picture = torch.zeros(3, 20, 30)
    picture[0, 15:, :5] = 1  # red
    picture[1, 2:7, 3:8] = 0.5  # green
    picture[2, 10:14, 20:29] = 1  # blue
    return picture


def test_grad_cam_looks_at_what_speaks_for_the_class() -> None:
    green, blue = (grad_cam(Spot(), "maps", spots(), target) for target in (0, 1))
    assert torch.equal(green, 2 * spots()[1])  # 1 where it is strongest
    assert torch.equal(blue, spots()[2])
    assert torch.equal(grad_cam(Spot(), "maps", spots()), blue)  # there is more of it


def test_the_plain_sum_looks_at_everything() -> None:
    assert torch.equal(activation_map(Spot(), "maps", spots()), spots().sum(0))


def test_grad_cam_is_the_papers_formula_as_large_as_the_picture() -> None:
    model = network().eval()
    maps = model[:6](PICTURE[None]).detach().requires_grad_()
    model[6:](maps)[0, 2].backward()
    assert maps.grad is not None
    expected = torch.einsum("c,chw->hw", maps.grad[0].mean((1, 2)), maps[0]).relu()
    seen = grad_cam(model, "5", PICTURE, target=2)
    assert seen.shape == PICTURE.shape[1:]
    assert seen.max() == 1
    resized = nn.functional.interpolate(expected[None, None], (32, 40), mode="bilinear")[0, 0]
    torch.testing.assert_close(seen, (resized / resized.max()).detach())


def test_where_nothing_speaks_for_a_class_the_map_is_zero() -> None:
    assert torch.equal(grad_cam(Spot(), "maps", torch.zeros(3, 4, 5)), torch.zeros(4, 5))


@pytest.mark.parametrize(
    ("make", "size", "name"),
    [
        (network, (3, 32, 32), "5"),
        (models.ModernLeNet5, (1, 28, 28), "features.4"),
    ],
)
def test_the_last_layer_with_maps_is_found(make: Callable[[], nn.Module], size: tuple[int, ...], name: str) -> None:
    assert last_maps(make(), torch.rand(size)) == name


@pytest.mark.parametrize("look", [feature_maps, grad_cam, activation_map, plot_feature_maps])
def test_nothing_changes(look: Callable[..., Any]) -> None:
    model = network()
    model[3].eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    picture = PICTURE.clone()
    with torch.no_grad():
        look(model, "5", picture)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(picture, PICTURE)


def test_the_overlay_shows_the_map_on_the_picture() -> None:
    map = torch.rand(32, 40)
    plain, overlaid = plot_overlay(PICTURE, map).axes
    assert plain.images[0].get_array().shape == (32, 40, 3)
    torch.testing.assert_close(torch.from_numpy(overlaid.images[1].get_array().data), map)
    with pytest.raises(ValueError, match=r"map: expected the size of the picture, \(32, 40\), got \(3, 3\)"):
        plot_overlay(PICTURE, torch.rand(3, 3))


def test_what_cannot_be_seen_is_refused() -> None:
    model = network()
    for look in (feature_maps, grad_cam):
        with pytest.raises(ValueError, match=r"layer='9': expected a layer that gives maps .* got \(1, 4\)"):
            look(model, "9", PICTURE)
        with pytest.raises(ValueError, match="layer='10': expected a module of the model or one of the names 0, 1"):
            look(model, "10", PICTURE)
        with pytest.raises(ValueError, match=r"picture: expected the shape .* got \(2, 3, 8, 8\)"):
            look(model, "0", torch.rand(2, 3, 8, 8))
        with pytest.raises(ValueError, match="picture: expected floating-point values"):
            look(model, "0", torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="target=4: expected a class from 0 to 3"):
        grad_cam(model, "5", PICTURE, target=4)
    with pytest.raises(ValueError, match=r"expected one that gives scores \(1, classes\), got \(1, 6, 32, 40\)"):
        grad_cam(model[:2], "0", PICTURE)
    features = models.vgg_features("vgg11", layers=["relu2_1"], weights=None)
    with pytest.raises(ValueError, match="is computed as one with the layers up to a FusedMaxPool2d"):
        feature_maps(features, "relu1_1", PICTURE)
    assert feature_maps(features, "pool1", PICTURE).shape == (64, 16, 20)
