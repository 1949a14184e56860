"""Results of 2 MB and more, whose memory is our own (csrc/cpu/blocks.h): they behave as torch's, and it comes back."""

import gc
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from grid import compiled_only
from packaging.version import Version
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv
from torchconv.inspect.scratch import KEPT

SIDE = 512  # a result of 8 channels is 8 MiB
WORKER = Path(__file__).with_name("leak_worker.py")


def large(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A convolution's result of 8 MiB, and torch's."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, SIDE, SIDE, generator=generator)
    weight = torch.randn(8, 3, 3, 3, generator=generator)
    return torchconv.functional.conv2d(image, weight, padding=1), F.conv2d(image, weight, padding=1)


def test_a_view_keeps_the_memory_alive() -> None:
    result, expected = large()
    array, part = result.numpy(), result[0, 5:, 100:]
    del result
    gc.collect()
    others = [large(seed)[0] for seed in range(3)]  # would take its place
    assert_close(part, expected[0, 5:, 100:])
    assert_close(torch.from_numpy(array), expected)
    assert len(others) == 3


def test_memory_is_lent_again_without_trace_of_what_was_there() -> None:
    for seed in range(4):
        result, expected = large(seed)
        assert_close(result, expected)
        del result
        torchconv.empty_cache()


@compiled_only
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.skipif(Version(torch.__version__) < Version("2.11"), reason="torch 2.10 allocates all results itself")
def test_as_much_is_kept_as_the_account_of_memory_says() -> None:
    image, weight = torch.randn(1, 3, SIDE, SIDE), torch.randn(8, 3, 3, 3)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def results() -> list[Tensor]:
        return [torchconv.functional.conv2d(image, weight, padding=1) for _ in range(1 + KEPT // (8 << 20))]

    torchconv.empty_cache()
    before = resident()
    held = results()
    assert resident() - before > KEPT
    del held
    assert resident() - before == pytest.approx(KEPT, abs=KEPT / 8)
    torchconv.empty_cache()
    assert resident() - before < KEPT / 8


@compiled_only
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is the heap's")
@pytest.mark.skipif(Version(torch.__version__) < Version("2.11"), reason="torch 2.10 allocates all results itself")
def test_parts_of_what_is_kept_are_lent_and_become_one_again() -> None:
    def result(pictures: int) -> Tensor:
        return torchconv.functional.conv2d(torch.ones(pictures, 3, SIDE, SIDE), torch.ones(8, 3, 3, 3), padding=1)

    torchconv.empty_cache()
    whole = result(4)
    begin, size = whole.data_ptr(), whole.nbytes
    del whole
    parts = [result(1) for _ in range(4)]
    assert sorted(part.data_ptr() for part in parts) == [begin + i * size // 4 for i in range(4)]
    del parts
    assert result(4).data_ptr() == begin


def test_a_result_can_be_changed_in_place_pickled_and_shared() -> None:
    result, expected = large()
    assert_close(pickle.loads(pickle.dumps(result)), expected)
    result.add_(1).transpose_(2, 3)
    result = result.share_memory_()
    assert result.is_shared()
    assert_close(result, (expected + 1).transpose(2, 3))


@compiled_only
@pytest.mark.skipif(Version(torch.__version__) < Version("2.11"), reason="torch 2.10 allocates all results itself")
def test_resizing_a_large_result_is_refused() -> None:
    with pytest.raises(RuntimeError, match="not resizable"):
        large()[0].resize_(2, 8, SIDE, SIDE)


def test_threads_share_the_blocks() -> None:
    expected = [large(seed)[1] for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for result, wanted in zip(pool.map(lambda seed: large(seed)[0], range(4)), expected, strict=True):
                assert_close(result, wanted)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's account of a process")
@pytest.mark.parametrize("what", ["train", "style", "fail", "layer"])
def test_memory_stays_flat_over_200_steps(what: str) -> None:
    worker = subprocess.run([sys.executable, WORKER, what], capture_output=True, text=True, timeout=300)
    assert worker.returncode == 0, worker.stderr
    settled, final, most, most_at_the_end = map(int, worker.stdout.split())
    assert final - settled < 3e6
    assert most_at_the_end - most < 20e6  # nor is free memory piled up that nothing fits into
