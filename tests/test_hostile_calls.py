"""The compiled ops, called directly with hostile arguments, raise an error or give what the reference does."""

import os
import subprocess
import sys
import time
from pathlib import Path

import grid_library
import psutil
import pytest
import torch
from grid import compiled_only, filled, leaf

from torchconv import ops
from torchconv.functional import conv2d, max_pool2d

pytestmark = compiled_only

SCRIPT = Path(__file__).with_name("hostile_calls.py")
# Those in one line share a process.
OPS = (
    "conv",
    "conv_input",
    "conv_weight",
    "winograd_block,winograd_block_input",
    "pack_weight",
    "im2col",
    "col2im",
    "max_pool",
    "max_pool_gather",
    "max_pool_scatter",
    "rectify_,rectify_input",
    "avg_pool,avg_pool_input,adaptive_avg_pool,adaptive_avg_pool_input,adaptive_max_pool",
)


def run(names: str, seed: int, count: int, library: str = "torchconv", **variables: str) -> dict[str, int]:
    """How many calls of each op returned; the rest raised a RuntimeError."""
    # Fresh memory is filled with rubbish, so that a result that nobody wrote is noticed.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.perturb=128", **variables}
    command = [sys.executable, "-X", "faulthandler", str(SCRIPT), names, str(seed), str(count), library]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, "\n".join(line[:600] for line in done.stderr.splitlines()[-30:])
    return {op: int(returned) for op, returned in (line.split() for line in done.stdout.splitlines())}


@pytest.mark.parametrize("names", OPS)
def test_no_call_crashes_or_gives_nonsense(names: str) -> None:
    returned = run(names, seed=1, count=1200)
    assert set(returned) == set(names.split(","))
    assert all(100 < n < 1000 for n in returned.values())  # both kinds were among them


@pytest.mark.parametrize("isa", ops.available_isas()[1:])
def test_no_call_crashes_with_other_instruction_sets(isa: str) -> None:
    returned = run(",".join(OPS), seed=2, count=300, TORCHCONV_ISA=isa)
    assert set(returned) == set(",".join(OPS).split(","))


@pytest.mark.parametrize("names", [names for names in OPS if "winograd" not in names and names != "pack_weight"])
def test_no_call_of_the_gpu_s_kernels_crashes_or_gives_nonsense(names: str) -> None:
    grid_library.load()  # compiled once, and not by the process that has little memory
    returned = run(names, seed=3, count=300, library="torchconv_grid")
    assert all(20 < n < 280 for n in returned.values())


def test_a_read_behind_the_end_would_be_noticed() -> None:
    code = (
        "import ctypes, random, sys; sys.path.insert(0, sys.argv[1]); import torch; from hostile_calls import fenced\n"
        "for i in range(20):\n"
        "    t = fenced(torch.ones(5), random.Random(i))\n"
        "    at = t.data_ptr() + 20; before = t.data_ptr() - 1\n"
        "    ctypes.string_at(at if at % 4096 == 0 else before, 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(SCRIPT.parent)], capture_output=True, check=False)
    assert done.returncode < 0


def test_far_strides_and_dilations_take_no_time() -> None:
    input, weight = leaf(filled((1, 1, 6, 6))), filled((1, 1, 3, 3))
    begin = time.perf_counter()
    conv2d(input, weight, stride=(2**31 - 1, 1), dilation=(2, 1)).sum().backward()
    assert time.perf_counter() - begin < 2


def test_many_taps_take_no_memory() -> None:
    input = leaf(filled((1, 1, 2, 2)))
    output = max_pool2d(input, 8192, padding=4096)
    before = psutil.Process().memory_info().rss
    peak_before = peak()
    output.sum().backward()
    assert max(peak() - peak_before, psutil.Process().memory_info().rss - before) < 2**26
    assert input.grad is not None
    assert torch.equal(input.grad, (input.detach() == input.detach().max()).double() * output.numel())


def peak() -> int:
    """The most memory that this process ever had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
