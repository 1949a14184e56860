"""Weights kept as the kernels' panels: what they hold, what is computed with them, and when they are made anew."""

import gc
from copy import deepcopy
from math import prod
from typing import Any

import pytest
import torch
from grid import (
    CONV_PROBLEMS,
    LAYOUTS,
    WINOGRAD_LINES,
    WINOGRAD_PROBLEMS,
    WINOGRAD_STACKS,
    ConvProblem,
    compiled_only,
    expected_panels,
    filled,
)
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import torchconv
from torchconv import ops, packing

pytestmark = compiled_only

PROBLEMS = {
    **CONV_PROBLEMS,
    **{f"winograd_{name}": problem for name, problem in WINOGRAD_PROBLEMS.items()},
    **{f"stack_{name}": problem for name, problem in WINOGRAD_STACKS.items()},
    **WINOGRAD_LINES,
    "several_panels_of_groups": ConvProblem((1, 12, 6, 5), (140, 3, 3, 2), padding=1, groups=4),
    "one_tap_of_few_positions": ConvProblem((2, 300, 3, 5), (130, 300, 1, 1)),
    "strided_and_deep": ConvProblem((1, 150, 14, 15), (96, 150, 3, 3), stride=2, padding=1),
}
DTYPES = [torch.float64, torch.float32]


def pack(weight: Tensor, groups: int) -> Tensor:
    packed: Tensor = torch.ops.torchconv.pack_weight(weight, groups)
    return packed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "groups"), [((70, 5, 3, 2), 1), ((70, 20, 1, 1), 2), ((6, 3, 3, 3), 3)])
def test_panels(isa: str, size: tuple[int, ...], groups: int, layout: str, dtype: torch.dtype) -> None:
    weight = LAYOUTS[layout](filled(size, dtype))
    packed = pack(weight, groups)
    columns = {"amx": 128, "avx512": 128, "avx2": 64}.get(isa, 32) // weight.element_size()
    assert torch.equal(packed, expected_panels(weight, groups, columns))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_convolutions_with_panels(isa: str, name: str, dtype: torch.dtype) -> None:
    problem = PROBLEMS[name]
    input, weight, bias = problem.tensors(dtype)
    packed = pack(weight, problem.groups)
    # What isn't read of the weight itself may be anything: where panels serve, nothing else is.
    for algorithm in ("auto", "im2col", "winograd"):
        try:
            expected = ops.conv(input, weight, bias, *problem.geometry, algorithm)
        except RuntimeError:
            assert algorithm == "winograd"
            continue
        for channels_last in {False, input.dim() > 3}:
            x = input.contiguous(memory_format=ops.memory_format_of(input.dim(), channels_last))
            args = (*problem.geometry, algorithm, channels_last, packed)
            output = torch.ops.torchconv.conv(x, weight, bias, *args)
            assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("size", [(1, 32, 8, 10), (2, 48, 14, 6), (1, 32, 64, 60)])
def test_blocks_with_panels(isa: str, size: tuple[int, ...], pool: bool) -> None:
    input, weight, bias = filled(size, torch.float32), filled((80, size[1], 3, 3), torch.float32, 1), filled((80,))
    input, args = input.contiguous(memory_format=torch.channels_last), (bias.float(), [1, 1], pool, True)
    block = torch.ops.torchconv.winograd_block
    for with_panels, without in zip(
        block(input, weight, *args, pack(weight, 1)), block(input, weight, *args), strict=True
    ):
        assert torch.equal(with_panels, without)


def test_the_panels_are_what_is_read() -> None:
    """A convolution that has its panels needs no weight: rubbish in the one leaves the result of the other."""
    for size, stride in (((40, 40, 3, 3), 1), ((40, 40, 3, 3), 2), ((40, 300, 1, 1), 1)):
        input = filled((1, size[1], 14, 14), torch.float32).contiguous(memory_format=torch.channels_last)
        weight = filled(size, torch.float32, 1)
        window = ([stride] * 2, [1, 1], [1, 1], 1, "auto", True)
        expected = torch.ops.torchconv.conv(input, weight, None, *window, pack(weight, 1))
        rubbish = torch.full_like(weight, float("nan"))
        assert torch.equal(torch.ops.torchconv.conv(input, rubbish, None, *window, pack(weight, 1)), expected)


