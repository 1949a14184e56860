"""Convolution, ReLU and max pooling as one Function: the numbers of the pieces, to any order, with less kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchconv
from torchconv import functional, reference
from torchconv.autograd import bands
from torchconv.autograd import fused as fused_functions
from torchconv.functional import conv_relu2d, conv_relu_pool2d

GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"padding": 1},
    {"stride": 2, "padding": 1},
    {"dilation": (1, 2), "padding": "same"},
    {"groups": 2, "padding": (0, 1)},
]
POOLS: list[dict[str, Any]] = [
    {},
    {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1},
    {"pool_kernel_size": (2, 1), "pool_stride": 1, "ceil_mode": True},
    {"pool_kernel_size": 2, "pool_dilation": 2, "pool_stride": 3},
]
FORMATS = (torch.contiguous_format, torch.channels_last)


def pieces(pool: dict[str, Any] | None) -> Callable[..., Tensor]:
    """What the fused function stands for, of torchconv's own parts."""

    def composed(*args: Any, **kwargs: Any) -> Tensor:
        output = torch.relu(functional.conv2d(*args, **kwargs))
        if pool is None:
            return output
        names = {"pool_kernel_size": 2, "pool_stride": None, "pool_padding": 0, "pool_dilation": 1, "ceil_mode": False}
        return functional.max_pool2d(output, *(names | pool).values())

    return composed


def fused(pool: dict[str, Any] | None) -> Callable[..., Tensor]:
    return conv_relu2d if pool is None else lambda *args, **kwargs: conv_relu_pool2d(*args, **kwargs, **pool)


