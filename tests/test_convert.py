"""Converted models against the models that they were: the same numbers, the same objects, and all of it undone."""

import copy
import io
import pickle
import re
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import torchconv
from torchconv.convert import _OURS, convert, enabled, revert, unconvertible


class OwnConv2d(nn.Conv2d):
    """As many libraries have one: padding that depends on the input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)))


class Derived(torchconv.Conv2d):
    pass


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)
    )


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def run(model: nn.Module, input: Tensor) -> dict[str, Tensor]:
    """The output and the gradient of every parameter."""
    model.zero_grad()
    output = model(input)
    output.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return {"output": output.detach(), **gradients}


class TorchKernels(TorchDispatchMode):
    """Records which of torch's own convolution, pooling and folding kernels run, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and re.search("conv|pool|im2col|col2im", func.__name__):
            self.seen.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("algorithm", ["im2col", "auto"])
@pytest.mark.parametrize("way", ["convert", "enabled"])
def test_resnet18_keeps_its_output_and_gradients(
    torchvision_models: ModuleType, way: str, algorithm: str, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    model = torchvision_models.resnet18(weights=None).to(dtype)
    input = torch.randn(2, 3, 64, 64, dtype=dtype)
    expected = run(model, input)
    with torchconv.algorithm(algorithm), TorchKernels() as kernels, enabled() if way == "enabled" else nullcontext():
        actual = run(convert(model) if way == "convert" else model, input)
    assert kernels.seen == set()
    assert actual.keys() == expected.keys()
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert max(errors.values()) <= tolerance, errors


def test_resnet18_reverts_to_the_same_classes_and_bits(torchvision_models: ModuleType) -> None:
    model = torchvision_models.resnet18(weights=None).eval()
    input = torch.randn(1, 3, 64, 64)
    classes = [type(layer) for layer in model.modules()]
    with torch.no_grad():
        expected = model(input)
        assert [type(layer) for layer in convert(model).modules()] != classes
        assert revert(model) is model
        assert [type(layer) for layer in model.modules()] == classes
        assert torch.equal(model(input), expected)


@pytest.mark.parametrize("kind", list(_OURS), ids=lambda kind: kind.__name__)
def test_every_layer_of_torchconv_is_swapped_and_back(kind: type[nn.Module]) -> None:
    arguments = {"Fold": (4, 2), "LPPool": (2.0, 3), "Conv": (2, 2, 3), "LazyLinear": (2,), "Linear": (2, 2)}
    layer = kind(*next((given for name, given in arguments.items() if name in kind.__name__), (2,)))
    before = dict(vars(layer))
    assert convert(layer) is layer
    assert type(layer) is getattr(torchconv.nn, kind.__name__)
    assert vars(layer).keys() == before.keys()
    assert all(vars(layer)[name] is before[name] for name in before)
    assert type(revert(layer)) is kind


def test_convert_keeps_objects_modes_and_keys() -> None:
    model = small_model()
    model[0].train(False)
    model[0].weight.requires_grad_(False)
    model[3].register_buffer("extra", torch.ones(1))
    model[3].note = "mine"
    layers, parameters = list(model.modules()), dict(model.named_parameters())
    keys, text = list(model.state_dict()), repr(model)
    assert convert(convert(model)) is model
    assert all(now is before for now, before in zip(model.modules(), layers, strict=True))
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert list(model.state_dict()) == keys
    assert repr(model) == text
    assert not model[0].training
    assert model[3].training
    assert not model[0].weight.requires_grad
    assert model[3].note == "mine"
    assert unconvertible(model) == {}
    assert [type(layer) for layer in model] == [torchconv.Conv2d, nn.ReLU, torchconv.MaxPool2d, torchconv.Conv2d]


def test_convert_keeps_hooks() -> None:
    model, fired = small_model(), []
    model[0].register_forward_pre_hook(lambda *_: fired.append("before"))
    model[0].register_forward_hook(lambda *_: fired.append("after"))
    model[3].register_full_backward_hook(lambda *_: fired.append("backward"))
    handle = model[2].register_forward_hook(lambda *_: fired.append("pool"))
    convert(model)(images()).sum().backward()
    assert fired == ["before", "after", "pool", "backward"]
    handle.remove()
    model(images())
    assert fired[4:] == ["before", "after"]


def test_a_memory_format_of_the_parameters_becomes_that_of_the_activations() -> None:
    model = nn.Sequential(nn.Conv2d(3, 40, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(40, 5, 1))
    weight, input = model[0].weight, torch.rand(2, 3, 9, 8)
    expected = model(input)
    assert torchconv.convert(model, memory_format=torch.channels_last) is model
    assert model[0].weight is weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    output = model(input)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected)


def test_a_shared_layer_stays_one_layer() -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer))
    expected = model(images())
    convert(model)
    assert model[0] is model[2][0] is layer
    assert type(layer) is torchconv.Conv2d
    torch.testing.assert_close(model(images()), expected)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_parametrizations_stay(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = small_model().double()
    plain = copy.deepcopy(model)
    norm(model[0])
    sibling = copy.deepcopy(model)  # its layer shares the class that torch made for the parametrized one
    model.eval(), sibling.eval()  # spectral_norm takes a step at every call in training
    expected = run(model, images(torch.float64))
    keys = list(model.state_dict())
    convert(model)
    assert isinstance(model[0], torchconv.Conv2d)
    assert parametrize.is_parametrized(model[0], "weight")
    assert list(model.state_dict()) == keys
    assert not isinstance(sibling[0], torchconv.Conv2d)
    for each in (model, copy.deepcopy(model)):
        actual = run(each, images(torch.float64))
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name])
    revert(model)
    assert not isinstance(model[0], torchconv.Conv2d)
    assert torch.equal(model(images(torch.float64)), expected["output"])
    convert(model)
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is torchconv.Conv2d
    assert type(revert(model)[0]) is type(plain[0])


