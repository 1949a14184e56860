"""Calls ops of torch.ops.torchconv with valid arguments, some of them replaced by hostile ones.

    python tests/hostile_calls.py OP,OP,... SEED COUNT

Each call must return or raise a RuntimeError, or a MemoryError for want of memory. What it returns is compared with the
reference. Tensors lie against pages that must not be touched, so that the first read behind their end, or before their
start, ends the process.
"""

import ctypes
import mmap
import random
import resource
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import grid_library
import torch
import winograd_pieces
from grid import expected_panels
from torch import Tensor

from torchconv import reference

PAGE = mmap.PAGESIZE
HOSTILE = (0, -1, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**31), -(2**63), 1, 2, 5, 7)
DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.int32,
    torch.bool,
    torch.complex64,
    torch.float32,
)


def fenced(tensor: Tensor, choose: random.Random) -> Tensor:
    """The same tensor, in memory of its own that begins or ends at a page without access."""
    size = tensor.numel() * tensor.itemsize
    if size == 0 or not (tensor.is_contiguous() or reference_format(tensor)):
        return tensor
    pages = -(-size // PAGE)
    area = mmap.mmap(-1, (pages + 2) * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for forbidden in (address, address + (pages + 1) * PAGE):
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(PAGE), 0) != 0:
            raise OSError("mprotect failed")
    offset = PAGE if choose.random() < 0.5 else (pages + 1) * PAGE - size
    flat = torch.frombuffer(area, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def reference_format(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def image(shape: Sequence[int], dtype: torch.dtype, choose: random.Random) -> Tensor:
    tensor = torch.randn(*shape, dtype=torch.float64).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 and choose.random() < 0.5 else tensor


def valid_call(op: str, choose: random.Random) -> list[Any]:
    """The arguments of a small call that is valid most of the time."""
    if op.startswith("winograd_block"):
        return valid_block(op, choose)
    rank, batch, groups = choose.choice((1, 2, 2, 2, 3)), choose.choice((0, 1, 2)), choose.choice((1, 1, 2, 3))
    few = [choose.choice((1, 2, 3, 5, 17)) for _ in range(2)]
    channels, outputs = few[0] * groups, few[1] * groups
    kernel = [choose.choice((1, 2, 3, 3)) for _ in range(rank)]
    stride, dilation = ([choose.choice((1, 1, 2, 3)) for _ in range(rank)] for _ in range(2))
    if choose.random() < 0.3:
        kernel, stride, dilation, groups = [3] * rank, [1] * rank, [1] * rank, 1
    padding = [choose.choice((0, 1, 2)) for _ in range(rank)]
    if "pool" in op:
        padding = [min(p, k // 2) for p, k in zip(padding, kernel, strict=True)]
    if op.startswith("avg_pool"):
        dilation = [1] * rank
    room = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [max(1, r - 2 * p) + choose.choice((0, 1, 4, 9)) for r, p in zip(room, padding, strict=True)]
    ceil_mode = "pool" in op and choose.random() < 0.5
    output = reference.output_size(size, kernel, stride, padding, dilation, ceil_mode)
    dtype = choose.choice((torch.float32, torch.float64))
    last = rank > 1 and choose.random() < 0.5
    move = [stride, padding, dilation]
    algorithm = choose.choice(("auto", "im2col", "winograd"))
    input, result = (image([batch, c, *s], dtype, choose) for c, s in ((channels, size), (outputs, output)))
    pooled = image([batch, channels, *output], dtype, choose)
    taps = torch.Size(kernel).numel()
    positions = torch.randint(0, taps, pooled.shape).to(torch.uint8)
    weight = image([outputs, channels // groups, *kernel], dtype, choose)
    bias = choose.choice((None, torch.randn(outputs, dtype=dtype)))
    average = [kernel, stride, padding, ceil_mode, choose.random() < 0.5, choose.choice((None, None, 5, -2))]
    parts = [choose.choice((1, 2, 3, 7)) for _ in range(rank)]
    most = choose.choice((None, None, 0.5, float("inf"), 0.0))
    columns = torch.randn(batch, channels * taps, torch.Size(output).numel(), dtype=dtype)
    calls: dict[str, list[Any]] = {
        "conv": [input, weight, bias, *move, groups, algorithm, last, packed(weight, groups, choose), most],
        "pack_weight": [weight, groups],
        "conv_input": [result, weight, size, *move, groups, algorithm, last],
        "conv_weight": [input, result, kernel, *move, groups, algorithm, last],
        "im2col": [input, kernel, *move],
        "col2im": [columns, size, kernel, *move],
        "max_pool": [input, kernel, *move, ceil_mode, choose.random() < 0.5, last],
        "max_pool_gather": [input, positions, kernel, *move, last],
        "max_pool_scatter": [pooled, positions, size, kernel, *move, last],
        "rectify_": [input, choose.choice([None, bias]), choose.random() < 0.5, most],
        "rectify_input": [input, torch.randint(-(2**63), 2**63 - 1, (-(-input.numel() // 64),)), last],
        "avg_pool": [input, *average, last],
        "avg_pool_input": [pooled, size, *average, last],
        "adaptive_avg_pool": [input, parts, last],
        "adaptive_avg_pool_input": [pooled, parts, last],
        "adaptive_max_pool": [input, parts, last],
    }
    return calls[op]


def packed(weight: Tensor, groups: int, choose: random.Random) -> Tensor | None:
    return choose.choice((None, None, torch.ops.torchconv.pack_weight(weight, groups)))


def valid_block(op: str, choose: random.Random) -> list[Any]:
    batch, channels, outputs = choose.choice((0, 1, 2)), choose.choice((16, 48)), choose.choice((16, 32))
    dtype, pool, save, padding = (
        choose.choice((torch.float32, torch.float64)),
        choose.random() < 0.5,
        choose.random() < 0.5,
        [choose.choice((0, 1, 2)) for _ in range(2)],
    )
    size = [max(3 - 2 * p, choose.choice((1, 2, 4, 7))) for p in padding]
    size = [n + n % 2 for n in size] if pool else size
    result = [n + 2 * p - 2 for n, p in zip(size, padding, strict=True)]
    result = [n // 2 for n in result] if pool else result
    weight, grad_output = (
        image([outputs, channels, 3, 3], dtype, choose),
        image([batch, outputs, *result], dtype, choose),
    )
    if op == "winograd_block":
        bias = choose.choice((None, torch.randn(outputs, dtype=dtype)))
        blocks = image([batch, channels, *size], dtype, choose)
        return [blocks, weight, bias, padding, pool, save, packed(weight, 1, choose)]
    positions = torch.randint(0, 6, grad_output.shape).to(torch.uint8)  # of which two are none
    signs = torch.randint(-(2**63), 2**63 - 1, (-(-grad_output.numel() // 64),))
    return [grad_output, positions if pool else signs, weight, size, padding]


def hostile_tensor(tensor: Tensor, choose: random.Random) -> Tensor:
    shape = list(tensor.shape)
    kind = choose.randrange(9)
    if kind == 0 and shape:
        shape[choose.randrange(len(shape))] = choose.choice((0, 1, 2, 4))
    elif kind == 1:
        shape = shape[: choose.randrange(len(shape) + 1)]
    elif kind == 2:
        shape += [choose.choice((0, 1, 2))] * choose.choice((1, 1, 4))
    elif kind == 3:
        return tensor.to(choose.choice(DTYPES))
    elif kind == 4 and tensor.numel() > 0:
        return tensor.flatten()[:1].reshape([1] * len(shape)).expand(shape)
    elif kind == 5 and shape:
        far = list(shape)
        far[choose.randrange(len(shape))] = choose.choice((2**31 - 1, 2**31, 2**40))
        return torch.zeros(1, dtype=tensor.dtype).expand(far)  # enormous, of one element
    elif kind == 6:
        return torch.ones([min(n, 2) for n in shape], dtype=tensor.dtype).to_sparse()
    elif kind == 7 and tensor.dtype in (torch.uint8, torch.int32):
        return torch.randint(-(2**31), 2**31 - 1, shape).to(tensor.dtype)
    elif kind == 8 and len(shape) > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    return torch.ones(shape, dtype=tensor.dtype)


def hostile(argument: Any, choose: random.Random) -> Any:
    if isinstance(argument, Tensor):
        return hostile_tensor(argument, choose)
    if isinstance(argument, bool):
        return not argument
    if isinstance(argument, int):
        return choose.choice(HOSTILE)
    if isinstance(argument, float):
        return choose.choice((-1.0, 0.0, float("nan"), float("inf"), 1e300))
    if isinstance(argument, str):
        return choose.choice(("", "reference", "winograd", "\0", "é" * 1000))
    if argument is None:
        return choose.choice((torch.zeros(choose.choice((0, 1, 3))), choose.choice(HOSTILE)))
    values = list(argument)
    kind = choose.randrange(8)
    if kind == 0:
        return []
    if kind == 1:
        return values[:-1]
    if kind == 2:
        return values + [1] * choose.choice((1, 1, 100))
    if kind == 3:
        return [choose.choice(HOSTILE) for _ in values]
    if values:
        values[choose.randrange(len(values))] = choose.choice(HOSTILE)
    return values


def compare(op: str, args: list[Any], result: Any) -> None:
    """Raises an AssertionError where the reference gives something else."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    if op == "rectify_" and args[1] is not None:
        return  # its bias would be added a second time
    if any(prod(max(n, 1) for n in t.shape) > 100_000 for t in tensors):
        return
    if op == "pack_weight":
        torch.testing.assert_close(result, expected_panels(*args, result.shape[-1]), rtol=0, atol=0)
        return
    most = args.pop() if op in ("conv", "rectify_") else None
    if op in ("conv", "winograd_block"):
        panels, weight = args.pop(), args[1]
        if panels is not None and (panels.dim() != 4 or panels.numel() == 0 or panels.dtype != weight.dtype):
            return  # of an output without elements, where they aren't looked at
        if panels is not None and not torch.equal(panels, expected_panels(weight, len(panels), panels.shape[-1])):
            return  # those of another weight
    # The kernels add 16-bit values up in float32, and the reference in what it gets.
    args = [a.double() if isinstance(a, Tensor) and a.dtype in (torch.float16, torch.bfloat16) else a for a in args]
    if op.startswith("winograd_block"):
        return compare_block(op, args, result)
    options = {"conv": 2, "conv_input": 2, "conv_weight": 2, "im2col": 0, "col2im": 0, "max_pool": 2}.get(op, 1)
    try:
        if op == "rectify_input":  # whose signs are of elements in this order
            args[0] = in_format(args[0], args[2])
        options_of_rectify = {"max_value": most} if op == "rectify_" and most is not None else {}
        expected = getattr(reference, op)(*args[: len(args) - options], **options_of_rectify)
        if op == "conv" and most is not None:
            reference.rectify_(expected, None, most)
    except (RuntimeError, MemoryError):
        return  # the reference pads for real: too large for it
    if op == "rectify_" and not args[2]:
        result, expected = args[0].clamp(0, most), args[0]
    if op == "max_pool":
        result, expected = (result[0], expected[0]) if not args[-2] else (result, expected)
    bound = 1e-3 if tensors[0].dtype != torch.bfloat16 else 5e-2
    check_dtype = tensors[0].dtype in (torch.float32, torch.float64)  # of no elements the kernels take any
    torch.testing.assert_close(result, expected, rtol=bound, atol=bound, equal_nan=True, check_dtype=check_dtype)


def compare_block(op: str, args: list[Any], result: Any) -> None:
    """Its signs and positions are arbitrary where values are as good as zero, or as each other."""
    ours = result[0] if op == "winograd_block" else result
    if ours.numel() == 0:
        return
    theirs = getattr(winograd_pieces, op)(*args, algorithm="reference")
    theirs = theirs[0] if op == "winograd_block" else theirs
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3, equal_nan=True)


def in_format(tensor: Tensor, channels_last: bool) -> Tensor:
    if not channels_last:
        return tensor.contiguous()
    return tensor.contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)


def shown(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return (argument.layout, argument.dtype, tuple(argument.shape), None if argument.is_sparse else argument.stride())


def main(op: str, seed: int, count: int, library: str) -> None:
    choose = random.Random(seed)
    torch.manual_seed(seed)
    call = getattr(getattr(torch.ops, library), op)
    returned = 0
    for i in range(count):
        args = valid_call(op, choose)
        for where in choose.sample(range(len(args)), min(len(args), choose.choice((0, 1, 1, 1, 2, 3)))):
            args[where] = hostile(args[where], choose)
        args = [fenced(a, choose) if isinstance(a, Tensor) and a.layout == torch.strided else a for a in args]
        # The last line that is printed tells which call ended the process.
        print(op, i, [shown(a) for a in args], file=sys.stderr)
        try:
            result = call(*args)
        except (RuntimeError, MemoryError):
            continue
        compare(op, args, result)
        returned += 1
    print(op, returned)


if __name__ == "__main__":
    names, seed, count, library = sys.argv[1:]
    torch.set_num_threads(1)
    if library == "torchconv_grid":
        grid_library.load()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))  # what is too large fails at once
    for name in names.split(","):
        main(name, int(seed), int(count), library)
