"""The compiled ops as torch's compiler sees them: schemas, fake kernels, tracing; and what calls leave behind."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from grid import CONV_PROBLEMS, compiled_only, filled, leaf, strides
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from torchconv import Conv2d, MaxPool2d, ops
from torchconv.functional import col2im, conv2d, im2col, max_pool2d

pytestmark = [
    compiled_only,
    pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated"),  # torch's own
]

# Dynamo looks at everything that it traces, and meets deprecated things of torch's own.
TRACED = pytest.mark.filterwarnings("ignore")

CONV = ([2, 1], [1, 2], [1, 2], 2)  # stride, padding, dilation, groups
CONV_1D, CONV_3D = ([2], [1], [1], 1), ([2, 1, 1], [1, 0, 2], [1, 2, 1], 1)
PLAIN = ([1, 1], [1, 1], [1, 1], 1)
WINDOW = ([3, 2], [2, 1], [1, 1], [1, 2])  # kernel, stride, padding, dilation
AVG = ([3, 2], [2, 1], [1, 0], True, False, None)  # kernel, stride, padding, ceil_mode, count_include_pad, divisor
AVG_3D = ([2, 2, 1], [2, 1, 3], [1, 0, 0], False, True, -3)


def positions(shape: tuple[int, ...], taps: int = 6) -> Tensor:
    return filled(shape).abs().mul(3).long().clamp(max=taps - 1).to(torch.uint8)


def last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=ops.memory_format_of(tensor.dim(), True))


PANELS = torch.ops.torchconv.pack_weight(filled((6, 2, 3, 2)), 2) if ops.isa() else torch.empty(0)

CALLS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "conv": ("conv", (filled((2, 4, 6, 7)), filled((6, 2, 3, 2)), filled((6,)), *CONV, "auto", False)),
    "conv_no_bias": ("conv", (filled((2, 4, 6, 7)), filled((6, 2, 3, 2)), None, *CONV, "im2col", False)),
    "conv_channels_last": ("conv", (last(filled((2, 4, 6, 7))), filled((6, 2, 3, 2)), None, *CONV, "auto", True)),
    "conv_winograd": ("conv", (filled((2, 4, 6, 7)), filled((6, 4, 3, 3)), filled((6,)), *PLAIN, "winograd", False)),
    "conv_1d": ("conv", (filled((2, 4, 9)), filled((6, 4, 3)), filled((6,)), *CONV_1D, "auto", False)),
    "conv_3d": ("conv", (filled((2, 3, 5, 6, 4)), filled((6, 3, 3, 2, 2)), None, *CONV_3D, "auto", False)),
    "conv_3d_channels_last": ("conv", (filled((2, 3, 5, 6, 4)), filled((6, 3, 3, 2, 2)), None, *CONV_3D, "auto", True)),
    "conv_no_batch_at_all": ("conv", (filled((0, 4, 6, 7)), filled((6, 2, 3, 2)), None, *CONV, "auto", False)),
    "conv_packed": (
        "conv",
        (filled((2, 4, 6, 7)), filled((6, 2, 3, 2)), None, *CONV, "im2col", False, PANELS),
    ),
    "conv_to_a_maximum": (
        "conv",
        (filled((2, 4, 6, 7)), filled((6, 4, 3, 3)), filled((6,)), *PLAIN, "winograd", True, None, 0.5),
    ),
    "pack_weight": ("pack_weight", (filled((70, 2, 3, 2), torch.float32), 2)),
    "pack_weight_1d": ("pack_weight", (filled((7, 2, 3)).mT.contiguous().mT, 1)),
    "conv_input": ("conv_input", (filled((2, 6, 3, 9)), filled((6, 2, 3, 2)), [6, 7], *CONV, "auto", False)),
    "conv_input_channels_last": (
        "conv_input",
        (filled((2, 6, 3, 9)), filled((6, 2, 3, 2)), [6, 7], *CONV, "auto", True),
    ),
    "conv_weight": ("conv_weight", (filled((2, 4, 6, 7)), filled((2, 6, 3, 9)), [3, 2], *CONV, "auto", False)),
    "conv_weight_channels_last": (
        "conv_weight",
        (filled((2, 4, 6, 7)), filled((2, 6, 3, 9)), [3, 2], *CONV, "auto", True),
    ),
    "conv_weight_winograd": (
        "conv_weight",
        (filled((2, 4, 6, 7)), filled((2, 6, 6, 7)), [3, 3], *PLAIN, "winograd", False),
    ),
    "winograd_block": ("winograd_block", (filled((2, 16, 6, 7)), filled((32, 16, 3, 3)), None, [1, 1], False, False)),
    "winograd_block_kept": (
        "winograd_block",
        (last(filled((2, 16, 6, 7))), filled((32, 16, 3, 3)), filled((32,)), [0, 2], False, True),
    ),
    "winograd_block_pooled": (
        "winograd_block",
        (filled((2, 16, 6, 4)), filled((32, 16, 3, 3)), filled((32,)), [1, 2], True, True),
    ),
    "winograd_block_no_batch": (
        "winograd_block",
        (filled((0, 16, 6, 4)), filled((32, 16, 3, 3)), filled((32,)), [1, 2], True, True),
    ),
    "winograd_block_input": (
        "winograd_block_input",
        (filled((2, 32, 6, 7)), torch.arange(42), filled((32, 16, 3, 3)), [6, 7], [1, 1]),
    ),
    "winograd_block_input_pooled": (
        "winograd_block_input",
        (filled((2, 32, 3, 3)), positions((2, 32, 3, 3), 4), filled((32, 16, 3, 3)), [6, 4], [1, 2]),
    ),
    "im2col": ("im2col", (filled((2, 4, 6, 7)), *WINDOW)),
    "im2col_bfloat16": ("im2col", (last(filled((2, 4, 6, 7), torch.bfloat16)), *WINDOW)),
    "col2im": ("col2im", (filled((2, 24, 21)), [6, 7], *WINDOW)),
    "max_pool": ("max_pool", (filled((2, 4, 6, 7)), *WINDOW, True, True, False)),
    "max_pool_channels_last": ("max_pool", (last(filled((2, 4, 6, 7), torch.float16)), *WINDOW, False, True, True)),
    "max_pool_no_positions": ("max_pool", (filled((2, 4, 6, 7)), *WINDOW, False, False, True)),
    "max_pool_many_taps": ("max_pool", (filled((1, 2, 20, 19)), [17, 17], [1, 1], [0, 0], [1, 1], False, True, False)),
    "max_pool_gather": ("max_pool_gather", (filled((2, 4, 6, 7)), positions((2, 4, 3, 7)), *WINDOW, False)),
    "max_pool_gather_last": ("max_pool_gather", (filled((2, 4, 6, 7)), positions((2, 4, 3, 7)), *WINDOW, True)),
    "max_pool_scatter": (
        "max_pool_scatter",
        (filled((2, 4, 3, 7)), positions((2, 4, 3, 7)), [6, 7], *WINDOW, False),
    ),
    "max_pool_scatter_last": (
        "max_pool_scatter",
        (filled((2, 4, 3, 7)), last(positions((2, 4, 3, 7))), [6, 7], *WINDOW, True),
    ),
    "rectify_": ("rectify_", (filled((2, 4, 6, 7)), filled((4,)), True)),
    "rectify_no_signs": ("rectify_", (last(filled((2, 4, 6, 7), torch.float64)), None, False)),
    "rectify_to_a_maximum": ("rectify_", (filled((2, 4, 6, 7)), None, True, 6.0)),
    "rectify_input": ("rectify_input", (filled((2, 4, 6, 7)), torch.arange(6), False)),
    "rectify_input_channels_last": ("rectify_input", (filled((2, 4, 6, 7)), torch.arange(6), True)),
    "avg_pool": ("avg_pool", (filled((2, 4, 6, 7)), *AVG, False)),
    "avg_pool_channels_last": ("avg_pool", (last(filled((2, 4, 6, 7), torch.bfloat16)), *AVG, True)),
    "avg_pool_1d": ("avg_pool", (filled((2, 4, 9)), [3], [2], [1], True, True, None, False)),
    "avg_pool_3d": ("avg_pool", (filled((2, 4, 4, 5, 6)), *AVG_3D, False)),
    "avg_pool_3d_channels_last": ("avg_pool", (filled((2, 4, 4, 5, 6)), *AVG_3D, True)),
    "avg_pool_no_batch_at_all": ("avg_pool", (filled((0, 4, 6, 7)), *AVG, False)),
    "avg_pool_input": ("avg_pool_input", (filled((2, 4, 4, 6)), [6, 7], *AVG, False)),
    "avg_pool_input_channels_last": ("avg_pool_input", (filled((2, 4, 4, 6), torch.float16), [6, 7], *AVG, True)),
    "avg_pool_input_3d": ("avg_pool_input", (filled((2, 4, 3, 4, 2)), [4, 5, 6], *AVG_3D, True)),
    "adaptive_avg_pool": ("adaptive_avg_pool", (filled((2, 4, 6, 7)), [4, 3], False)),
    "adaptive_avg_pool_channels_last": ("adaptive_avg_pool", (last(filled((2, 4, 6, 7))), [9, 3], True)),
    "adaptive_avg_pool_1d": ("adaptive_avg_pool", (filled((2, 4, 9)), [4], False)),
    "adaptive_avg_pool_of_no_pixels": ("adaptive_avg_pool", (filled((2, 4, 6, 7)), [0, 3], True)),
    "adaptive_avg_pool_input": ("adaptive_avg_pool_input", (filled((2, 4, 4, 3)), [6, 7], False)),
    "adaptive_avg_pool_input_channels_last": ("adaptive_avg_pool_input", (filled((2, 4, 4, 3)), [6, 7], True)),
    "adaptive_avg_pool_input_of_no_pixels": ("adaptive_avg_pool_input", (filled((2, 4, 0, 3)), [6, 7], False)),
    "adaptive_max_pool": ("adaptive_max_pool", (filled((2, 4, 6, 7)), [4, 3], False)),
    "adaptive_max_pool_channels_last": (
        "adaptive_max_pool",
        (last(filled((2, 4, 6, 7), torch.bfloat16)), [4, 9], True),
    ),
    "adaptive_max_pool_3d": ("adaptive_max_pool", (filled((2, 4, 4, 5, 6)), [2, 3, 1], True)),
}


def test_every_op_that_takes_a_tensor_is_checked() -> None:
    schemas = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("torchconv::")]
    with_tensors = {s.name for s in schemas if any("Tensor" in str(a.type) for a in s.arguments)}
    assert with_tensors == {f"torchconv::{op}" for op, _ in CALLS.values()}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    op, args = CALLS[name]
    torch.library.opcheck(getattr(torch.ops.torchconv, op).default, args)


@pytest.mark.parametrize("name", CALLS)
def test_fake_results_look_like_real_ones(name: str) -> None:
    op, args = CALLS[name]
    call = getattr(torch.ops.torchconv, op)
    real = call(*args)
    with FakeTensorMode() as mode:
        fake = call(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
    as_tuple = (real, fake) if isinstance(real, tuple) else ((real,), (fake,))
    for a, b in zip(*as_tuple, strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


class HeapInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`: ten sizes, the eighth (`uordblks`) of what is in use."""

    _fields_ = [("before", 7 * ctypes.c_size_t), ("in_use", ctypes.c_size_t), ("after", 2 * ctypes.c_size_t)]


