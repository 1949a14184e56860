"""The style objective in tiles: the losses and gradients of the whole picture, to rounding, with less kept for them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchconv
from torchconv.models import vgg_features
from torchconv.style import LAYERS, StyleObjective, StyleTransfer, gram_matrix, tiles
from torchconv.style.sums import activations, distances_and_grams


class Chain(nn.Module):
    """Layers in a row, frozen and in evaluation mode, on a picture that is normalized first."""

    def __init__(self, *layers: nn.Module, named: Sequence[int]) -> None:
        super().__init__()
        self.layers, self.named = nn.ModuleList(layers), named
        self.double().eval().requires_grad_(False)

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        x, activations = (picture - 0.4) * 2, {}
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.named:
                activations[str(index)] = x
        return activations


def random(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


def small() -> Chain:
    """Two poolings, three convolutions; like VGG, in place where nobody looks."""
    torch.manual_seed(0)
    return Chain(
        *(torchconv.Conv2d(3, 4, 3, padding=1), nn.ReLU(), torchconv.MaxPool2d(2)),
        *(torchconv.Conv2d(4, 6, 3, padding=1), nn.ReLU(), torchconv.MaxPool2d(2)),
        *(torchconv.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True)),
        named=[1, 4, 7],
    )


def objectives(network: Any, size: tuple[int, int], tile: int) -> list[StyleObjective]:
    """In tiles and whole."""
    arguments: Any = (network, random(*size), [random(37, 29, seed=1), random(17, 50, seed=2)])
    layers: Any = {"content_layers": ["4"], "style_layers": ["1", "4", "7"], "style_weights": [0.3, 2]}
    return [StyleObjective(*arguments, **layers, tile=given) for given in (tile, None)]


@st.composite
def networks(draw: Callable[..., Any]) -> Chain:
    """Chains of convolutions, poolings and pointwise layers of any window, each of torch.nn or of torchconv."""
    layers: list[nn.Module] = []
    channels = 3
    integers = st.integers
    for _ in range(draw(integers(1, 6))):
        library: Any = draw(st.sampled_from([nn, torchconv]))
        kind = draw(st.sampled_from(["conv", "conv", "max", "average", "norm"]))
        k = (draw(integers(1, 4)), draw(integers(1, 4)))
        stride = (draw(integers(1, 3)), draw(integers(1, 2)))
        halves = (draw(integers(0, k[0] // 2)), draw(integers(0, k[1] // 2)))
        if kind == "conv":
            width, dilation = draw(integers(1, 5)), draw(integers(1, 2))
            padding: Any = draw(st.sampled_from([(2, 1), (0, 3), "same", "valid"]))
            if padding == "same":  # torch warns of kernels that it needs a padded copy for
                library = torchconv
            conv = library.Conv2d(channels, width, k, 1 if padding == "same" else stride, padding, dilation)
            layers += [conv, nn.ReLU(inplace=draw(st.booleans()))]
            channels = width
        elif kind == "max":
            layers.append(library.MaxPool2d(k, stride, halves, draw(integers(1, 2)), ceil_mode=draw(st.booleans())))
        elif kind == "average":
            layers.append(library.AvgPool2d(k, stride, halves, draw(st.booleans()), draw(st.booleans())))
        else:
            norm = nn.BatchNorm2d(channels)
            nn.init.uniform_(norm.bias)
            layers.append(norm)
    spoilt = {i - 1 for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU) and layer.inplace}
    named = draw(st.sets(st.sampled_from(sorted(set(range(len(layers))) - spoilt)), min_size=1))
    assume(any(isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) for layer in layers[: min(named) + 1]))
    return Chain(*layers, named=sorted(named))


@given(
    network=networks(),
    size=st.tuples(st.integers(1, 45), st.integers(1, 45)),
    side=st.integers(1, 50),
    kept=st.sampled_from([0, 1, 3, 100]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_sums_and_gradients_are_those_of_the_whole(
    network: Chain, size: tuple[int, int], side: int, kept: int, data: st.DataObject
) -> None:
    note(f"{network}, named {network.named}")
    picture = random(*size).requires_grad_()
    try:
        whole = network(picture)
    except RuntimeError:  # the picture is too small for a window
        assume(False)
    names = list(whole)
    targets = {name: torch.rand_like(whole[name]) for name in data.draw(st.sets(st.sampled_from(names)))}
    grams = [name for name in names if name not in targets or data.draw(st.booleans())]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "PICTURES_KEPT", kept)
        tiled = tiles.Tiles(network, names, picture, side)
    found = activations(tiled, picture, names)
    ours = distances_and_grams(tiled, picture, targets, grams)
    theirs = (
        {name: (whole[name] - target).square().mean() for name, target in targets.items()},
        {name: gram_matrix(whole[name]) for name in grams},
    )
    torch.testing.assert_close(found, {name: whole[name].detach() for name in names}, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    ours_sum, theirs_sum = (
        sum(
            (value * torch.linspace(1, 2, value.numel()).view_as(value)).sum()
            for part in sums
            for value in part.values()
        )
        for sums in (ours, theirs)
    )
    gradients = [torch.autograd.grad(total, picture)[0] for total in (ours_sum, theirs_sum)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [(64, 48), (61, 83), (9, 70)])
@pytest.mark.parametrize("tile", [8, 21, 1000])
def test_content_and_style_each_have_the_gradient_of_the_whole(size: tuple[int, int], tile: int) -> None:
    picture = random(*size, seed=3).requires_grad_()
    ours, theirs = (objective(picture) for objective in objectives(small(), size, tile))
    for a, b in zip((*ours, ours.total), (*theirs, theirs.total), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0)
        gradients = [torch.autograd.grad(loss, picture, retain_graph=True)[0] for loss in (a, b)]
        assert relative(*gradients) < 1e-10


@pytest.mark.slow
def test_vgg19_has_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    network = vgg_features("vgg19", layers=LAYERS, weights=None)
    content, style, picture = (random(170, 200, seed=seed, dtype=torch.float32).requires_grad_() for seed in range(3))
    # Winograd rounds by the tile, and a pooling that picks another pixel for it has another gradient.
    with torchconv.algorithm("im2col"):
        ours, theirs = (StyleObjective(network, content, [style], tile=tile)(picture) for tile in (64, None))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=0)
            assert relative(*(torch.autograd.grad(loss, picture, retain_graph=True)[0] for loss in (a, b))) < 1e-4


def test_keeps_a_few_pictures_and_not_what_the_network_computes() -> None:
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network = vgg_features("vgg11", layers=["relu1_1", "relu5_1"], weights=None)
    picture = random(80, 96, dtype=torch.float32).requires_grad_()
    names: Any = {"content_layers": ["relu5_1"], "style_layers": ["relu1_1"]}
    objective = StyleObjective(network, picture, [picture], **names, tile=32)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        total = objective(picture).total
    # The first layer's input, its stages' (2.67, 1.33 and 0.67 pictures), the target (0.67) and the losses'.
    assert sum(saved.values()) < 8 * picture.nbytes
    assert total.requires_grad


def test_nothing_of_the_network_is_left_in_it() -> None:
    network = small()
    objective = objectives(network, (40, 40), 16)[0]
    objective(random(40, 40, seed=1).requires_grad_()).total.backward()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_fused_network_has_the_same_gradient(when: str) -> None:
    network, picture = small(), random(50, 41, seed=3).requires_grad_()
    expected = torch.autograd.grad(objectives(network, (50, 41), 16)[1](picture).total, picture)[0]
    objective = objectives(network, (50, 41), 16)[0] if when == "after" else None
    torchconv.convert(network, fuse=True)
    objective = objective or objectives(network, (50, 41), 16)[0]
    assert any(isinstance(layer, torchconv.ConvReLU2d) for layer in network.layers)
    assert relative(torch.autograd.grad(objective(picture).total, picture)[0], expected) < 1e-10


def test_style_transfer_paints_the_same_in_tiles() -> None:
    torch.manual_seed(0)
    network = vgg_features("vgg11", layers=LAYERS, weights=None).double()
    content, style = random(40, 33), random(35, 47, seed=1)
    # Random weights give small gradients, and of small ones L-BFGS makes what rounding wants.
    weights: Any = {"content_weight": 1e3, "style_weights": [1e6]}
    pictures = [StyleTransfer(network, content, [style], **weights, tile=tile).run(4).picture for tile in (16, None)]
    assert (pictures[0] - content).abs().max() > 0.01
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-12)


def test_differentiates_once() -> None:
    picture = random(40, 40, seed=3).requires_grad_()
    total = objectives(small(), (40, 40), 16)[0](picture).total
    (gradient,) = torch.autograd.grad(total, picture, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_refuses_a_picture_of_another_size_than_the_content() -> None:
    objective = objectives(small(), (40, 40), 16)[0]
    for size in ((48, 40), (40, 32)):
        with pytest.raises(ValueError, match=r"features: expected the shape \(1, 6, 20, 20\), got \(1, 6, "):
            objective(random(*size))


class Residual(Chain):
    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        return {"1": self.layers[1](picture + self.layers[0](picture))}


conv = torchconv.Conv2d
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "no module": (
        lambda picture: {"1": picture},
        TypeError,
        "expected a torch.nn.Module, a chain of layers, got function",
    ),
    "residual": (
        Residual(conv(3, 3, 1), conv(3, 3, 1), named=[1]),
        ValueError,
        "expected a chain of layers, got Conv2d",
    ),
    "not a layer's": (
        Chain(nn.ReLU(), nn.ReLU(), named=[1]),
        ValueError,
        "expected the output of a layer in a chain of convolutions, got 1",
    ),
    "global pooling": (
        Chain(conv(3, 3, 1), nn.AdaptiveAvgPool2d(4), named=[1]),
        TypeError,
        r"AdaptiveAvgPool2d\(output_size=4\) can't be evaluated in tiles",
    ),
    "transposed convolution": (
        Chain(conv(3, 3, 1), torchconv.ConvTranspose2d(3, 3, 3), named=[1]),
        TypeError,
        r"ConvTranspose2d\(3, 3, .* can't be evaluated in tiles",
    ),
    "reflected border": (
        Chain(conv(3, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU(), named=[1]),
        TypeError,
        "expected padding_mode='zeros'",
    ),
    "statistics of the batch": (
        Chain(conv(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), named=[1]),
        TypeError,
        r"BatchNorm2d\(3, .* can't be evaluated in tiles",
    ),
    "trained": (
        Chain(conv(3, 3, 1), nn.ReLU(), named=[1]).requires_grad_(),
        ValueError,
        "expected frozen parameters",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_networks_that_have_no_tiles(case: str) -> None:
    network, error, message = REFUSED[case]
    with pytest.raises(error, match=f"network: .*{message}"):
        tiles.Tiles(network, ["1"], random(20, 20), 16)
    if isinstance(network, nn.Module):
        assert not any(module._forward_hooks for module in network.modules())


def test_refuses_a_tile_of_no_pixels() -> None:
    with pytest.raises(ValueError, match="tile: expected 1 pixel or more, got 0"):
        objectives(small(), (40, 40), 0)
