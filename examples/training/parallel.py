"""The processes that torchrun started, or this one alone: who it is, what it shares with the others."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn  # its default arguments keep a process group alive that was made before it is imported
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """This process's number, how many there are, and where it computes."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """A network whose gradients are averaged over all processes."""
        if self.world == 1:
            return network
        if self.device.type == "cuda":  # torch has it for GPUs only
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return DistributedDataParallel(network)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            raise ConnectionError(f"process {self.rank} lost the others") from None

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            values = values.clone()
            with self._together():
                dist.all_reduce(values)
        return values

    def any(self, condition: bool) -> bool:
        """Whether it is so in any process; so they all do the same."""
        return bool(self.sum(torch.tensor(int(condition)))) if self.world > 1 else condition

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the running averages of the first one, which are those that are saved."""
        if self.world > 1:
            with self._together():
                for buffer in network.buffers():
                    dist.broadcast(buffer, 0)

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The others wait until the first process has done this, so that it alone downloads."""
        if self.world > 1 and not self.first:
            with self._together():
                dist.barrier()
        yield
        if self.world > 1 and self.first:
            with self._together():
                dist.barrier()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the other processes of torchrun, if there are any.

    Raises:
        ValueError: a device that can't be used.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        place = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device)
        torch.empty(1, device=place)
        if place.type == "cuda":
            torch.cuda.set_device(place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device}: can't be used: {str(error).splitlines()[0]}") from None
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {device}: expected cpu or cuda")
    if world == 1:
        yield Processes(0, 1, place)
        return
    dist.init_process_group("gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=TIMEOUT)
    try:
        yield Processes(dist.get_rank(), world, place)
    finally:
        # The group's threads must end with it: one that drops a tensor while Python is torn down aborts the process. So
        # DistributedDataParallel goes first, a cycle of references that holds the group: were it the last to, it would
        # wait for the threads with Python's lock in its hand, and they for the lock.
        gc.collect()
        dist.destroy_process_group()
