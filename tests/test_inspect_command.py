"""`python -m torchconv.inspect`: what it prints, what it writes, and errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from torchconv import models
from torchconv.inspect.__main__ import main
from torchconv.inspect.models_by_name import make_model, model_names

PHOTO = Path(__file__).parents[1] / "examples" / "pictures" / "china.jpg"


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = int(str(end.code))
    assert status == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As examples/train.py writes it, of a network with three classes."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    state = models.ModernLeNet5(num_classes=3).state_dict()
    torch.save({"format": 1, "settings": {"model": "modern-lenet5"}, "model": state, "progress": {"epoch": 3}}, path)
    return path


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "torchconv.inspect", "output-size", "13", "--kernel", "6", "--stride", "5"]
    run = subprocess.run([*command, "--padding", "same"], capture_output=True, text=True, timeout=100)
    assert (run.returncode, run.stdout, run.stderr) == (0, "3\n", "")


def test_output_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "output-size", 13, "--kernel", 6, "--stride", 5, "--padding", "valid") == "2\n"
    assert printed(capsys, "output-size", 1920, 1080, "--kernel", 5) == "1916 1076\n"
    assert printed(capsys, "output-size", 224, "--kernel", 7, "--stride", 2, "--padding", 3) == "112\n"


def test_summary_and_receptive_fields(capsys: pytest.CaptureFixture[str]) -> None:
    table = printed(capsys, "summary", "vgg11", "--input", 2, 3, 64, 64)
    assert "Parameters:     132,863,336" in table
    assert "(2, 512, 4, 4)" in table
    assert " ms" not in table.splitlines()[0]
    assert printed(capsys, "summary", "modern-lenet5", "--milliseconds").splitlines()[0].endswith(" ms")
    seen = printed(capsys, "receptive-field", "vgg19", "relu4_2")
    assert seen == "relu4_2  84×84 pixels, stride 8, padding 38, centre 3.5\n"
    assert len(printed(capsys, "receptive-field", "modern-lenet5").splitlines()) == 6


def test_pictures_are_written(capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path) -> None:
    weights = ("--weights", checkpoint)
    commands = {
        "filters.png": ("filters", "modern-lenet5", *weights, "--before", "random"),
        "maps.jpg": ("feature-maps", "modern-lenet5", "features.1", PHOTO, *weights, "--most", 3),
        "cam.png": ("grad-cam", "modern-lenet5", PHOTO, *weights, "--target", 2),
        "sum.webp": ("grad-cam", "modern-lenet5", PHOTO, *weights, "--sum", "--layer", "features.4"),
        "edges.png": ("filter", "vertical-edges", PHOTO),
        "field.png": ("receptive-field", "modern-lenet5", "features.3"),
    }
    for name, arguments in commands.items():
        printed(capsys, *arguments, "-o", tmp_path / name)
        with Image.open(tmp_path / name) as image:
            image.load()
            assert len(image.convert("L").getcolors() or [0] * 256) > 10, f"{name} is empty"
    with Image.open(PHOTO) as photo, Image.open(tmp_path / "edges.png") as edges:
        assert edges.size == (photo.width - 2, photo.height - 2)
    assert {path.name for path in tmp_path.iterdir()} == set(commands)


def test_every_network_has_its_name() -> None:
    names = set(model_names())
    assert names >= {"lenet5", "modernlenet5", "simpleconvnet", "alexnet", "alexnet2012", "vgg11", "vgg16_c", "vgg19"}
    assert not names & {"vgg", "vggfeatures", "vgg_features", "normalization"}
    with torch.device("meta"):
        assert type(make_model("alexnet-2012")) is models.AlexNet2012
        assert type(make_model("VGG19")) is models.VGG


def test_weights_bring_their_number_of_classes(tmp_path: Path, checkpoint: Path) -> None:
    trained = torch.load(checkpoint, weights_only=True)["model"]
    model = make_model("modern-lenet5", str(checkpoint))
    assert torch.equal(model.state_dict()["classifier.4.bias"], trained["classifier.4.bias"])
    torch.save(trained, tmp_path / "state.pt")
    assert make_model("modern-lenet5", str(tmp_path / "state.pt")).state_dict().keys() == trained.keys()
    torch.save(models.SimpleConvNet(output_size=5).state_dict(), tmp_path / "simple.pt")
    assert make_model("simple-convnet", str(tmp_path / "simple.pt")).affine2.out_features == 5


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path) -> None:
    out = ("-o", tmp_path / "out.png")
    assert "model='resnet': expected one of" in refused(capsys, "summary", "resnet")
    assert "layer='relu9_9': expected" in refused(capsys, "receptive-field", "vgg11", "relu9_9")
    assert "no such file" in refused(capsys, "filter", "blur", tmp_path / "none.png", *out)
    assert "filter='blurr': expected one of vertical edges" in refused(capsys, "filter", "blurr", PHOTO, *out)
    assert "expected a name that ends in" in refused(capsys, "filter", "blur", PHOTO, "-o", tmp_path / "out.gif")
    assert "weights='original': expected the path" in refused(capsys, "summary", "lenet5", "--weights", "original")
    assert "expected 'original'" in refused(capsys, "summary", "lenet5", "--weights", tmp_path / "none.pt")
    assert "damaged" in refused(capsys, "summary", "lenet5", "--weights", PHOTO)
    assert "missing" in refused(capsys, "summary", "lenet5", "--weights", checkpoint)
    assert "expected valid, same or a number" in refused(capsys, "output-size", 5, "--kernel", 3, "--padding", "full")
    assert "a window that fits" in refused(capsys, "output-size", 5, "--kernel", 7)
    assert "required: COMMAND" in refused(capsys)
    wrong = refused(capsys, "grad-cam", "modern-lenet5", PHOTO, "--weights", checkpoint, "--target", 7, *out)
    assert "target=7: expected a class from 0 to 2" in wrong
    assert not list(tmp_path.iterdir())
