"""Finds and loads the compiled ops, and keeps the reason when it can't.

`LOADED` says whether `torch.ops.torchconv` has its C++ kernels; when it hasn't, `REASON` says why in one line and the
package runs on its plain-PyTorch kernels. `TORCHCONV_EXTENSION=0` in the environment leaves the compiled ops out.
"""

import os
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_C.so")
OLDEST_TORCH = (2, 10)  # the TORCH_TARGET of setup.py


def load() -> str | None:
    """Load the compiled ops.

    Returns:
        None, or why they are not loaded.
    """
    if os.environ.get("TORCHCONV_EXTENSION", "1") == "0":
        return "switched off by TORCHCONV_EXTENSION=0"
    if not LIBRARY.exists():
        left_by_the_build = LIBRARY.with_suffix(".txt")
        return left_by_the_build.read_text().strip() if left_by_the_build.exists() else f"not built: no {LIBRARY}"
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        return f"torch {torch.__version__} is too old: the compiled ops need 2.10 or later"
    try:
        torch.ops.load_library(LIBRARY)
    except (OSError, RuntimeError) as error:
        return f"{LIBRARY} does not load: {' '.join(str(error).split())}"
    return None


REASON: str | None = load()
LOADED: bool = REASON is None
