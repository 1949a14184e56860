"""Fused models against the models that they were: the same numbers, gradients and state, and all of it undone."""

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from networks import assert_same_bits, gradients
from test_convert import TorchKernels
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import torchconv
from torchconv import convert, revert, unconvertible


def images(*size: int) -> Tensor:
    return torch.randn(size or (2, 3, 12, 11), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def names(model: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in model.modules() if not list(layer.children())]


def memories(model: nn.Module) -> list[tuple[type, dict[str, Any]]]:
    return [(type(layer), dict(vars(layer))) for layer in model.modules()]


def assert_fuses_and_reverts(model: nn.Module, input: Tensor, expected_counts: dict[str, int], **options: Any) -> None:
    """Equal output and gradients, of the input and of every parameter, and after `revert` the same objects and bits."""
    expected, memory, state = gradients(model, input), memories(model), copy.deepcopy(model.state_dict())
    modules = list(model.modules())
    assert convert(model, fuse=True, **options) is model
    counts = Counter(name for name in names(model) if name.startswith(("Fused", "Folded", "ConvReLU")))
    assert counts == expected_counts
    assert list(model.modules()) == modules
    assert list(model.state_dict()) == list(state)
    assert unconvertible(model) == {}
    assert_close(gradients(model, input), expected)

    fused = memories(model)
    convert(convert(model, fuse=True, **options))
    assert [kind for kind, _ in memories(model)] == [kind for kind, _ in fused]

    revert(model)
    for (kind, attributes), (kind_before, before) in zip(memories(model), memory, strict=True):
        assert kind is kind_before
        assert attributes.keys() == before.keys()
        assert all(attributes[name] is before[name] for name in before)
    assert_same_bits(list(model.state_dict().values()), list(state.values()))
    assert_same_bits(gradients(model, input), expected)


def settled(model: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics and factors of batch norms that are no identity."""
    generator = torch.Generator().manual_seed(2)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low in ((layer.running_mean, -0.3), (layer.running_var, 0.5), (layer.bias, -0.2)):
                tensor.data.uniform_(low, 1.5, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
    return model.double().eval()


VGG16 = {"ConvReLU2d": 8, "ConvReLUPool2d": 5, "FusedReLU": 13, "FusedMaxPool2d": 5}
VGG16_BN = {"FoldedConvReLU2d": 8, "FoldedConvReLUPool2d": 5, "FusedBatchNorm2d": 13}
VGG16_BN |= {"FusedReLU": 13, "FusedMaxPool2d": 5}
# In a resnet batch norms stand between, and each block calls its ReLU twice: only the stem is one piece.
RESNET = {"FoldedConv2d": 19, "FoldedConvReLUPool2d": 1, "FusedBatchNorm2d": 20, "FusedReLU": 1, "FusedMaxPool2d": 1}
SQUEEZENET = {"ConvReLU2d": 25, "ConvReLUPool2d": 1, "FusedReLU": 26, "FusedMaxPool2d": 1}
ALEXNET = {"ConvReLU2d": 2, "ConvReLUPool2d": 3, "FusedReLU": 5, "FusedMaxPool2d": 3}
MOBILENET = {"FoldedConvReLU2d": 35, "FoldedConv2d": 17, "FusedBatchNorm2d": 52, "FusedReLU6": 35}


@pytest.mark.parametrize(
    ("name", "fold_batch_norm", "counts"),
    [
        pytest.param("vgg16", False, VGG16, marks=pytest.mark.slow),
        pytest.param("vgg16_bn", False, {}, marks=pytest.mark.slow),
        pytest.param("vgg16_bn", True, VGG16_BN, marks=pytest.mark.slow),
        pytest.param("resnet18", False, {}, marks=pytest.mark.slow),
        pytest.param("resnet18", True, RESNET, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", True, MOBILENET, marks=pytest.mark.slow),
        ("squeezenet1_1", False, SQUEEZENET),
        ("alexnet", False, ALEXNET),
    ],
)
def test_networks_of_torchvision_keep_outputs_and_gradients(
    torchvision_models: ModuleType, name: str, fold_batch_norm: bool, counts: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = torchvision_models.get_model(name, weights=None)
    if name.startswith(("vgg", "alexnet")):  # nine tenths of the weights are there
        model.classifier = nn.LazyLinear(3)
        model(torch.zeros(1, 3, 64, 64))
    assert_fuses_and_reverts(settled(model), images(1, 3, 64, 64), counts, fold_batch_norm=fold_batch_norm)


def nested() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"), nn.ReLU())
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Sequential(block, nn.MaxPool2d(3, 2, 1, ceil_mode=True)), nn.Conv2d(5, 4, (1, 2), groups=1)),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    ).double()


NESTED = ["ConvReLU2d", "FusedReLU", "ConvReLUPool2d", "FusedReLU", "FusedMaxPool2d"]
NESTED += ["ConvReLU2d", "FusedReLU", "Conv2d"]


def batch_normed(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4, eps=0.1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5, **options),
    )
    return model.double()


def test_nested_sequentials_are_fused_across_their_borders() -> None:
    model = nested()
    convert(model, fuse=True, memory_format=torch.channels_last)
    assert names(model) == NESTED
    assert model[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert_fuses_and_reverts(nested(), images(), dict(Counter(name for name in NESTED if name != "Conv2d")))


def test_a_fused_model_calls_no_kernel_of_torch() -> None:
    model = convert(nested(), fuse=True)
    with TorchKernels() as kernels:
        gradients(model, images())
    assert kernels.seen == set()


def test_a_fused_model_is_copied_pickled_saved_and_reverted_apart() -> None:
    model = convert(settled(nn.Sequential(nested(), nn.BatchNorm2d(2))), fuse=True, fold_batch_norm=True)
    expected, file = gradients(model, images(2, 3, 12, 11)), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert names(other) == names(model)
        assert_same_bits(gradients(other, images()), expected)
        revert(other)
        assert not any(name.startswith(("Fused", "Folded", "ConvReLU")) for name in names(other))
        assert names(other) != names(model)
        assert_close(gradients(other, images()), expected)
    fresh = settled(nn.Sequential(nested(), nn.BatchNorm2d(2)))
    fresh.load_state_dict(model.state_dict())
    assert_close(gradients(fresh, images()), expected)


def test_reverting_one_of_the_layers_reverts_those_fused_with_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).double()
    expected = gradients(model, images())
    for layer in model:
        revert(convert(model, fuse=True)[0])
        assert names(model) == ["Conv2d", "ReLU", "MaxPool2d"]
        assert names(convert(model, fuse=True)) == ["ConvReLUPool2d", "FusedReLU", "FusedMaxPool2d"]
        revert(layer)
        assert names(model) == ["Conv2d", "ReLU", "MaxPool2d"]
        assert_close(gradients(model, images()), expected)


def test_parametrizations_stay() -> None:
    model = nested()
    weight_norm(model[0][0])
    expected, keys = gradients(model, images()), list(model.state_dict())
    convert(model, fuse=True)
    assert isinstance(model[0][0], torchconv.ConvReLU2d)
    assert parametrize.is_parametrized(model[0][0], "weight")
    assert list(model.state_dict()) == keys
    for each in (model, copy.deepcopy(model)):
        assert_close(gradients(each, images()), expected)
    assert not isinstance(revert(model)[0][0], torchconv.Conv2d)
    assert_same_bits(gradients(model, images()), expected)


def test_what_is_fused_already_stays_so_and_more_may_come() -> None:
    model = nn.Sequential(*nested()[0], nn.Identity(), nn.Conv2d(6, 4, 1), *batch_normed()[1:3]).eval()
    convert(model, fuse=True)
    assert names(model)[3:] == ["Conv2d", "BatchNorm2d", "ReLU"]
    convert(model, fuse=True, fold_batch_norm=True)
    expected = ["ConvReLU2d", "FusedReLU", "Identity", "FoldedConvReLU2d", "FusedBatchNorm2d", "FusedReLU"]
    assert names(model) == expected


def test_an_output_may_be_changed_in_place_as_before() -> None:
    class InPlace(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).mul_(2)

    model = InPlace(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).double()
    assert_fuses_and_reverts(model, images(), {"ConvReLUPool2d": 1, "FusedReLU": 1, "FusedMaxPool2d": 1})


@pytest.mark.parametrize("options", [{}, {"affine": False}], ids=["affine", "plain"])
def test_a_batch_norm_is_folded_whenever_it_is_in_evaluation_mode(options: dict[str, Any]) -> None:
    model = batch_normed(**options)
    fused = convert(copy.deepcopy(model), fuse=True, fold_batch_norm=True)
    assert names(fused)[0] == "FoldedConvReLUPool2d"
    assert names(fused)[4] == "FoldedConv2d"
    for step in range(4):  # the running statistics move in training, and evaluation follows
        for each in (model, fused):
            each.train(step % 2 == 0)
        assert_close(gradients(fused, images()), gradients(model, images()))
        assert_close(list(fused.buffers()), list(model.buffers()))


@pytest.mark.parametrize("frozen", [True, False])
def test_folded_weights_follow_every_change_of_the_parameters(frozen: bool) -> None:
    model = settled(batch_normed()).requires_grad_(not frozen)
    fused = convert(copy.deepcopy(model), fuse=True, fold_batch_norm=True)

    def double(each: nn.Module) -> None:
        each[0].weight.mul_(2)

    def assign(each: nn.Module) -> None:
        each[4].bias = nn.Parameter(torch.ones_like(each[4].bias), requires_grad=not frozen)

    def shift(each: nn.Module) -> None:
        each[1].running_mean += 1

    def exchange(each: nn.Module) -> None:
        each[5].weight.data = torch.full_like(each[5].weight, 3.0)

    def load(each: nn.Module) -> None:
        each.load_state_dict(settled(batch_normed()).state_dict())

    changes: list[Callable[[nn.Module], None]] = [lambda each: None, double, assign, shift, exchange, load]
    for change in changes:
        with torch.no_grad():
            for each in (model, fused):
                change(each)
        for mode in (torch.inference_mode(), torch.no_grad()):
            with mode:
                torch.testing.assert_close(fused(images()), model(images()))
        for input in (images().requires_grad_(), images()):
            torch.testing.assert_close(fused(input), model(input))
    if frozen:
        fused(images().requires_grad_()).sum().backward()
        weight, _ = fused[0]._fusion.fold(fused[0].weight, None, fused[1])
        assert weight is fused[0]._fusion.fold(fused[0].weight, None, fused[1])[0]


def test_a_folded_model_refuses_what_the_batch_norm_refuses() -> None:
    model = convert(batch_normed().eval(), fuse=True, fold_batch_norm=True)
    with pytest.raises(ValueError, match="expected 4D input"):
        model(images(3, 12, 11))


def test_a_batch_norm_without_statistics_is_not_folded() -> None:
    model = batch_normed(track_running_stats=False)
    assert names(convert(model, fuse=True, fold_batch_norm=True))[4:] == ["Conv2d", "BatchNorm2d"]


def test_folding_alone_is_an_error_that_changes_nothing() -> None:
    model = batch_normed()
    with pytest.raises(ValueError, match="convert: fold_batch_norm is True, which expects fuse=True"):
        convert(model, fold_batch_norm=True)
    assert type(model[0]) is nn.Conv2d


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
def test_a_folded_model_compiles_and_is_transformed() -> None:
    model = settled(batch_normed())
    fused = convert(copy.deepcopy(model), fuse=True, fold_batch_norm=True)
    parameters = dict(model.named_parameters())
    expected = torch.func.grad(lambda p: torch.func.functional_call(model, p, (images(),)).sum())(parameters)
    actual = torch.func.grad(lambda p: torch.func.functional_call(fused, p, (images(),)).sum())(parameters)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_close(gradients(fused, images(), compiled), gradients(model, images()))


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and warns of each size that it keeps
def test_a_folded_model_is_traced_with_its_folding() -> None:
    """torch.jit.trace checks that a second trace is the same, and what is kept by then must not be a constant of it."""
    fused = convert(settled(batch_normed()), fuse=True, fold_batch_norm=True)
    with torch.no_grad():
        expected = fused(images())
        traced = torch.jit.trace(fused, images())
        assert_close(traced(images()), expected)
        fused[0].weight.mul_(2)
        assert_close(traced(images()), fused(images()))


ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {"padding": 1},
    "strided": {"stride": (2, 1), "dilation": 2, "bias": False},
    "grouped": {"groups": 2, "padding": "same"},
    **{mode: {"padding": (1, 2), "padding_mode": mode} for mode in ("reflect", "replicate", "circular")},
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize(
    "pool", [None, {}, {"kernel_size": (3, 2), "stride": 1, "padding": 1, "dilation": 1, "ceil_mode": True}]
)
def test_the_fused_layers_compute_what_they_stand_for(arguments: dict[str, Any], pool: dict[str, Any] | None) -> None:
    conv = nn.Conv2d(4, 6, 3, dtype=torch.float64, **arguments)
    layers = [conv, nn.ReLU()]
    if pool is None:
        fused: nn.Module = torchconv.ConvReLU2d(4, 6, 3, dtype=torch.float64, **arguments)
    else:
        layers.append(nn.MaxPool2d(**{"kernel_size": 2, **pool}))
        given = {name if name == "ceil_mode" else f"pool_{name}": value for name, value in pool.items()}
        fused = torchconv.ConvReLUPool2d(4, 6, 3, dtype=torch.float64, **arguments, **given)
    fused.load_state_dict(conv.state_dict())
    input = images(2, 4, 9, 8)
    assert_close(gradients(fused, input), gradients(nn.Sequential(*layers), input))


def test_the_fused_layers_say_what_they_do_and_stay_when_reverted() -> None:
    model = nn.Sequential(torchconv.ConvReLU2d(3, 4, 3), torchconv.ConvReLUPool2d(4, 4, 3, pool_kernel_size=(2, 3)))
    text = repr(model)
    assert "ConvReLU2d(3, 4, kernel_size=(3, 3), stride=(1, 1))" in text
    expected = "pool_kernel_size=(2, 3), pool_stride=(2, 3), pool_padding=0, pool_dilation=1, ceil_mode=False)"
    assert expected in text
    assert repr(revert(convert(model, fuse=True))) == text


def test_a_first_layer_is_computed_again_where_that_is_cheap() -> None:
    model = torchconv.models.vgg11(weights=None, num_classes=4).features[:8]
    deep = torchconv.models.vgg16(weights=None, num_classes=4).features[:10]
    before = torchconv.inspect.memory(convert(copy.deepcopy(deep), fuse=False), (2, 3, 32, 32)).saved
    convert(model, fuse=True)
    convert(deep, fuse=True)
    marked = [[bool(getattr(layer, "recompute", False)) for layer in each] for each in (model, deep)]
    assert not any(marked[0])  # pooled, and as dear as a sixth of the layer behind
    assert marked[1] == [True] + [False] * 9
    first_output = 2 * 64 * 32 * 32 * 4
    saved = torchconv.inspect.memory(deep, (2, 3, 32, 32)).saved
    deep[0].recompute = False
    assert torchconv.inspect.memory(deep, (2, 3, 32, 32)).saved - saved == first_output
    assert saved + first_output < before
    deep[0].recompute = True
    assert not hasattr(revert(deep)[0], "recompute")
