"""What may be fused is what nobody can tell from outside, whichever way through the model an input takes."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from networks import gradients
from torch import Tensor, nn
from torch.nn import functional as F

import torchconv
from torchconv import convert


class Block(nn.Module):
    """A convolution, a ReLU, a pooling and another ReLU, for the cases to connect."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.ReLU()
        self.pool, self.nothing = nn.MaxPool2d(2), nn.Identity()
        self.double()

    def forward(self, x: Tensor) -> Any:
        return self.pool(self.relu(self.conv(x)))


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def fused(model: nn.Module) -> list[str]:
    """The layers that are fused with what is before them, by name."""
    return [name for name, layer in model.named_modules() if type(layer).__name__.startswith("Fused")]


def flat(output: Any) -> Tensor:
    parts = output.values() if isinstance(output, dict) else output
    return output if isinstance(output, Tensor) else torch.cat([part.flatten() for part in parts])


def assert_fuses(model: nn.Module, expected: list[str]) -> None:
    """Just these layers, in training and in evaluation with the same results."""
    twin = convert(copy.deepcopy(model), fuse=True)
    assert fused(twin) == expected
    for training in (True, False):
        theirs, ours = (results(each.train(training)) for each in (model, twin))
        for before, after in zip(theirs, ours, strict=True):
            torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def results(model: nn.Module) -> list[Tensor]:
    return gradients(model, images(), lambda x: flat(model(x)))


def case(forward: Callable[..., Any]) -> nn.Module:
    return type("Case", (Block,), {"forward": forward})()


def returned(self: Any, x: Tensor) -> Any:
    y = self.conv(x)
    return {"conv": y, "relu": self.relu(y)}


def rectified_is_returned(self: Any, x: Tensor) -> Any:
    y = self.relu(self.conv(x))
    return y, self.pool(y)