LIBC = ctypes.CDLL(None)


@pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="glibc's, from 2.33 on")
@pytest.mark.parametrize("name", [*CALLS, "empty", "set_isa", "empty_cache"])
def test_calls_leave_nothing_on_the_heap(name: str) -> None:
    # A few bytes a call are soon much: what is freed around them no longer fits the next call. (torch leaks the
    # strings that ops return, as isa's; nothing asks for those again and again.)
    LIBC.mallinfo2.restype = HeapInfo
    op, args = CALLS.get(name, (name, ()))
    args = {"empty": ([2, 4, 6, 7], torch.float32, True), "set_isa": (ops.isa(),)}.get(name, args)
    call = getattr(torch.ops.torchconv, op)
    left = []
    for times in (100, 400, 400, 400):
        before = LIBC.mallinfo2().in_use
        for _ in range(times):
            call(*args)
        left.append(LIBC.mallinfo2().in_use - before)
    assert min(left[1:]) < 400 * 8  # what is allocated once, by whomever, is in one of them


@pytest.mark.parametrize("name", CONV_PROBLEMS)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layers_on_the_meta_device(name: str, format: torch.memory_format) -> None:
    problem = CONV_PROBLEMS[name]
    input, weight, bias = problem.tensors(torch.float32)
    tensors = [input.contiguous(memory_format=format), weight, bias]
    real = conv2d(*tensors, **problem.arguments)
    meta = conv2d(*(None if t is None else t.to("meta") for t in tensors), **problem.arguments)
    assert (meta.shape, strides(meta), meta.device.type) == (real.shape, strides(real), "meta")


