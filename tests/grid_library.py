"""The GPU's kernels as loops on the CPU: csrc/cuda compiled as C++, as a library beside the ordinary ops."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import torch

from torchconv import ops

ROOT = Path(__file__).parent.parent
SOURCES = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), Path(__file__).with_suffix(".cpp")]
FLAGS = "-O1 -fPIC -std=c++17 -Wall -Wextra -Werror -fvisibility=hidden -DTORCH_TARGET_VERSION=0x020a000000000000"
NARROW_INDEX, COLUMN_BYTES = 2**31 - 1 - 2**24, 2**27  # csrc/cuda/grid.h's own limits


def _compile(source: Path, build: Path) -> Path:
    """Objects are kept until a header or their own source changes."""
    from torch.utils.cpp_extension import include_paths

    target = build / f"{source.stem}.o"
    newest = max(path.stat().st_mtime for path in [source, *(ROOT / "csrc").rglob("*.h")])
    if not target.exists() or target.stat().st_mtime < newest:
        system = [f"-isystem{path}" for path in include_paths()]
        part = target.with_suffix(f".{os.getpid()}")
        compiler = shlex.split(os.environ.get("CXX") or "c++")
        command = [
            *compiler,
            "-x",
            "c++",
            "-c",
            *FLAGS.split(),
            f"-I{ROOT / 'csrc'}",
            *system,
            str(source),
            "-o",
            str(part),
        ]
        subprocess.run(command, check=True)
        part.replace(target)
    return target


@cache
def load() -> None:
    """Compile what has changed, and load it as `torch.ops.torchconv_grid`, with `torch.ops.torchconv`'s schemas."""
    from torch.utils.cpp_extension import library_paths

    build = ROOT / "build" / f"grid.torch-{torch.__version__}"
    build.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: str(_compile(source, build)), SOURCES))
    library = build / "grid.so"
    folders = [f"-L{path}" for path in library_paths()]
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    subprocess.run([*compiler, "-shared", *objects, "-o", library, *folders, "-ltorch_cpu", "-Wl,-z,defs"], check=True)
    schemas = torch.library.Library("torchconv_grid", "DEF")
    schemas.define("set_limits(int narrow_index, int column_bytes) -> ()")
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("torchconv::"):
            schemas.define(str(schema).removeprefix("torchconv::"))
    torch.ops.load_library(library)
    _KEPT.append(schemas)


_KEPT: list[torch.library.Library] = []  # a library's schemas live as long as it


@contextmanager
def grid(narrow_index: int = NARROW_INDEX, column_bytes: int = COLUMN_BYTES) -> Iterator[None]:
    """All of torchconv on the kernels of the GPU inside a `with` block, for tensors on the CPU."""
    load()
    served = ops.Served(ops._ALL, ops._ALL, ops._ALL_REAL, ops._ALL_REAL)
    torch.ops.torchconv_grid.set_limits(narrow_index, column_bytes)
    try:
        with mock.patch.multiple(ops, _kernels=torch.ops.torchconv_grid, _CPU=served):
            yield
    finally:
        torch.ops.torchconv_grid.set_limits(NARROW_INDEX, COLUMN_BYTES)
