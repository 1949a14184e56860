"""AlexNet: the same network as torchvision's, and the one of 2012 with the paper's numbers."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import torchconv
from torchconv import models
from torchconv.models import AlexNet2012, weights


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_is_torchvisions_network(torchvision_models: ModuleType) -> None:
    torch.manual_seed(1)
    theirs = torchvision_models.alexnet().eval()
    torch.manual_seed(1)
    ours = models.alexnet().eval()
    assert parameters(ours) == 61_100_840
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(mine, state[key]) for key, mine in ours.state_dict().items())
    assert {type(layer) for layer in ours.features} == {torchconv.Conv2d, torchconv.MaxPool2d, nn.ReLU}

    with torch.no_grad():
        for tensor in state.values():
            tensor.mul_(1.1).add_(0.001)
        ours.load_state_dict(state)
        for size in ((224, 224), (290, 63)):
            images = torch.randn(2, 3, *size)
            expected = theirs(images)
            assert (ours(images) - expected).norm() < 1e-5 * expected.norm()


def test_num_classes_and_dropout_reach_the_classifier() -> None:
    with torch.device("meta"):
        network = models.alexnet(num_classes=10, dropout=0.2)
    assert network.classifier[-1].out_features == 10
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.2, 0.2]
    assert network.normalization is None


@pytest.fixture
def state() -> dict[str, Tensor]:
    """A state_dict of the right shapes that takes no memory."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in models.alexnet(num_classes=10).state_dict().items()}
    return {key: torch.tensor(0.5).expand(shape) for key, shape in shapes.items()}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[dict[str, Tensor]], Path]:
    def save(content: dict[str, Tensor]) -> Path:
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return save


def test_weights_from_a_file(state: dict[str, Tensor], save: Callable[[dict[str, Tensor]], Path]) -> None:
    network = models.alexnet(weights=save(state), num_classes=10)
    assert all((parameter == 0.5).all() for parameter in network.parameters())
    assert network.normalization == weights.IMAGENET


def test_weights_that_do_not_fit(state: dict[str, Tensor], save: Callable[[dict[str, Tensor]], Path]) -> None:
    path = save(state | {"features.3.bias": torch.full((192,), float("nan"))})
    with pytest.raises(ValueError, match=r"^weights='.*weights\.pth': features\.3\.bias holds NaN or infinite values$"):
        models.alexnet(weights=path, num_classes=10)


def test_weights_by_name(monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> None:
    urls = []
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: urls.append(url) or state)
    network = models.alexnet(weights="IMAGENET1K_V1", num_classes=10)
    assert urls == ["https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"]
    assert (network.features[0].weight == 0.5).all()
    with pytest.raises(ValueError, match=r"'original' exist for vgg19 .* only, not for alexnet"):
        models.alexnet(weights="original")
    with pytest.raises(FileNotFoundError, match=r"^weights='x': expected 'IMAGENET1K_V1' or the path of a file; there"):
        models.alexnet(weights="x")


def test_2012_has_the_published_layers() -> None:
    with torch.device("meta"):
        network = AlexNet2012()
        assert parameters(network) == 60_965_224
        x = torch.empty(1, 3, 224, 224)
        shapes = []
        for layer in network.features:
            x = layer(x)
            if isinstance(layer, torchconv.Conv2d):
                shapes.append(tuple(x.shape[1:]))
        assert shapes == [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]
        kinds = [type(layer) for layer in network.features]
        conv, norm, pool = torchconv.Conv2d, torchconv.LocalResponseNorm, torchconv.MaxPool2d
        assert [kind for kind in kinds if kind is not nn.ReLU] == [
            conv,
            norm,
            pool,
            conv,
            norm,
            pool,
            conv,
            conv,
            conv,
            pool,
        ]
        windows = {(layer.kernel_size, layer.stride) for layer in network.features if isinstance(layer, pool)}
        assert windows == {(3, 2)}  # they overlap
        assert network(torch.empty(2, 3, 223, 254)).shape == (2, 1000)
        with pytest.raises(ValueError, match=r"H and W from 223 to 254, got torch.Size\(\[1, 3, 222, 224\]\)"):
            network(torch.empty(1, 3, 222, 224))


def test_2012_is_two_halves_that_meet_in_the_third_convolution() -> None:
    with torch.device("meta"):
        convs = [layer for layer in AlexNet2012().features if isinstance(layer, torchconv.Conv2d)]
    assert [conv.groups for conv in convs] == [1, 2, 1, 2, 2]
    conv = convs[1].to_empty(device="cpu")
    nn.init.normal_(conv.weight)
    nn.init.zeros_(conv.bias)
    x = torch.rand(1, 96, 7, 7)
    y = conv(x)
    x[:, 48:] = 0
    assert torch.equal(conv(x)[:, :128], y[:, :128])
    assert (conv(x)[:, 128:] == 0).all()


def test_2012_normalizes_by_the_papers_formula() -> None:
    a = torch.rand(2, 9, 3, 3) * 50
    expected = torch.empty_like(a)
    for i in range(9):
        neighbours = a[:, max(0, i - 2) : min(9, i + 3)]
        expected[:, i] = a[:, i] / (2 + 1e-4 * neighbours.square().sum(1)) ** 0.75
    with torch.device("meta"):
        norms = [layer for layer in AlexNet2012().features if isinstance(layer, torchconv.LocalResponseNorm)]
    for norm in norms:
        torch.testing.assert_close(norm(a), expected)


def test_2012_starts_from_the_papers_weights() -> None:
    network = AlexNet2012(num_classes=10)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert [layer.bias.unique().tolist() for layer in layers] == [[0], [1], [0], [1], [1], [1], [1], [0]]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert layer.weight.mean().item() == pytest.approx(0, abs=1e-3)
