"""IDX, the format that MNIST comes in, plain or gzipped: https://yann.lecun.org/exdb/mnist describes it."""

import gzip
import io
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

UNSIGNED_BYTE = 8
AXES = {"images": 3, "labels": 1}


def read_idx(path: Path, kind: str) -> Tensor:
    """The unsigned bytes in a file of "images", (N, H, W), or of "labels", (N,).

    Raises:
        FileNotFoundError: no such file.
        ValueError: in one line, what was expected of the file.
    """
    try:
        with path.open("rb") as file:
            zipped = file.peek(2)[:2] == b"\x1f\x8b"
            return _read(io.BufferedReader(gzip.GzipFile(fileobj=file)) if zipped else file, path, AXES[kind])
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error})") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None


def _read(file: BinaryIO, path: Path, axes: int) -> Tensor:
    expected = bytes([0, 0, UNSIGNED_BYTE, axes])
    magic = file.read(4)
    if magic != expected:
        got = magic.hex(" ") or "an empty file"
        raise ValueError(
            f"{path}: expected an IDX file of {axes} axes, which starts with {expected.hex(' ')}, got {got}"
        )
    header = file.read(4 * axes)
    if len(header) < 4 * axes:
        raise ValueError(f"{path}: truncated: expected {axes} sizes after the magic number, got {len(header)} bytes")
    shape = struct.unpack(f">{axes}I", header)
    if not math.prod(shape):
        raise ValueError(f"{path}: expected at least one element, got the shape {shape}")
    content = bytearray()
    count = math.prod(shape)
    while chunk := file.read(min(2**24, count + 1 - len(content))):  # never what the file only claims to hold
        content += chunk
    if len(content) != count:
        what = "truncated" if len(content) < count else "too long"
        got = str(len(content)) if len(content) < count else "more"
        raise ValueError(f"{path}: {what}: expected {count} bytes after the header for the shape {shape}, got {got}")
    return torch.from_numpy(np.frombuffer(content, np.uint8)).view(shape)


def read_pair(images: Path, labels: Path, classes: int) -> tuple[Tensor, Tensor]:
    """Pictures of (N, 1, H, W), in bytes, and their labels of (N,), in 64 bits.

    Raises:
        FileNotFoundError, ValueError: as `read_idx`; also counts that differ, and labels out of range.
    """
    pictures, targets = read_idx(images, "images"), read_idx(labels, "labels")
    if len(pictures) != len(targets):
        raise ValueError(
            f"{labels}: expected {len(pictures)} labels, as {images.name} has pictures, got {len(targets)}"
        )
    if int(targets.max()) >= classes:
        where = int((targets >= classes).nonzero()[0])
        raise ValueError(f"{labels}: expected labels from 0 to {classes - 1}, got {int(targets[where])} at {where}")
    return pictures[:, None], targets.long()
