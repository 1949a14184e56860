"""One process of test_ddp.py: trains on its part of the batch and saves the gradients. Started by torchrun:

torchrun --nproc-per-node 2 tests/ddp_worker.py FOLDER
"""

import faulthandler
import gc
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # its default arguments keep a process group alive that was made before it is imported
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import torchconv

TIMEOUT = timedelta(minutes=4)  # in which a slow machine starts two interpreters
WORLD = 2

# Each with DistributedDataParallel's options.
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in small buckets": {"gradient_as_bucket_view": True, "bucket_cap_mb": 1e-3},
    "as a static graph": {"static_graph": True},
    "with activation checkpointing": {},
    "with a frozen layer": {},
    "adding up two batches": {},
}


class Checkpointed(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return checkpoint(super().forward, input, use_reentrant=False)


def build(scenario: str) -> nn.Sequential:
    model = (Checkpointed if "checkpointing" in scenario else nn.Sequential)(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, groups=2), nn.Tanh(), nn.AvgPool2d(3, 2, 1)),
        *(nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
    )
    model[3].requires_grad_("frozen" not in scenario)
    return torchconv.convert(model.double())


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 14, 12, generator=generator).double(), torch.arange(8) % 5


def gradients(scenario: str, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of the mean loss. Where batches add up, the processes exchange gradients at the last one."""
    count = 2 if "adding up" in scenario else 1
    for i, (part, wanted) in enumerate(zip(images.chunk(count), labels.chunk(count), strict=True)):
        alone = isinstance(model, DistributedDataParallel) and i < count - 1
        with model.no_sync() if alone else nullcontext():
            (nn.functional.cross_entropy(model(part), wanted) / count).backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}


def main(folder: Path) -> None:
    faulthandler.dump_traceback_later(TIMEOUT.total_seconds(), exit=True)  # no worker outlives a test that was killed
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    rank = dist.get_rank()
    images, labels = (tensor.chunk(WORLD)[rank] for tensor in batch())
    found = {}
    for scenario, options in SCENARIOS.items():
        torch.manual_seed(rank)  # DDP makes all processes start from the first one's weights
        found[scenario] = gradients(scenario, DistributedDataParallel(build(scenario), **options), images, labels)
    torch.save(found, folder / f"{rank}.pt")
    gc.collect()  # DistributedDataParallel, a cycle of references, so that the group's threads end with the group
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
