"""What this installation is made of: `python -m torchconv.info`."""

import importlib.metadata
import platform

import torch

from torchconv import _extension, ops


def version() -> str:
    """The installed version of torchconv."""
    try:
        return importlib.metadata.version("torchconv")
    except importlib.metadata.PackageNotFoundError:
        return "not installed (imported from its source tree)"


def gpu() -> str:
    """The GPUs, with what kernels must be compiled for, or why there is none."""
    if torch.version.cuda is None:
        return f"none: torch {torch.__version__} has no CUDA"
    if not torch.cuda.is_available():
        return "none that torch finds"
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{device.name} ({device.major}.{device.minor})" for device in devices)


def main() -> None:
    """Print versions, whether the compiled ops are loaded or why not, instruction set, GPU, threads and algorithm."""
    loaded = _extension.LOADED
    facts = {
        "torchconv": version(),
        "torch": torch.__version__,
        "Python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "compiled ops": f"loaded from {_extension.LIBRARY}" if loaded else f"no: {_extension.REASON}",
        "instruction set": f"{ops.isa()} (of {', '.join(ops.available_isas())})" if loaded else "torch's own",
        "CUDA kernels": _extension.left_by_the_build() if _extension.CUDA else f"no: {_extension.CUDA_REASON}",
        "GPU": gpu(),
        "threads": str(torch.get_num_threads()),
        "algorithm": ops.current_algorithm(),
    }
    for name, fact in facts.items():
        print(f"{name + ':':<17}{fact}")


if __name__ == "__main__":
    main()
