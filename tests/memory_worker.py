"""One step of a network in a process of its own: prints what was predicted and by how much the process grew, in bytes.

python tests/memory_worker.py NETWORK SIZE
"""

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import torchvision_models
from networks import lenet
from torch import Tensor, nn

import torchconv
from torchconv.inspect import memory

PROCESS = Path("/proc/self")


def network_and_input(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """The frozen features of VGG-19 with a picture, resnet18 with four, LeNet with a batch of digits."""
    if name == "vgg19":
        network = torchconv.models.vgg_features("vgg19", layers=["relu5_1"], weights=None)
        return network, torch.rand(1, 3, size, size, requires_grad=True)
    if name == "resnet18":
        models = next(torchvision_models.__wrapped__())  # what the fixture gives
        return torchconv.convert(models.resnet18()), torch.rand(4, 3, size, size)
    return lenet(torchconv), torch.rand(size, 1, 28, 28)


def step(model: nn.Module, input: Tensor) -> None:
    output: Any = model(input)
    output = output["relu5_1"] if isinstance(output, dict) else output
    output.sum().backward()


def resident(field: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def give_back() -> None:
    """Give the system all memory that is free."""
    gc.collect()
    torchconv.empty_cache()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's
        libc.malloc_trim(0)


def growth(model: nn.Module, input: Tensor) -> int:
    give_back()
    (PROCESS / "clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before = resident("VmRSS")
    step(model, input)
    return resident("VmHWM") - before


def main() -> None:
    model, input = network_and_input(sys.argv[1], int(sys.argv[2]))
    predicted = memory(model, input).peak
    tiny = input.detach()[:2, :, :32, :32].clone().requires_grad_(input.requires_grad)
    step(model, tiny)  # starts threads and libraries
    model.zero_grad()
    print(json.dumps([predicted, growth(model, input)]))


if __name__ == "__main__":
    main()
