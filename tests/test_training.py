"""What people do to models in training, done to torchconv's layers and to torch.nn's: the same numbers and types."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from grid import relative_error
from networks import (
    assert_equal,
    assert_same_bits,
    every_layer,
    gradients,
    images,
    lenet,
    network,
    single,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, prune
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchconv


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@every_layer
def test_first_and_second_derivatives_are_those_of_torch(name: str) -> None:
    def derivatives(library: Any) -> list[Tensor]:
        layer = single(name, library)
        leaves = [images().requires_grad_(), *layer.parameters()]
        first = torch.autograd.grad(layer(leaves[0]).sin().sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.cos().sum() for g in first), leaves)]

    assert_equal(derivatives)


def test_second_derivatives_of_a_network_are_those_of_torch() -> None:
    def penalised(library: Any) -> list[Tensor]:
        model, x = network(library), images().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), list(model.parameters())))

    assert_equal(penalised)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_training_run_ends_where_that_of_torch_does(memory_format: torch.memory_format) -> None:
    def trained(library: Any) -> list[Tensor]:
        model = network(library).to(memory_format=memory_format)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for step in range(3):
            for part in images(4, 4, 12, 10).roll(step, 0).to(memory_format=memory_format).chunk(2):
                F.cross_entropy(model(part), torch.tensor([0, 2])).backward()  # gradients add up
            clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        return list(model.parameters())

    assert_equal(trained)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_keeps_every_bit(use_reentrant: bool) -> None:
    model = network(torchconv)
    expected = gradients(model, images())
    assert_same_bits(gradients(model, images(), lambda x: checkpoint(model, x, use_reentrant=use_reentrant)), expected)


def test_deterministic_algorithms_keep_every_bit(request: pytest.FixtureRequest) -> None:
    model = network(torchconv)
    expected = gradients(model, images())
    request.getfixturevalue("deterministic")  # which also fills new memory with NaN
    assert_same_bits(gradients(model, images()), expected)


def test_per_sample_gradients_of_lenet_are_those_of_a_loop() -> None:
    model = lenet(torchconv).double()
    parameters = dict(model.named_parameters())
    digits, classes = images(8, 1, 28, 28), torch.arange(8)

    def loss(parameters: dict[str, Tensor], digit: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (digit[None],)), label[None])

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # vmap warns where it falls back to a loop
        per_sample = vmap(grad(loss), (None, 0, 0))(parameters, digits, classes)
    for i in range(len(digits)):
        F.cross_entropy(model(digits[i : i + 1]), classes[i : i + 1]).backward()
        for name, parameter in parameters.items():
            assert_close(per_sample[name][i], parameter.grad)
        model.zero_grad()


def test_hooks_fire_as_those_of_torch_do() -> None:
    def fired(library: Any) -> list[tuple[Any, ...]]:
        model, seen = network(library), []

        def note(kind: str, name: str) -> Callable[..., None]:
            def shapes(value: Any) -> Any:
                return tuple(value.shape) if isinstance(value, Tensor) else [shapes(v) for v in value or ()]

            return lambda _, *values: seen.append((kind, name, [shapes(value) for value in values]))

        for name, layer in model.named_children():
            layer.register_forward_pre_hook(note("before", name))
            layer.register_forward_hook(note("after", name))
            layer.register_full_backward_pre_hook(note("before backward", name))
            layer.register_full_backward_hook(note("after backward", name))
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda g, name=name: seen.append(("gradient", name)))
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: seen.append(("added", name)))
        gradients(model, images())
        return seen

    ours, theirs = fired(torchconv), fired(nn)
    assert [event for event in ours if len(event) > 2] == [event for event in theirs if len(event) > 2]
    assert sorted(map(str, ours)) == sorted(map(str, theirs))  # which of a layer's gradients is first is autograd's own
    assert {kind for kind, *_ in ours} == {"before", "after", "before backward", "after backward", "gradient", "added"}


@pytest.mark.parametrize(
    "change",
    [
        weight_norm,
        spectral_norm,
        orthogonal,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.ln_structured(layer, "weight", 0.25, n=2, dim=0),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "pruned weights", "pruned channels"],
)
def test_reparametrized_layers_learn_as_those_of_torch(change: Callable[[nn.Module], nn.Module]) -> None:
    def trained(library: Any) -> list[Tensor]:
        model = network(library)
        for layer in model:
            if "Conv" in type(layer).__name__:
                change(layer)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            model(images()).square().mean().backward()
            optimizer.step()
        return [*model.state_dict().values(), model(images())]

    assert_equal(trained)


def test_a_moving_average_of_a_model_is_that_of_torch() -> None:
    def averaged(library: Any) -> list[Tensor]:
        model = network(library)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            gradients(model, images())
            optimizer.step()
            average.update_parameters(model)
        assert type(average.module[0]) is type(model[0])
        return [*average.parameters(), average(images())]

    assert_equal(averaged)


def save_whole(model: nn.Module) -> nn.Module:
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


def save_state(model: nn.Module) -> nn.Module:
    torch.save(model.state_dict(), file := io.BytesIO())
    file.seek(0)
    other = network(torchconv).apply(lambda layer: [p.data.zero_() for p in layer.parameters()])
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), save_whole, save_state, nn.Module.share_memory],
    ids=["deepcopy", "pickle", "save the module", "save the state", "share memory"],
)
def test_a_copy_trains_to_every_bit(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = network(torchconv)
    expected = gradients(model, images())
    other = duplicate(model)
    assert [type(layer) for layer in other.modules()] == [type(layer) for layer in model.modules()]
    assert (other is model) == all(p.is_shared() for p in other.parameters())
    assert_same_bits(gradients(other, images()), expected)


@pytest.mark.parametrize(("source", "target"), [(torchconv, nn), (nn, torchconv)], ids=["to torch", "from torch"])
def test_a_state_dict_passes_between_torchconv_and_torch(source: Any, target: Any) -> None:
    model, other = network(source), network(target).float()
    assert list(model.state_dict()) == list(other.state_dict())
    other.double().apply(lambda layer: [p.data.zero_() for p in layer.parameters()])
    other.load_state_dict(model.state_dict())
    assert_close(gradients(other, images()), gradients(model, images()))


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_module_moves_to_another_dtype(name: str, dtype: torch.dtype) -> None:
    layer = single(name, torchconv).to(dtype)
    exact = copy.deepcopy(layer).double()
    actual, expected = gradients(layer, images(dtype=dtype)), gradients(exact, images(dtype=dtype).double())
    assert {t.dtype for t in actual} == {dtype}
    for ours, theirs in zip(actual, expected, strict=True):
        assert relative_error(ours, theirs) <= 8 * torch.finfo(dtype).eps  # a few roundings one after the other


@every_layer
def test_autocast_gives_the_types_that_torch_does(name: str) -> None:
    def types(library: Any) -> list[torch.dtype]:
        layer = single(name, library).float()
        seen = []
        for dtype in (torch.float32, torch.bfloat16):
            x = images(dtype=dtype).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                output = layer(x)
            output.float().square().mean().backward()
            seen += [output.dtype, x.grad.dtype, *(p.grad.dtype for p in layer.parameters())]
        return seen

    assert types(torchconv) == types(nn)


def test_autocast_trains_as_precisely_as_torch_does() -> None:
    digits, labels = images(8, 1, 28, 28), torch.arange(8)

    def step(library: Any, dtype: torch.dtype, enabled: bool) -> list[Tensor]:
        model = lenet(library).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled):
            loss = F.cross_entropy(model(digits.to(dtype)), labels)
        return list(torch.autograd.grad(loss, list(model.parameters())))

    exact = step(nn, torch.float64, False)
    ours, theirs = (step(library, torch.float32, True) for library in (torchconv, nn))
    assert {g.dtype for g in ours} == {torch.float32}
    for actual, other, expected in zip(ours, theirs, exact, strict=True):
        assert relative_error(actual, expected) <= 1.5 * relative_error(other, expected)