def test_a_converted_model_is_copied_pickled_and_saved() -> None:
    model = convert(small_model())
    expected = model(images())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert [type(layer) for layer in other] == [type(layer) for layer in model]
        assert torch.equal(other(images()), expected)
    fresh = small_model()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(images()), expected)


def test_what_is_left_is_named_with_the_reason() -> None:
    patched = nn.Conv2d(3, 3, 3)
    patched.forward = lambda input: input
    model = nn.ModuleDict(
        {
            "plain": nn.Conv2d(3, 3, 3),
            "own": OwnConv2d(3, 3, 3),
            "normed": weight_norm(OwnConv2d(3, 3, 3)),
            "derived": Derived(3, 3, 3),
            "missing": nn.FractionalMaxPool2d(2, 4),
            "patched": patched,
            "linear": nn.Linear(2, 2),
            "bilinear": nn.Bilinear(2, 2, 2),
        }
    )
    classes = {name: type(layer) for name, layer in model.items()}
    expected = {
        "own": "tests.test_convert.OwnConv2d is a class derived from torch.nn.Conv2d",
        "normed": "tests.test_convert.OwnConv2d is a class derived from torch.nn.Conv2d",
        "missing": "torchconv has no FractionalMaxPool2d",
        "patched": "its forward was replaced on the object",
    }
    expected = {name: reason.replace("tests.test_convert", __name__) for name, reason in expected.items()}
    assert unconvertible(model) == expected
    convert(model)
    assert unconvertible(model) == expected
    assert {name for name, layer in model.items() if type(layer) is not classes[name]} == {"plain", "linear"}
    revert(model)
    assert {name: type(layer) for name, layer in model.items()} == classes


def test_a_lazy_layer_is_swapped_before_it_has_a_size_and_after() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyConv2d(3, 3))
    layer = model[0]
    assert type(convert(model)[0]) is torchconv.LazyConv2d
    assert unconvertible(model) == {}
    assert type(revert(model)[0]) is nn.LazyConv2d
    output = convert(model)(images())
    assert model[0] is layer
    assert type(layer) is torchconv.Conv2d
    assert layer.in_channels == 3
    assert type(revert(model)[0]) is nn.Conv2d
    torch.testing.assert_close(model(images()), output)