def test_panels_that_do_not_belong_to_the_weight_are_refused() -> None:
    input, weight = filled((1, 4, 6, 7), torch.float32), filled((6, 4, 3, 3), torch.float32)
    window = ([1, 1], [1, 1], [1, 1], 1, "auto", False)
    conv, packed = torch.ops.torchconv.conv, pack(weight, 1)
    with pytest.raises(RuntimeError, match=r"packed has shape \(1, 1, 18, \d+\), expected \(1, 1, 36, "):
        conv(input, weight, None, *window, packed[:, :, :18].contiguous())
    with pytest.raises(RuntimeError, match=r"packed has dtype Double, expected Float"):
        conv(input, weight, None, *window, packed.double())
    with pytest.raises(RuntimeError, match="packed is not a contiguous tensor on the CPU"):
        conv(input, weight, None, *window, packed.mT.contiguous().mT)
    with pytest.raises(RuntimeError, match="packed is for float32 and float64"):
        conv(input.bfloat16(), weight.bfloat16(), None, *window, packed)
    with pytest.raises(RuntimeError, match="pack_weight: no kernel for dtype"):
        pack(weight.bfloat16(), 1)
    with pytest.raises(RuntimeError, match="not both divisible by groups=5"):
        pack(weight, 5)


def network() -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, stride=2), nn.BatchNorm2d(48), nn.ReLU()]
    layers += [nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.Conv2d(48, 64, 1), nn.Conv2d(64, 64, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2)).to(memory_format=torch.channels_last).eval()


def packed_of(model: nn.Module) -> list[str]:
    """The layers whose panels are kept now."""
    kept = {name.removesuffix(".weight"): packing._weights.get(weight) for name, weight in model.named_parameters()}
    return [name for name, of in kept.items() if of is not None and of.panels is not None]


def converted(**options: Any) -> tuple[Any, nn.Module, Tensor]:
    """A packed model, the same of torch.nn, and pictures."""
    model = torchconv.convert(network(), pack_weights=True, **options)
    pictures = filled((2, 3, 20, 22), torch.float32).contiguous(memory_format=torch.channels_last)
    return model, network(), pictures


def check(model: nn.Module, plain: nn.Module, pictures: Tensor) -> None:
    with torch.no_grad():
        assert_close(model(pictures), plain(pictures), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fuse", [False, True])
def test_a_converted_model_packs_in_its_second_call(fuse: bool) -> None:
    model, plain, pictures = converted(fuse=fuse)
    check(model, plain, pictures)
    assert packed_of(model) == []
    for _ in range(3):
        check(model, plain, pictures)
        assert packed_of(model) == ["0", "2", "6", "7"]  # but for the depthwise one, which has no panels
    with torch.inference_mode():
        assert_close(model(pictures), plain(pictures), rtol=1e-4, atol=1e-4)
    torchconv.revert(model)
    check(model, plain, pictures)
    assert packed_of(model) == []
    assert not any(weight in packing._weights for weight in model.parameters())


def changed_in_place(model: Any) -> None:
    with torch.no_grad():
        model[2].weight.mul_(1.5)
        model[7].weight[3].zero_()


def stepped(model: Any) -> None:
    optimizer = torch.optim.SGD([model[2].weight, model[7].weight], lr=0.5)
    for weight in (model[2].weight, model[7].weight):
        weight.grad = torch.ones_like(weight) * 0.01
    optimizer.step()


def loaded(model: Any) -> None:
    model.load_state_dict({name: 0.5 * value for name, value in model.state_dict().items()})


def exchanged(model: Any) -> None:
    model[2].weight = nn.Parameter(2 * model[2].weight.detach())


def set_data(model: Any) -> None:
    model[2].weight.data = 2 * model[2].weight.data


def cut(model: Any) -> None:
    model[7].weight.data = model[7].weight.data[:, :, :2, 1:]  # a kernel of 2x2, where the other lay


def turned(model: Any) -> None:
    model[7].weight.data = model[7].weight.data.mT


def rounded(model: Any) -> None:
    model.bfloat16().float()


def to_other_format(model: Any) -> None:
    model.to(memory_format=torch.contiguous_format)


CHANGES = [changed_in_place, stepped, loaded, exchanged, set_data, cut, turned, rounded, to_other_format]


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_packed_anew(change: Any, fuse: bool) -> None:
    model, plain, pictures = converted(fuse=fuse)
    for _ in range(2):
        check(model, plain, pictures)
    for _ in range(2):
        change(model)
        change(plain)
        for _ in range(3):
            check(model, plain, pictures)


def test_training_packs_nothing() -> None:
    model, plain, pictures = converted()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, plain)]
    for _ in range(3):
        for each, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            each(pictures).square().mean().backward()
            optimizer.step()
        assert packed_of(model) == []
    check(model, plain, pictures)


