"""Finds and loads the compiled ops, and keeps the reason when it can't.

`LOADED` says whether `torch.ops.torchconv` has its C++ kernels; when it hasn't, `REASON` says why in one line and the
package runs on its plain-PyTorch kernels. `TORCHCONV_EXTENSION=0` in the environment leaves the compiled ops out.
`CUDA` says whether there are CUDA kernels among the loaded ones, and `CUDA_REASON` why not. That asks for neither a GPU
nor a torch that can use one: without these there are no CUDA tensors to call a kernel with.
"""

import os
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_C.so")
OLDEST_TORCH = (2, 10)  # the TORCH_TARGET of setup.py


def left_by_the_build() -> str:
    """What setup.py has to say: why there is no library, or what CUDA kernels are in it, or why none are."""
    note = LIBRARY.with_suffix(".txt")
    return note.read_text().strip() if note.exists() else ""


def load() -> str | None:
    """Load the compiled ops.

    Returns:
        None, or why they are not loaded.
    """
    if os.environ.get("TORCHCONV_EXTENSION", "1") == "0":
        return "switched off by TORCHCONV_EXTENSION=0"
    if not LIBRARY.exists():
        return left_by_the_build() or f"not built: no {LIBRARY}"
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        return f"torch {torch.__version__} is too old: the compiled ops need 2.10 or later"
    try:
        torch.ops.load_library(LIBRARY)
    except (OSError, RuntimeError) as error:
        return f"{LIBRARY} does not load: {' '.join(str(error).split())}"
    return None


def no_cuda() -> str | None:
    """Why there are no CUDA kernels, or None where there are."""
    if REASON is not None:
        return REASON
    if torch._C._dispatch_has_kernel_for_dispatch_key("torchconv::conv", "CUDA"):
        return None
    return left_by_the_build() or "built without"


REASON: str | None = load()
LOADED: bool = REASON is None
CUDA_REASON: str | None = no_cuda()
CUDA: bool = CUDA_REASON is None