@pytest.mark.parametrize("name", [f"Lazy{kind}{rank}d" for kind in ("Conv", "ConvTranspose") for rank in (1, 2, 3)])
def test_lazy_layers_become_what_their_names_say_whoever_made_them(name: str) -> None:
    sizes = [5, 6, 7][: int(name[-2])]
    for library, change, becomes in (
        (nn, convert, torchconv),
        (nn, revert, nn),
        (torchconv, convert, torchconv),
        (torchconv, revert, nn),
    ):
        layer = change(getattr(library, name)(4, 3))
        assert layer.has_uninitialized_params()
        assert layer(torch.ones(2, 3, *sizes)).shape[:2] == (2, 4)
        assert type(layer) is getattr(becomes, name.removeprefix("Lazy"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_layer_is_left() -> None:
    model = nn.Sequential(torch.jit.script(nn.Conv2d(3, 3, 3)), torch.jit.script(nn.ReLU()))
    assert unconvertible(convert(model)) == {"0": "compiled by TorchScript"}


@pytest.mark.parametrize("function", [convert, revert, unconvertible])
def test_what_is_no_module_is_a_type_error(function: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match=rf"{function.__name__}: model is dict, expected a torch.nn.Module"):
        function({})


def test_an_optimizer_keeps_working() -> None:
    model, twin = small_model(), small_model()
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (model, twin)]
    for step in range(3):
        if step == 1:
            convert(model)
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            run(m, images())
            optimizer.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


X, W = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(2)).double(), torch.linspace(-1, 1, 72).double()
CALLS = {
    "F.conv2d": lambda x: F.conv2d(x, W.view(2, 4, 3, 3), stride=2),
    "F.conv2d, groups": lambda x: F.conv2d(x, W.view(4, 2, 3, 3), padding="same", groups=2),
    "torch.conv2d": lambda x: torch.conv2d(x, weight=W.view(2, 4, 3, 3), padding=1),
    "F.max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "F.max_pool2d by name": lambda x: F.max_pool2d(input=x, kernel_size=(2, 3), ceil_mode=True),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "indices by position": lambda x: F.max_pool2d(x, 2, 1, 0, 1, True, True),
    "F.max_pool2d_with_indices": lambda x: F.max_pool2d_with_indices(x, 2),
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2, (), 1),
    "F.conv1d": lambda x: F.conv1d(x[0].transpose(0, 1), W.view(6, 4, 3)),
    "F.conv3d": lambda x: F.conv3d(x.unsqueeze(1), W.view(4, 1, 2, 3, 3), padding=1),
    "F.conv_transpose2d": lambda x: F.conv_transpose2d(x, W.view(4, 2, 3, 3), None, 2, 1, 1),
    "torch.conv_transpose1d": lambda x: torch.conv_transpose1d(x[0].transpose(0, 1), W.view(4, 6, 3), stride=2),
    "F.max_pool1d": lambda x: F.max_pool1d(x[0], 2, return_indices=True),
    "torch.max_pool1d": lambda x: torch.max_pool1d(x[0], 3, stride=2, padding=1),
    "torch.max_pool1d_with_indices": lambda x: torch.max_pool1d_with_indices(x[0], 2),
    "F.max_pool3d": lambda x: F.max_pool3d(x, 2, return_indices=True),
    "F.unfold": lambda x: F.unfold(x, 3, padding=1, stride=2),
    "F.fold": lambda x: F.fold(x.reshape(2, 4, 72), (9, 10), 2),
    "nn.Unfold": lambda x: nn.Unfold(3)(x),
    "nn.Fold": lambda x: nn.Fold((9, 10), 2)(x.reshape(2, 4, 72)),
    "F.conv_transpose1d": lambda x: F.conv_transpose1d(x[0].transpose(0, 1), W.view(4, 6, 3)[:, :, ::2], stride=2),
    "F.conv_transpose3d": lambda x: F.conv_transpose3d(x.unsqueeze(1), W.view(1, 4, 2, 3, 3), stride=2),
    "F.avg_pool1d": lambda x: F.avg_pool1d(x[0], 3, padding=1, count_include_pad=False),
    "torch.avg_pool1d": lambda x: torch.avg_pool1d(x[0], 3, 2),
    "F.avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1, True, False, 5),
    "F.avg_pool2d by name": lambda x: F.avg_pool2d(input=x, kernel_size=(2, 3), divisor_override=-2),
    "F.avg_pool3d": lambda x: F.avg_pool3d(x, 2, stride=1),
    "nn.AvgPool2d": lambda x: nn.AvgPool2d(2)(x),
    "F.adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x[0], 3),
    "torch.adaptive_avg_pool1d": lambda x: torch.adaptive_avg_pool1d(x[0], (3,)),
    "F.adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, None)),
    "F.adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x, (2, 3, 4)),
    "F.adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x[0], 3),
    "F.adaptive_max_pool1d, indices": lambda x: F.adaptive_max_pool1d(x[0], 3, True),
    "F.adaptive_max_pool1d_with_indices": lambda x: F.adaptive_max_pool1d_with_indices(x[0], 3),
    "torch.adaptive_max_pool1d": lambda x: torch.adaptive_max_pool1d(x[0], 3),
    "F.adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (3, None), return_indices=True),
    "F.adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(x, 2),
    "nn.AdaptiveMaxPool3d": lambda x: nn.AdaptiveMaxPool3d(2, return_indices=True)(x),
    "F.lp_pool1d": lambda x: F.lp_pool1d(x[0].abs() + 1, 3, 2),
    "F.lp_pool2d": lambda x: F.lp_pool2d(x, 2.0, (2, 3), ceil_mode=True),
    "F.lp_pool3d": lambda x: F.lp_pool3d(x, norm_type=float("inf"), kernel_size=2),
    "F.max_unpool1d": lambda x: F.max_unpool1d(*F.max_pool1d(x[0], 2, return_indices=True), 2),
    "F.max_unpool2d": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=X.shape),
    "F.max_unpool3d": lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2, output_size=X.shape[1:]),
    "F.local_response_norm": lambda x: F.local_response_norm(x, 3, 0.5),
}


