"""The command line: a picture at the end, or one line that says what is wrong and no file."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from grid import threads
from PIL import Image

from torchconv import models
from torchconv.models import VGGFeatures
from torchconv.style import LAYERS, load_picture
from torchconv.style.estimate import available_memory, largest_size, peak_memory
from torchconv.style.pictures import to_tensor

SCRIPT = Path(__file__).parent.parent / "examples" / "neural_style.py"
PICTURES = SCRIPT.parent / "pictures"
PHOTO = PICTURES / "china.jpg"
PAINTING = PICTURES / "vangogh_cafe_terrace_at_night_1888.webp"


@pytest.fixture(scope="module")
def network() -> VGGFeatures:
    return models.vgg_features("vgg19", layers=LAYERS, weights="original")


@pytest.fixture
def script(network: VGGFeatures, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program as a module, with the original weights read once for all tests."""
    spec = importlib.util.spec_from_file_location("neural_style", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load = module.vgg_features
    monkeypatch.setattr(
        module, "vgg_features", lambda *a, **k: network if k["weights"] == "original" else load(*a, **k)
    )
    with threads(1):
        yield module


def files(folder: Path) -> dict[Path, bytes | None]:
    return {path: None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def refusal(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that has to be refused: the line on standard error, everything else checked."""

    def refusal(*arguments: object, output: object = None) -> str:
        before = files(tmp_path)
        command = [*map(str, arguments), "-o", str(output or tmp_path / "out.png")]
        capsys.readouterr()
        try:
            status = script.main(command)
        except SystemExit as exit:  # argparse's way
            status = exit.code
        printed = capsys.readouterr()
        assert status == 2
        assert re.fullmatch(r"neural_style\.py: error: [^\n]+\n", printed.err), printed.err
        assert printed.out == ""
        assert files(tmp_path) == before
        return printed.err

    return refusal


# What is refused


def test_missing_pictures(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "none.jpg: no such file" in refusal(tmp_path / "none.jpg", PAINTING)
    assert "none.jpg: no such file" in refusal(PHOTO, PAINTING, tmp_path / "none.jpg")
    assert "required: STYLE" in refusal(PHOTO)


def test_files_that_are_no_pictures(refusal: Callable[..., str], tmp_path: Path) -> None:
    text, cut = tmp_path / "text.png", tmp_path / "cut.jpg"
    text.write_text("no picture")
    cut.write_bytes(PHOTO.read_bytes()[:50_000])
    assert "text.png: not a picture" in refusal(text, PAINTING)
    assert "text.png: not a picture" in refusal(PHOTO, text)
    assert "cut.jpg: damaged" in refusal(cut, PAINTING)
    assert "got a folder" in refusal(tmp_path, PAINTING)


def test_bombs(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "china.jpg" in refusal(PHOTO, PAINTING)


def test_pictures_too_small(refusal: Callable[..., str], tmp_path: Path) -> None:
    dot, line = tmp_path / "dot.png", tmp_path / "line.png"
    Image.new("RGB", (1, 1)).save(dot)
    Image.new("RGB", (400, 16)).save(line)
    assert "dot.png: is 1x1 pixels, expected at least 16x16 for the layer relu5_1" in refusal(dot, PAINTING)
    assert "dot.png: is 1x1 pixels" in refusal(PHOTO, dot)
    assert "line.png: becomes 100x4 pixels" in refusal(line, PAINTING, "--size", 100)
    assert "becomes 20x13 pixels" in refusal(PHOTO, PAINTING, "--size", 20)


def test_outputs_that_cannot_be(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(PHOTO, PAINTING, output=tmp_path / "none" / "out.png")
    assert "got a folder" in refusal(
        PHOTO, PAINTING, output=(tmp_path / "folder.png").mkdir() or tmp_path / "folder.png"
    )
    assert "expected a name that ends in .png" in refusal(PHOTO, PAINTING, output=tmp_path / "out.xyz")
    copy = tmp_path / "photo.jpg"
    copy.write_bytes(PHOTO.read_bytes())
    assert "photo.jpg: is one of the pictures to read" in refusal(copy, PAINTING, output=copy)
    assert "photo.jpg: is one of the pictures to read" in refusal(PHOTO, copy, output=copy)


def test_read_only_folder(refusal: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # root writes everywhere but where the kernel says no
        folder = Path("/sys")
    assert "can't be written" in refusal(PHOTO, PAINTING, output=folder / "out.png")


def test_weights_that_cannot_be(refusal: Callable[..., str], network: VGGFeatures, tmp_path: Path) -> None:
    path = tmp_path / "vgg.pth"
    assert "vgg.pth" in refusal(PHOTO, PAINTING, "--weights", path)
    path.write_bytes(b"PK\x03\x04 damaged")
    assert "damaged" in refusal(PHOTO, PAINTING, "--weights", path)
    state = models.vgg_features("vgg19", layers=["pool5"], weights=None).state_dict()
    state = {key: tensor for key, tensor in state.items() if key.startswith("features.")}
    state["features.5.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)
    assert "features.5.weight holds NaN" in refusal(PHOTO, PAINTING, "--weights", path)
    del state["features.5.weight"]
    torch.save(state, path)
    assert "missing" in refusal(PHOTO, PAINTING, "--weights", path)


def test_devices_that_are_not_there(refusal: Callable[..., str]) -> None:
    assert "--device gpu" in refusal(PHOTO, PAINTING, "--device", "gpu")
    assert "--device meta" in refusal(PHOTO, PAINTING, "--device", "meta")
    assert "--device cuda:99" in refusal(PHOTO, PAINTING, "--device", "cuda:99")


@pytest.fixture
def a_kilobyte_per_pixel(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "peak_bytes", lambda network, height, width, tile: 10**6 + 1000 * height * width)


@pytest.mark.usefixtures("a_kilobyte_per_pixel")
def test_sizes_that_there_is_no_memory_for(refusal: Callable[..., str]) -> None:
    line = refusal(PHOTO, PAINTING, "--size", 400, "--memory", "20MB")
    assert "--size 400: needs about 0.10 GiB of memory, --memory allows 0.02 GiB" in line
    assert int(re.search(r"the largest size that fits is (\d+)", line)[1]) == 168  # 168x112 pixels  # type: ignore[index]
    line = refusal(PHOTO, PAINTING, "--size", 100_000)
    assert "GiB are available; the largest size that fits is" in line
    assert "no size fits: 24 needs 0.00 GiB" in refusal(PHOTO, PAINTING, "--size", "auto", "--memory", "1.1MB")
    assert "becomes 20x13 pixels" in refusal(PHOTO, PAINTING, "--size", 20, "--memory", "1MB")


def test_amounts_of_memory(script: ModuleType, refusal: Callable[..., str]) -> None:
    counts = {"2GB": 2e9, "1.5 GiB": 1.5 * 2**30, "800m": 8e8, "64KiB": 2**16, "1000": 1000, "1t": 1e12}
    assert {text: script.byte_count(text) for text in counts} == counts
    for text in ("0", "GB", "1XB", "1.5.2GB", ""):
        assert f"expected an amount of memory such as 2GB, got {text!r}" in refusal(PHOTO, PAINTING, "--memory", text)


@pytest.mark.parametrize(
    ("option", "value"),
    [(f"--{name}-weight", value) for name in ("content", "style") for value in ("-1", "nan", "inf", "much", "-0.001")]
    + [("--size", value) for value in ("0", "-5", "1.5", "big", "")]
    + [("--iterations", value) for value in ("0", "-1", "many")]
    + [("--save-every", "0"), ("--optimizer", "sgd"), ("--init", "blank"), ("--seed", "x"), ("--colour", "1")],
)
def test_numbers_and_choices_out_of_range(option: str, value: str, refusal: Callable[..., str]) -> None:
    line = refusal(PHOTO, PAINTING, option, value)
    assert option in line
    assert value in line


def test_as_many_style_weights_as_styles(refusal: Callable[..., str]) -> None:
    line = refusal(PHOTO, PAINTING, PAINTING, "--style-weight", 1, 2, 3)
    assert "--style-weight: expected 1 or 2 numbers, one for each style, got 3" in line


# What is painted


def paint(script: ModuleType, output: Path, *arguments: object) -> torch.Tensor:
    assert script.main([str(PHOTO), str(PAINTING), "-o", str(output), *map(str, arguments)]) == 0
    image = load_picture(output)
    return to_tensor(image, (image.height, image.width))


def test_paints(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.png"
    picture = paint(script, output, "--size", 72, "--iterations", 12)
    assert picture.shape == (1, 3, 48, 72)
    content = to_tensor(load_picture(PHOTO), (48, 72))
    assert 0.01 < (picture - content).abs().mean() < 0.3  # painted over, yet the same scene

    printed = capsys.readouterr()
    first, *rest = printed.out.splitlines()
    assert re.match(r"72x48 pixels on cpu, 1 threads?: expect [\d.]+ GiB of memory and \d+ s", first)
    start, end = map(
        float, re.search(r"style loss +([\d.e+]+) at the start, ([\d.e+]+) at the end", printed.out).groups()
    )  # type: ignore[union-attr]
    assert end < start / 4
    assert re.search(r"[\d.]+ s per evaluation, peak memory [\d.]+ GiB", printed.out)
    assert rest[-1] == f"wrote {output}"
    assert "style=" in printed.err
    assert "12/12" in printed.err
    assert os.listdir(tmp_path) == ["out.png"]


def test_options_reach_the_painting(script: ModuleType, tmp_path: Path) -> None:
    small = ("--size", 48, "--iterations", 3)
    noise = paint(script, tmp_path / "a.png", *small, "--init", "noise", "--seed", 1)
    assert torch.equal(noise, paint(script, tmp_path / "a.png", *small, "--init", "noise", "--seed", 1))
    assert not torch.equal(noise, paint(script, tmp_path / "a.png", *small, "--init", "noise", "--seed", 2))
    adam = paint(script, tmp_path / "a.webp", *small, "--optimizer", "adam")
    kept = paint(script, tmp_path / "a.jpg", *small, "--style-weight", 0)
    content = to_tensor(load_picture(PHOTO), (32, 48))
    assert (kept - content).abs().mean() < 0.02  # no style: the photo stays, but for JPEG
    assert (adam - content).abs().mean() > 0.005


@pytest.mark.usefixtures("a_kilobyte_per_pixel")
@pytest.mark.parametrize(("limit", "size"), [("3MB", (48, 32)), ("1TB", (64, 43))])
def test_auto_paints_as_large_as_memory_and_photo_allow(
    limit: str, size: tuple[int, int], script: ModuleType, tmp_path: Path
) -> None:
    photo, output = tmp_path / "photo.png", tmp_path / "out.png"
    Image.open(PHOTO).resize((64, 43)).save(photo)
    arguments = ["--size", "auto", "--memory", limit, "--iterations", "1"]
    assert script.main([str(photo), str(PAINTING), "-o", str(output), *arguments]) == 0
    assert load_picture(output).size == size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's account of a process's memory")
def test_memory_stays_within_the_limit_and_near_what_was_expected(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, PHOTO, PAINTING, "-o", tmp_path / "out.png", "--size", "auto"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    printed = subprocess.run(
        [*command, "--memory", "0.6GiB", "--iterations", "2"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    expected, peak = (float(re.search(rf"{words} ([\d.]+) GiB", printed)[1]) for words in ("expect", "peak memory"))  # type: ignore[index]
    assert 0.5 < peak <= 0.6
    assert abs(expected / peak - 1) < 0.15


def test_the_largest_size_is_found_in_few_trials() -> None:
    for fixed, per_pixel, limit in [(100, 0.01, 5000), (4000, 0.001, 5000), (1, 1.0, 5000), (0, 0.0001, 5000)]:
        tried: list[int] = []

        def bytes_of(size: int, fixed: int = fixed, per_pixel: float = per_pixel, tried: list[int] = tried) -> int:
            tried.append(size)
            return int(fixed + per_pixel * size**2 + 30 * (size // 64 % 2))  # not quite smooth

        largest = largest_size(bytes_of, 24, 3000, limit)
        assert largest is not None
        assert len(tried) <= 12
        assert bytes_of(largest) <= limit
        assert largest == 3000 or bytes_of(largest) >= 0.98 * limit or bytes_of(largest + 8) > limit
    assert largest_size(lambda size: size, 24, 3000, 23) is None
    assert largest_size(lambda size: 4, 24, 3000, 5) == 3000


def test_available_memory_is_more_than_what_is_used_and_less_than_what_there_is() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory() <= total
    assert peak_memory() <= total


def test_the_best_picture_is_written_on_an_error(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("the terminal caught fire")

    monkeypatch.setattr(script.tqdm, "set_postfix", fail)
    with pytest.raises(RuntimeError, match="fire"):
        paint(script, tmp_path / "out.png", "--size", 48, "--iterations", 3)
    assert load_picture(tmp_path / "out.png").size == (48, 32)
    assert os.listdir(tmp_path) == ["out.png"]


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """A shell's background jobs ignore the signal, and so would what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_leaves_the_best_picture(tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    command = [sys.executable, SCRIPT, PHOTO, PAINTING, "-o", output, "--size", "48", "--iterations", "100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}
    with subprocess.Popen(
        [*command, "--save-every", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.png")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "out.png" in errors.splitlines()[-1]
    assert load_picture(output).size == (48, 32)
    assert not list(tmp_path.glob(".*"))
