"""Checkpoints: written whole or not at all, read with care, and only continued by the run that they are of."""

import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT = "torchconv training 1"
PARTS = {"settings": Mapping, "data": Mapping, "progress": Mapping, "model": Mapping, "optimizer": Mapping}


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file under another name, and rename it once it is on the disk: there is never a part of it.

    Raises:
        OSError: no room, no right; the file that was there before is whole.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are the user's alone
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            kept = "; the file that was there is unchanged" if path.exists() else ""
            raise OSError(f"{path}: can't be written: {error.strerror or error}{kept}") from None
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # or the new name could be lost with the power
    finally:
        os.close(descriptor)


def save(path: Path, parts: dict[str, Any]) -> None:
    """Write a checkpoint of the parts named in PARTS."""
    buffer = io.BytesIO()  # torch.save to a full disk ends in the C++ writer's own words
    torch.save({"format": FORMAT, **parts}, buffer)
    write_whole(path, buffer.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or something else.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch.load checks no checksum
        content = None if broken else torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, PermissionError, IsADirectoryError):
        raise
    except Exception:  # a damaged file raises whatever the unpickler stumbles on
        raise ValueError(f"{path}: damaged, or not a checkpoint") from None
    if broken:
        raise ValueError(f"{path}: damaged: {broken} has another checksum than expected")
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a checkpoint of train.py, got another file of torch.save")
    for part, kind in PARTS.items():
        if not isinstance(content.get(part), kind):
            raise ValueError(f"{path}: damaged: expected a part named {part}")
    return dict(content)


def option(name: str) -> str:
    """The command line's name of a setting."""
    return f"--{name.replace('_', '-')}"


def compare(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Check that nothing is asked for that the checkpoint's run had otherwise.

    Raises:
        ValueError: names each difference.
    """
    differences = [
        f"{option(name)} {stored.get(name)}, not {value}" for name, value in asked.items() if value != stored.get(name)
    ]
    if differences:
        raise ValueError(f"{path}: was trained with {', and with '.join(differences)}")


def restore(path: Path, network: nn.Module, state: Mapping[str, Any]) -> None:
    """Load the weights of a checkpoint.

    Raises:
        ValueError: they are another network's.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[1:2]).strip() or str(error).splitlines()[0]
        raise ValueError(f"{path}: its weights don't fit the network: {reason}") from None