def chain(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    image = max_pool2d(conv2d(input, weight, bias, padding=1), 2)
    return col2im(im2col(image, 3, padding=1), (image.shape[-2], image.shape[-1]), 3, padding=1)


@TRACED
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    weight, bias = filled((4, 3, 3, 3)), filled((4,))
    for shape in ((2, 3, 8, 9), (3, 3, 7, 11)):
        input = filled(shape)
        assert torch.equal(compiled(input, weight, bias), chain(input, weight, bias))


@TRACED
def test_compiled_code_has_gradients() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, chain):
        tensors = [leaf(filled(shape)) for shape in ((2, 3, 8, 9), (4, 3, 3, 3), (4,))]
        results.append(torch.autograd.grad(function(*tensors).square().sum(), tensors))  # type: ignore[arg-type]
    torch.testing.assert_close(*results)


def test_exports() -> None:
    model = torch.nn.Sequential(Conv2d(3, 4, 3, padding=1), MaxPool2d(2)).requires_grad_(False)
    input = filled((2, 3, 8, 9), torch.float32)
    exported = torch.export.export(model, (input,))
    targets = {str(node.target) for node in exported.graph.nodes}
    assert {"torchconv.conv.default", "torchconv.max_pool.default"} <= targets
    module: Callable[[Tensor], Tensor] = exported.module()
    assert torch.equal(module(input), model(input))