def added(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.relu(y) + y


def shared_relu(self: Any, x: Tensor) -> Tensor:
    return self.relu(self.conv(x)) + self.relu(x)


def shared_conv(self: Any, x: Tensor) -> Tensor:
    return self.last(self.conv(self.relu(self.conv(x))))


def shared_pool(self: Any, x: Tensor) -> Tensor:
    return self.pool(self.pool(self.relu(self.conv(x))))


def function(self: Any, x: Tensor) -> Tensor:
    return self.pool(F.relu(self.conv(x))) + self.pool(torch.relu(x))


def called_forward(self: Any, x: Tensor) -> Tensor:
    return self.pool(self.relu.forward(self.conv(x)))


def pooled_first(self: Any, x: Tensor) -> Tensor:
    return self.relu(self.pool(self.conv(x)))


def between(self: Any, x: Tensor) -> Tensor:
    return self.pool(self.relu(self.conv(x) * 2))


def identity(self: Any, x: Tensor) -> Tensor:
    return self.pool(self.nothing(self.relu(self.conv(x))))


def other_relu_in_evaluation(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.relu(y) if self.training else self.last(y)


def relu_alone_in_evaluation(self: Any, x: Tensor) -> Tensor:
    return self.relu(self.conv(x) if self.training else x * self.conv.weight.sum() + self.conv.bias.sum())


def pooled_in_training(self: Any, x: Tensor) -> Tensor:
    y = self.relu(self.conv(x))
    return self.pool(y) if self.training else y


def validated(self: Any, x: Tensor) -> Tensor:
    if x.dim() != 4:
        raise ValueError(f"expected 4 dimensions, got {x.dim()}: {x.shape}")
    assert x.shape[1] == 3, "expected 3 channels"
    return self.pool(self.relu(self.conv(x)))


def branches_agree(self: Any, x: Tensor) -> Tensor:
    if x.shape[0] == 1:
        x = x * 2
    y = self.relu(self.conv(x))
    return self.pool(y) if y.shape[2] > 1 else y


def branches_differ(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.relu(y) if x.mean() > 5 else y


def flag(self: Any, x: Tensor, features: bool = False) -> Any:
    y = self.relu(self.conv(x))
    return (y, self.pool(y)) if features else self.pool(y)


def mask(self: Any, x: Tensor, mask: Tensor | None = None) -> Any:
    y = self.conv(x)
    return self.relu(y) if mask is not None else self.pool(y)


CASES: dict[Callable[..., Any], list[str]] = {
    Block.forward: ["relu", "pool"],
    returned: [],
    rectified_is_returned: ["relu"],
    added: [],
    shared_relu: [],
    shared_conv: [],
    shared_pool: ["relu"],
    function: [],
    called_forward: [],
    pooled_first: [],
    between: [],
    identity: ["relu", "pool"],
    other_relu_in_evaluation: [],
    relu_alone_in_evaluation: [],
    pooled_in_training: ["relu"],
    validated: ["relu", "pool"],
    branches_agree: ["relu"],
    branches_differ: [],
    flag: ["relu"],
    mask: [],
}


@pytest.mark.parametrize("forward", CASES, ids=lambda forward: forward.__name__)
def test_only_what_is_the_same_on_every_way_is_fused(forward: Callable[..., Any]) -> None:
    assert_fuses(case(forward), CASES[forward])


def test_a_part_that_checks_its_input_is_fused() -> None:
    assert_fuses(nn.Sequential(case(validated)), ["0.relu", "0.pool"])


def kept_in_an_attribute(self: Any, x: Tensor) -> Tensor:
    self.kept = self.conv(x)
    return self.pool(self.relu(self.kept))


def kept_in_a_list(self: Any, x: Tensor) -> Tensor:
    y = self.relu(self.conv(x))
    self.seen.append(y)
    return self.pool(y)


def test_what_the_model_keeps_is_not_fused_and_no_trace_leaves_a_mark() -> None:
    model = case(kept_in_an_attribute)
    assert fused(convert(model, fuse=True)) == []
    assert not hasattr(model, "kept")
    model(images())  # a kept tensor with a history doesn't stand in the way
    assert fused(convert(model, fuse=True)) == []
    model = case(kept_in_a_list)
    model.seen = []
    assert fused(convert(model, fuse=True)) == ["relu"]
    assert model.seen == []


def test_fusing_draws_no_random_numbers_and_changes_no_buffers() -> None:
    def noisy(self: Any, x: Tensor) -> Tensor:
        self.count += 1
        return self.relu(self.conv(x + torch.rand(1)))

    model = case(noisy)
    model.register_buffer("count", torch.zeros(()))
    state = torch.get_rng_state(), random.getstate()
    assert fused(convert(model.train(), fuse=True)) == ["relu"]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert model.count == 0
    assert model.training


HOOKS = {
    "forward": lambda layer: layer.register_forward_hook(lambda *_: None),
    "pre": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "backward": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "backward pre": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_layer_with_a_hook_is_not_fused(hook: str) -> None:
    whole = ["relu", "pool"]
    expected = {"conv": whole if hook == "pre" else [], "relu": [], "pool": ["relu"], "last": whole}
    for name in expected:
        model = Block()
        handle = HOOKS[hook](model.get_submodule(name))
        assert_fuses(model, expected[name])
        handle.remove()
        assert_fuses(model, whole)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_container_with_a_hook_keeps_what_goes_in_and_out(hook: str) -> None:
    def model() -> nn.Sequential:
        block = Block()
        return nn.Sequential(nn.Sequential(block.conv), nn.Sequential(block.relu), nn.Sequential(block.pool))

    whole = ["1.0", "2.0"]
    for index, expected in ((0, []), (1, []), (2, ["1.0"])):
        hooked = model()
        HOOKS[hook](hooked[index])
        assert_fuses(hooked, expected)
    hooked = model()
    HOOKS[hook](hooked)
    assert_fuses(hooked, whole)


def test_a_hook_is_not_called_by_a_trace() -> None:
    model, seen = Block(), []
    model.register_forward_hook(lambda *_: seen.append("outside"))
    wrapped = nn.Sequential(model)
    assert fused(convert(wrapped, fuse=True)) == ["0.relu", "0.pool"]
    assert seen == []


@contextmanager
def global_hook() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    yield
    handle.remove()


def test_nothing_is_fused_under_a_hook_of_all_modules() -> None:
    with global_hook():
        assert fused(convert(Block(), fuse=True)) == []


def test_a_replaced_forward_and_derived_classes_and_indices_are_left() -> None:
    class Leaky(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return F.leaky_relu(input)

    models = [Block() for _ in range(4)]
    models[0].relu = Leaky()
    models[1].relu.forward = lambda input: input * 2
    models[2].pool.forward = models[2].conv.forward = lambda input: input * 2
    models[3].conv = type("Derived", (torchconv.Conv2d,), {})(3, 3, 3).double()
    for model in (models[0], models[1], models[3]):
        assert_fuses(model, [])
    assert fused(convert(models[2], fuse=True)) == []
    model = case(lambda self, x: self.pool(self.relu(self.conv(x)))[0])
    model.pool = nn.MaxPool2d(2, return_indices=True)
    assert_fuses(model, ["relu"])


class Dynamic(Block):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[0]):
            x = self.pool(self.relu(self.conv(x)))
        return x


def test_a_model_that_cannot_be_traced_is_left_with_a_warning() -> None:
    model = Dynamic()
    with pytest.warns(UserWarning, match="convert: fuse leaves the model as it is, which torch.fx can't trace: "):
        assert_fuses(model, [])


def test_only_the_part_that_cannot_be_traced_is_left() -> None:
    model = nn.Sequential(Block(), Dynamic(), nn.Upsample(scale_factor=4), Block())
    with pytest.warns(UserWarning, match="convert: fuse leaves 1 as it is, which torch.fx can't trace: "):
        assert_fuses(model, ["0.relu", "0.pool", "3.relu", "3.pool"])


def test_a_layer_that_an_untraceable_part_shares_is_left() -> None:
    model = nn.Sequential(Block(), Dynamic(), nn.Upsample(scale_factor=4))
    model[1].relu = model[0].relu
    with pytest.warns(UserWarning, match="fuse leaves 1 as it is"):
        assert_fuses(model, [])


@pytest.mark.parametrize(
    "condition", [lambda x: x.sum() > 9e9, lambda x: not x.sum() < 9e9], ids=["endless one way", "and the other"]
)
def test_a_loop_that_an_input_ends_is_left_with_a_warning(condition: Callable[[Tensor], Any]) -> None:
    def loop(self: Any, x: Tensor) -> Tensor:
        while condition(x):
            x = x / 2
        return self.relu(self.conv(x))

    with pytest.warns(UserWarning, match="more than 64"):
        assert_fuses(case(loop), [])


def test_a_model_that_refuses_everything_is_left() -> None:
    def refuse(self: Any, x: Tensor) -> Tensor:
        self.relu(self.conv(x))
        raise ValueError("no")

    with pytest.warns(UserWarning, match="every way through it ends in an error"):
        assert fused(convert(case(refuse), fuse=True)) == []


def test_a_model_that_cannot_be_copied_is_left_with_a_warning() -> None:
    model = Block()
    model.lines = (line for line in "ab")
    with pytest.warns(UserWarning, match="cannot pickle 'generator' object"):
        assert fused(convert(model, fuse=True)) == []


def test_activations_that_are_handed_out_stay_what_they_are() -> None:
    class Features(nn.Module):
        def __init__(self, *wanted: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            widths = ((3, 4), (4, 4), (4, 5))
            self.features = nn.Sequential(
                *(layer for width in widths for layer in (nn.Conv2d(*width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
            ).double()
            self.wanted = wanted

        def forward(self, x: Tensor) -> dict[int, Tensor]:
            outputs = {}
            for index, layer in enumerate(self.features):
                x = layer(x)
                if index in self.wanted:
                    outputs[index] = x
            return outputs

    assert_fuses(Features(8), [f"features.{index}" for index in (1, 2, 4, 5, 7, 8)])
    assert_fuses(Features(3, 7), [f"features.{index}" for index in (1, 2, 7)])
    assert_fuses(Features(1, 5, 6), [f"features.{index}" for index in (1, 4, 5)])
