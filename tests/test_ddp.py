"""Converted models under DistributedDataParallel: two processes find one's gradients of the joined batch."""

import os
import subprocess
import sys

import ddp_worker
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each process found, for every scenario."""
    folder = tmp_path_factory.mktemp("ddp")
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ddp_worker.WORLD)]
    torchrun = subprocess.Popen(
        [sys.executable, *run, ddp_worker.__file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = torchrun.communicate(timeout=ddp_worker.TIMEOUT.total_seconds() + 30)
    finally:
        torchrun.terminate()  # ends its workers, if there still are any
        torchrun.wait(60)
    assert torchrun.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt") for rank in range(ddp_worker.WORLD)]


@pytest.mark.parametrize("scenario", ddp_worker.SCENARIOS)
def test_two_processes_find_the_gradients_of_the_joined_batch(
    found: list[dict[str, dict[str, Tensor]]], scenario: str
) -> None:
    torch.manual_seed(0)  # as the first process
    images, labels = ddp_worker.batch()
    expected = ddp_worker.gradients(scenario, ddp_worker.build(scenario), images, labels)
    assert len(expected) == (6 if "frozen" in scenario else 8)
    for process in found:
        assert process[scenario].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(process[scenario][name], gradient, rtol=1e-12, atol=1e-14)
