"""Each operator once on the GPU, forward and backward, for compute-sanitizer to watch: `make gpu`.

Its results are also compared with those on the CPU, in the dtypes that kernels are compiled for.
"""

import sys

import torch
from device import DEVICE, MISSING, leaves, synchronize
from test_cuda_runtime import PROBLEMS, Problem, assert_same_step
from torch.testing import assert_close

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def run(problem: Problem, dtype: torch.dtype, channels_last: bool) -> None:
    tensors = problem.tensors(dtype)
    if channels_last:
        tensors = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    tensors = leaves(tensors)
    actual = problem.step(tensors)
    synchronize()
    if dtype == torch.float64:
        assert_same_step(problem, actual, tensors)
    else:
        exact = problem.function(*(t.detach().cpu().double() for t in tensors))
        bound = 0.05 if dtype == torch.bfloat16 else 1e-4
        assert_close(actual[0].cpu().double(), exact, rtol=bound, atol=bound)


def main() -> int:
    if MISSING:
        print(MISSING)
        return 1
    for name, problem in PROBLEMS.items():
        print(name, flush=True)  # before what the sanitizer says of it
        for dtype in DTYPES:
            for channels_last in (False, True):
                run(problem, dtype, channels_last)
    print(f"{len(PROBLEMS)} operators ran on {DEVICE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