def test_gradients_through_packed_layers() -> None:
    model, plain, pictures = converted(fuse=True)
    for _ in range(3):
        gradients = []
        for each in (model, plain):
            x = pictures.clone().requires_grad_()
            gradients.append(torch.autograd.grad(each(x).sin().sum(), [x, *each.parameters()]))
        assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)
    assert packed_of(model)


def test_folded_weights_are_packed_in_the_place_of_their_own() -> None:
    model, plain, pictures = converted(fuse=True, fold_batch_norm=True)
    for _ in range(4):
        check(model, plain, pictures)
    assert packed_of(model) == ["0", "6", "7"]
    folded = model[2]._fusion._folded
    assert packing._weights[folded.weight].panels is not None
    with torch.no_grad():
        for each in (model, plain):
            each[3].running_var.mul_(4)
    for _ in range(3):
        check(model, plain, pictures)


def test_a_copy_is_not_packed_and_a_model_that_is_gone_leaves_nothing() -> None:
    gc.collect()
    before = len(packing._weights)
    model, plain, pictures = converted()
    check(model, plain, pictures)
    check(model, plain, pictures)
    copy = deepcopy(model)
    check(copy, plain, pictures)
    check(copy, plain, pictures)
    assert packed_of(copy) == []
    del model
    gc.collect()
    assert len(packing._weights) == before


def test_another_instruction_set_packs_anew() -> None:
    model, plain, pictures = converted()
    before = str(ops.isa())
    try:
        for name in [*ops.available_isas(), before]:
            ops.set_isa(name)
            assert packed_of(model) == []
            for _ in range(3):
                check(model, plain, pictures)
            assert packed_of(model)
    finally:
        ops.set_isa(before)


def test_compiled_and_transformed_models_do_without() -> None:
    model, plain, pictures = converted()
    for _ in range(2):
        check(model, plain, pictures)
    with torch.no_grad():
        each = torch.func.vmap(lambda x: model(x[None])[0])(pictures)
        assert_close(each, plain(pictures), rtol=1e-4, atol=1e-4)
        program = torch.export.export(model, (pictures,))
        assert_close(program.module()(pictures), plain(pictures), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # the tracer has some for each size that it meets
def test_traced_models_follow_a_change() -> None:
    model, plain, pictures = converted()
    for _ in range(2):
        check(model, plain, pictures)
    with torch.no_grad():
        traces = [torch.jit.trace(model, (pictures,)), make_fx(model)(pictures)]
    changed_in_place(model)
    changed_in_place(plain)
    with torch.no_grad():
        for trace in traces:
            assert_close(trace(pictures), plain(pictures), rtol=1e-4, atol=1e-4)


def test_a_weight_of_two_layers_with_different_groups() -> None:
    one, two = nn.Conv2d(8, 12, 3), nn.Conv2d(16, 12, 3, groups=2)
    two.weight = one.weight
    model = torchconv.convert(nn.ModuleList([one, two]), pack_weights=True)
    inputs = [filled((1, channels, 7, 7), torch.float32) for channels in (8, 16)]
    with torch.no_grad():
        for _ in range(3):
            for layer, x in zip(model, inputs, strict=True):
                expected = nn.functional.conv2d(x, layer.weight, layer.bias, groups=layer.groups)
                assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_other_types_do_without() -> None:
    model, plain, pictures = converted()
    for each in (model, plain):
        each.bfloat16()
    with torch.no_grad():
        for _ in range(3):
            output, expected = model(pictures.bfloat16()), plain(pictures.bfloat16())
            assert_close(output, expected, rtol=5e-2, atol=5e-2)
    assert packed_of(model) == []


def test_panels_take_as_much_memory_as_the_weights() -> None:
    layer = torchconv.convert(nn.Conv2d(64, 128, 3), pack_weights=True)
    picture = filled((1, 64, 9, 9), torch.float32)
    with torch.no_grad():
        layer(picture)
        layer(picture)
    kept = packing._weights[layer.weight]
    assert kept.panels.nbytes == layer.weight.nbytes
    assert prod(kept.panels.shape) == layer.weight.numel()
