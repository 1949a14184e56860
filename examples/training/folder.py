"""Folders of pictures: DIR/train/CLASS and DIR/test/CLASS, or DIR/CLASS, of which a fifth becomes the test."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from torchconv.style.estimate import available_memory
from torchconv.style.pictures import load_picture

TEST_SHARE = 0.2


def read_folder(
    folder: Path, shape: tuple[int, int, int], seed: int
) -> tuple[tuple[str, ...], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The names of the classes, and pictures and labels of each part.

    Args:
        shape: channels (1 for grey, 3 for RGB), height and width. Pictures are scaled to fill it and cut at the centre.
        seed: of the split, where there is no DIR/test.

    Raises:
        ValueError, OSError: in one line, which file or folder, and what was expected.
    """
    parts = [folder / "train", folder / "test"]
    if any(part.is_dir() for part in parts):
        classes = _class_names(parts[0])
        unknown = [name for name in _class_names(parts[1], 1) if name not in classes]
        if unknown:
            raise ValueError(f"{parts[1] / unknown[0]}: expected a class that {parts[0]} has too")
        train, test = ([(path, y) for y, name in enumerate(classes) for path in _files(p / name)] for p in parts)
    else:
        classes = _class_names(folder)
        train, test = [], []
        generator = torch.Generator().manual_seed(seed)
        for y, name in enumerate(classes):
            files = _files(folder / name)
            if len(files) < 2:
                raise ValueError(
                    f"{folder / name}: expected two pictures or more, one of them to test, got {len(files)}"
                )
            order = torch.randperm(len(files), generator=generator).tolist()
            count = max(1, round(TEST_SHARE * len(files)))
            test += [(files[i], y) for i in sorted(order[:count])]
            train += [(files[i], y) for i in sorted(order[count:])]
    needed = (len(train) + len(test)) * int(np.prod(shape))
    if needed > available_memory():
        raise ValueError(
            f"{folder}: {len(train) + len(test)} pictures take {needed / 2**30:.1f} GiB, which is too much"
        )
    return classes, _read(train, shape, parts[0]), _read(test, shape, parts[1])


def _class_names(folder: Path, least: int = 2) -> tuple[str, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder with one folder for each class; there is none")
    names = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))
    if len(names) < least:
        raise ValueError(f"{folder}: expected {least} folders or more, one for each class, got {len(names)}")
    return names


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _read(rows: list[tuple[Path, int]], shape: tuple[int, int, int], folder: Path) -> tuple[Tensor, Tensor]:
    if not rows:
        raise ValueError(f"{folder}: expected a picture at least, got none")
    channels, height, width = shape
    images = torch.empty(len(rows), *shape, dtype=torch.uint8)
    for i, (path, _) in enumerate(rows):
        picture = ImageOps.fit(load_picture(path), (width, height), Image.Resampling.LANCZOS)
        pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
        images[i] = torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1)
    return images, torch.tensor([label for _, label in rows])