def test_enabled_is_tried_with_every_function() -> None:
    # A linear layer as small as these is torch's own (test_linear.py).
    assert {f"F.{name}" for name in torchconv.functional.__all__ if hasattr(F, name)} - {"F.linear"} <= set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_enabled_computes_the_call_by_torchconv(name: str) -> None:
    def results() -> list[Tensor]:
        x = X.clone().requires_grad_()
        output = CALLS[name](x)
        outputs = list(output) if isinstance(output, tuple) else [output]
        return [*outputs, *torch.autograd.grad((outputs[0] ** 2).sum(), x, create_graph=True)]

    with TorchKernels() as kernels:
        expected = results()
    assert kernels.seen
    with TorchKernels() as kernels, enabled():
        actual = results()
    assert kernels.seen == set()
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def by_torchconv() -> bool:
    """Whether F.conv2d is torchconv's now."""
    with TorchKernels() as kernels:
        F.conv2d(X, W.view(2, 4, 3, 3))
    return not kernels.seen


def test_enabled_nests_and_restores() -> None:
    block = enabled()
    assert not by_torchconv()
    with block:
        assert by_torchconv()
        with enabled(), block:
            assert by_torchconv()
        assert by_torchconv()
    assert not by_torchconv()
    with pytest.raises(RuntimeError, match="conv2d: padding is 'none'"), block:
        F.conv2d(X, W.view(2, 4, 3, 3), padding="none")
    assert not by_torchconv()


def test_enabled_reaches_derived_classes_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(OwnConv2d(3, 4, 3), nn.MaxPool2d(2)).double()
    classes, expected = [type(layer) for layer in model], run(model, images(torch.float64))
    with TorchKernels() as kernels, enabled():
        actual = run(model, images(torch.float64))
    assert kernels.seen == set()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])
    assert [type(layer) for layer in model] == classes
    assert torch.equal(model(images(torch.float64)), expected["output"])


def test_the_backward_pass_may_come_after_the_block() -> None:
    model = small_model().double()
    expected = run(model, images(torch.float64))
    model.zero_grad()
    with enabled():
        loss = model(images(torch.float64)).square().mean()
    with TorchKernels() as kernels:
        loss.backward()
    assert kernels.seen == set()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_activation_checkpointing_computes_anew_by_torchconv_as_documented() -> None:
    model = small_model().double()
    expected = run(model, images(torch.float64))
    model.zero_grad()
    with TorchKernels() as kernels:
        output = checkpoint(
            model, images(torch.float64), use_reentrant=False, context_fn=lambda: (enabled(), enabled())
        )
        output.square().mean().backward()
    assert kernels.seen == set()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