def operands(dtype: torch.dtype, groups: int = 1, size: tuple[int, ...] = (2, 4, 9, 8)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (size, (6, size[1] // groups, 3, 3), (6,))
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def both(
    pool: dict[str, Any] | None, tensors: list[Tensor], geometry: dict[str, Any], **to: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients, fused and by pieces."""
    results = []
    for function in (fused(pool), pieces(pool)):
        output = function(*[t.to(**to) if t.dim() == 4 else t for t in tensors], **geometry)
        grad_output = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
        results.append([output, *grad(output, tensors, grad_output)])
    return results[0], results[1]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("pool", [None, *POOLS])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_bits_are_those_of_the_pieces(
    geometry: dict[str, Any], pool: dict[str, Any] | None, memory_format: torch.memory_format
) -> None:
    with torchconv.algorithm("im2col"):
        tensors = operands(torch.float32, geometry.get("groups", 1))
        for ours, theirs in zip(*both(pool, tensors, geometry, memory_format=memory_format), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("pool", [None, {}, {"pool_kernel_size": 3, "pool_stride": 2}])
def test_zeros_of_both_signs_nan_and_infinity_are_torch_s(pool: dict[str, Any] | None) -> None:
    values = [-0.0, 0.0, float("nan"), float("inf"), -float("inf"), -1.0, 1.0]
    image = torch.tensor(values * 24)[torch.randperm(168, generator=torch.Generator().manual_seed(0))].view(
        1, 1, 14, 12
    )
    weight = torch.ones(1, 1, 1, 1)
    results = []
    for function in (fused(pool), pieces(pool)):
        x, w = image.clone().requires_grad_(), weight.clone().requires_grad_()
        output = function(x, w)
        results.append((output, *grad(output, (x, w), torch.ones_like(output))))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours.signbit()[~ours.isnan()], theirs.signbit()[~theirs.isnan()])
        assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("pool", [None, *POOLS])
def test_gradients_to_second_order(pool: dict[str, Any] | None) -> None:
    tensors = operands(torch.float64, size=(1, 2, 7, 6))
    function = fused(pool)
    assert gradcheck(lambda *args: function(*args, padding=1), tensors)
    assert gradgradcheck(lambda *args: function(*args, padding=1), tensors)


def test_a_third_derivative_is_that_of_the_pieces() -> None:
    results = []
    for function in (conv_relu2d, pieces(None)):
        x, w, b = operands(torch.float64, size=(1, 2, 7, 6))
        value = (function(x, w, b) ** 3).sum()
        for _ in range(3):
            (slope,) = grad(value, w, create_graph=True)
            value = (slope**2).sum()
        results.append(value)
    assert_close(*results)


@settings(deadline=None)
@given(data=st.data())
def test_any_geometry_is_that_of_the_pieces(data: st.DataObject) -> None:
    def draw(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    groups = draw(1, 3)
    kernel = (draw(1, 4), draw(1, 4))
    shape = (draw(0, 3), groups * draw(1, 3), draw(1, 11), draw(1, 11))
    geometry = {"stride": (draw(1, 3), draw(1, 3)), "padding": (draw(0, 3), draw(0, 3)), "groups": groups}
    pool = {"pool_kernel_size": draw(1, 3), "pool_stride": draw(1, 3), "ceil_mode": data.draw(st.booleans())}
    memory_format = data.draw(st.sampled_from(FORMATS))
    x = torch.randn(shape).to(memory_format=memory_format).requires_grad_()
    w = torch.randn(groups * draw(1, 3), shape[1] // groups, *kernel).requires_grad_()
    try:
        expected = pieces(pool)(x, w, **geometry)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="conv_relu_pool2d"):
            fused(pool)(x, w, **geometry)
        return
    output = fused(pool)(x, w, **geometry)
    assert_close(output, expected, rtol=0, atol=0)
    grad_output = torch.randn(output.shape)
    for ours, theirs in zip(grad(output, (x, w), grad_output), grad(expected, (x, w), grad_output), strict=True):
        assert_close(ours, theirs)


def saved_bytes(function: Callable[..., Tensor], *tensors: Tensor) -> dict[tuple[torch.dtype, int], int]:
    """How many bytes of which tensors are kept, by (dtype, elements); a storage counts once."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(*tensors)
    assert output.requires_grad
    return {(t.dtype, t.numel()): t.numel() * t.element_size() for t in storages.values() if t.numel()}


def test_only_signs_and_positions_are_kept_beside_what_the_other_gradient_needs() -> None:
    x, w, b = operands(torch.float32, size=(2, 4, 8, 8))
    image, weight = (torch.float32, x.numel()), (torch.float32, w.numel())
    signs, fewer, positions = (torch.int64, 2 * 6 * 36 // 64 + 1), (torch.int64, 2), (torch.uint8, 2 * 6 * 9)
    functions = (lambda *args: conv_relu2d(*args), {signs}), (lambda *args: conv_relu_pool2d(*args), {fewer, positions})
    for function, masks in functions:
        assert saved_bytes(function, x, w, b).keys() == {image, weight, *masks}
        assert saved_bytes(function, x, w.detach(), b.detach()).keys() == {weight, *masks}
        assert saved_bytes(function, x.detach(), w, b).keys() == {image, *masks}
        assert saved_bytes(function, x.detach(), w.detach(), b).keys() == masks
        with torch.no_grad():
            assert function(x, w, b).grad_fn is None


@pytest.mark.parametrize("pool", [None, {}])
def test_transforms_and_forward_mode_compose_the_pieces(pool: dict[str, Any] | None) -> None:
    x, w, b = (t.detach() for t in operands(torch.float64))

    def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w, b: (function(x, w, b, padding=1) ** 2).sum()

    ours, theirs = loss(fused(pool)), loss(pieces(pool))
    assert_close(torch.func.grad(ours, (0, 1, 2))(x, w, b), torch.func.grad(theirs, (0, 1, 2))(x, w, b))
    per_sample = [torch.func.vmap(torch.func.grad(f, 1), (0, None, None))(x.unsqueeze(1), w, b) for f in (ours, theirs)]
    assert_close(*per_sample)
    tangents = [torch.func.jvp(f, (x, w, b), (x.cos(), w.sin(), b.cos())) for f in (ours, theirs)]
    assert_close(*tangents)
    hessians = [torch.func.hessian(lambda bias, f=f: f(x, w, bias))(b) for f in (ours, theirs)]
    assert_close(*hessians)


@pytest.mark.parametrize("pool", [None, {}])
def test_gradients_come_in_batches(pool: dict[str, Any] | None) -> None:
    tensors = operands(torch.float64)
    results = []
    for function in (fused(pool), pieces(pool)):
        output = function(*tensors)
        several = torch.randn(3, *output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(2))
        results.append(grad(output, tensors, several, is_grads_batched=True))
    assert_close(*results)


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
@pytest.mark.parametrize("pool", [None, {}])
def test_compiled_it_is_one_graph(pool: dict[str, Any] | None) -> None:
    tensors = operands(torch.float32)
    function = fused(pool)
    compiled = torch.compile(lambda *args: function(*args, padding=1), fullgraph=True, backend="aot_eager")
    outputs = compiled(*tensors), function(*tensors, padding=1)
    assert_close(*outputs)
    assert_close(*(grad(output.square().sum(), tensors) for output in outputs))


@pytest.mark.parametrize("pool", [None, {}])
def test_what_is_kept_must_not_be_changed(pool: dict[str, Any] | None) -> None:
    x, w, b = operands(torch.float32)
    image = x.detach().clone()
    output = fused(pool)(image, w, b)
    image.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_other_dtypes_one_picture_and_none() -> None:
    x, w, b = (t.detach() for t in operands(torch.float32))
    for dtype in (torch.bfloat16, torch.float16):
        ours = conv_relu_pool2d(x.to(dtype), w.to(dtype), b.to(dtype))
        assert_close(ours, F.max_pool2d(torch.relu(functional.conv2d(x.to(dtype), w.to(dtype), b.to(dtype))), 2))
    with torch.autocast("cpu"):
        assert conv_relu2d(x, w, b).dtype == torch.bfloat16
    assert_close(conv_relu2d(x[0], w, b), conv_relu2d(x, w, b)[0])
    assert_close(conv_relu_pool2d(x[0], w, b), conv_relu_pool2d(x, w, b)[0])
    assert conv_relu_pool2d(x[:0], w, b).shape == (0, 6, 3, 3)


def test_wrong_arguments_name_the_function() -> None:
    x, w, b = (t.detach() for t in operands(torch.float32))
    with pytest.raises(RuntimeError, match=r"conv_relu2d: .*weight"):
        conv_relu2d(x, w[:, :3], b)
    with pytest.raises(RuntimeError, match="conv_relu_pool2d: padding is 2"):
        conv_relu_pool2d(x, w, b, pool_padding=2)
    with pytest.raises(RuntimeError, match="conv_relu_pool2d"):
        conv_relu_pool2d(x, w, b, pool_kernel_size=9)
    with pytest.raises(TypeError, match="conv_relu_pool2d: ceil_mode is 1"):
        conv_relu_pool2d(x, w, b, ceil_mode=1)  # type: ignore[arg-type]  # the error is what is tested


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200, 70000])
def test_rectify_is_the_reference_s(dtype: torch.dtype, count: int) -> None:
    values = torch.randn(count, dtype=dtype)
    special = torch.tensor([-0.0, 0.0, float("nan"), -1.0, float("inf")], dtype=dtype)
    values[::5] = special.repeat(count)[: len(values[::5])]
    grad_output = torch.randn(count, dtype=dtype)
    ours, theirs = values.clone(), values.clone()
    signs, expected = torchconv.ops.rectify_(ours, None, True), reference.rectify_(theirs)
    assert torch.equal(signs, expected)
    assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ours.signbit(), torch.relu(values).signbit())
    gradient = torchconv.ops.rectify_input(grad_output, signs, False)
    assert torch.equal(gradient, reference.rectify_input(grad_output, expected))
    assert torchconv.ops.rectify_(values.clone(), None, False).numel() == 0


@settings(deadline=None)
@given(data=st.data())
def test_bands_are_the_whole(data: st.DataObject) -> None:
    def draw(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    groups, width, dilation = draw(1, 2), draw(3, 7), (draw(1, 2), 1)
    outputs = data.draw(st.sampled_from([3, 64])) * groups  # of the latter, a row's signs are whole words
    geometry = {"padding": (draw(0, 5), draw(0, 2)), "dilation": dilation, "groups": groups}
    x = torch.randn(draw(1, 2), 2 * groups, draw(1, 19), width, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(outputs, 2, draw(1, 4), draw(1, 3), dtype=torch.float64)
    bias = torch.randn(outputs, dtype=torch.float64)
    pool = data.draw(
        st.none()
        | st.fixed_dictionaries(
            {"pool_kernel_size": st.tuples(st.integers(1, 3), st.just(1)), "ceil_mode": st.booleans()}
        )
    )
    try:
        expected = pieces(pool)(x, w, bias, **geometry)
    except RuntimeError:
        return
    grad_output = torch.randn_like(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "LARGE", 0)
        patch.setattr(bands, "BANDS", draw(1, 4))
        patch.setattr(bands, "WEIGHTS", 0)
        patch.setattr(bands, "BAND", draw(1, 8) * outputs * 8 * width)
        ours = fused(pool)(x, w, bias, **geometry)
        gradient = grad(ours, x, grad_output)
    assert_close(ours, expected)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_close(gradient, grad(expected, x, grad_output))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("needed", [(0, 1, 2), (1, 2), (2,), (0, 1), (0, 2), (1,)])
@pytest.mark.parametrize(
    "pool", [None, {}, {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1, "ceil_mode": True}]
)
def test_picture_by_picture_is_all_at_once(
    pool: dict[str, Any] | None,
    needed: tuple[int, ...],
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(3, 4, 17, 15, dtype=torch.float64).contiguous(memory_format=layout)
    tensors = [x, torch.randn(8, 2, 3, 3, dtype=torch.float64), torch.randn(8, dtype=torch.float64)]
    inputs = [tensors[i].requires_grad_() for i in needed]
    geometry = {"stride": (1, 2), "padding": 1, "groups": 2}
    expected = pieces(pool)(*tensors, **geometry)
    grad_output = torch.randn_like(expected)
    seen: list[int] = []
    each = "rectify_input" if pool is None else "max_pool_scatter"
    function = getattr(fused_functions, each)
    monkeypatch.setattr(fused_functions, "PART", 0)
    monkeypatch.setattr(fused_functions, each, lambda grad, *rest: seen.append(len(grad)) or function(grad, *rest))
    output = fused(pool)(*tensors, **geometry)
    for ours, theirs in zip(grad(output, inputs, grad_output), grad(expected, inputs, grad_output), strict=True):
        assert_close(ours, theirs)
        assert ours.stride() == theirs.stride()
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rectify_adds_the_bias_of_each_channel(dtype: torch.dtype, layout: torch.memory_format) -> None:
    values, bias = torch.randn(3, 7, 5, 6, dtype=dtype).contiguous(memory_format=layout), torch.randn(7, dtype=dtype)
    ours, theirs = values.clone(), values.clone()
    assert torch.equal(torchconv.ops.rectify_(ours, bias, True), reference.rectify_(theirs, bias))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, torch.relu(values + bias.view(-1, 1, 1)))


BLOCKS = (torchconv.ConvReLU2d, torchconv.ConvReLUPool2d)


def blocks(first: type[nn.Module], second: type[nn.Module], recompute: bool, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [first(3, 8, 3, padding=1, recompute=recompute), second(8, 4, 3, padding=1), nn.Conv2d(4, 2, 3)]
    return nn.Sequential(*layers).to(dtype)


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("second", BLOCKS)
@pytest.mark.parametrize("first", BLOCKS)
def test_recompute_keeps_no_output_and_changes_no_bit(
    first: type[nn.Module], second: type[nn.Module], in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_parts:
        monkeypatch.setattr(fused_functions, "PART", 0)
    layers, again = (blocks(first, second, recompute, torch.float32) for recompute in (False, True))
    image = torch.randn(3, 3, 16, 12, requires_grad=True)
    between = layers[0](image).nbytes
    kept = [torchconv.inspect.memory(each, image).saved for each in (layers, again)]
    assert kept[0] - kept[1] == between
    expected, output = layers(image), again(image)
    assert torch.equal(output, expected)
    upstream = torch.randn(expected.shape)
    wanted = grad(expected, [image, *layers.parameters()], upstream)
    for ours, theirs in zip(grad(output, [image, *again.parameters()], upstream), wanted, strict=True):
        assert_close(ours, theirs, rtol=0, atol=0) if not in_parts else assert_close(ours, theirs)
    assert "recompute=True" in repr(again)
    assert "recompute" not in repr(layers)


def test_recompute_is_for_whom_the_weight_has_a_gradient() -> None:
    layers, again = (blocks(*BLOCKS, recompute, torch.float32) for recompute in (False, True))
    image = torch.randn(2, 3, 16, 12, requires_grad=True)
    for each in (layers, again):
        each[1].requires_grad_(False)
    assert torchconv.inspect.memory(again, image).saved == torchconv.inspect.memory(layers, image).saved
    with torch.no_grad():
        assert not hasattr(again[0](image), "torchconv_origin")


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
@pytest.mark.parametrize("first", BLOCKS)
def test_recompute_goes_with_derivatives_of_all_kinds(first: type[nn.Module]) -> None:
    layers, again = (blocks(first, BLOCKS[0], recompute, torch.float64) for recompute in (False, True))
    image = torch.randn(1, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    inputs = [image, *(p for p in again.parameters())]

    def score(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().sum()

    assert gradgradcheck(lambda *_: again(image), inputs)
    expected = grad(score(layers, image), [image, *layers.parameters()])
    nested = checkpoint(again, image, use_reentrant=False)
    for ours, theirs in zip(grad(nested.square().sum(), inputs), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert_close(torch.func.grad(lambda x: score(again, x))(image.detach()), expected[0])
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    assert_close(grad(score(compiled, image), inputs), expected)


def test_recompute_sees_what_changed_in_place() -> None:
    layers, again = (blocks(*BLOCKS, recompute, torch.float64) for recompute in (False, True))
    image = torch.randn(1, 3, 8, 6, dtype=torch.float64)
    # The output, before the next block takes it: that keeps it.
    wanted, found = (grad(each[1:](each[0](image).mul_(2)).sum(), each[1].weight) for each in (layers, again))
    assert_close(found, wanted)
    # What it is computed of, before backward: that is refused.
    score = again(image).sum()
    with torch.no_grad():
        again[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        score.backward()
