"""What layers keep from the forward for the backward pass: how much, where, and what happens when it is changed."""

from typing import Any

import pytest
import torch
from grid import filled
from networks import assert_same_bits, every_layer, gradients, images, network, single
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu, saved_tensors_hooks
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint_sequential

import torchconv
from torchconv import functional


def saved(model: nn.Module) -> list[Tensor]:
    """What a forward pass saves; the backward pass takes each back once."""
    packed: list[Tensor] = []
    unpacked: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.detach())
        return tensor.detach().clone()

    with saved_tensors_hooks(pack, lambda tensor: unpacked.append(tensor) or tensor):
        output = model(images().requires_grad_())
    assert not unpacked
    output.sum().backward()
    assert len(unpacked) == len(packed)
    return packed


def test_a_convolution_saves_what_its_gradients_need_and_nothing_else() -> None:
    for name in ("Conv2d", "ConvTranspose2d"):
        conv: Any = single(name, torchconv)
        assert [t.shape for t in saved(conv)] == [images().shape, conv.weight.shape]
        conv.weight.requires_grad_(False)
        assert [t.shape for t in saved(conv)] == [conv.weight.shape]  # torch saves the input, too


def test_a_pooling_saves_no_input() -> None:
    assert [(t.shape, t.dtype) for t in saved(torchconv.MaxPool2d(2))] == [((2, 4, 6, 5), torch.uint8)]
    for name in ("AvgPool2d", "AdaptiveAvgPool2d"):
        assert saved(single(name, torchconv)) == []


def test_saved_tensors_may_be_elsewhere_or_without_hooks() -> None:
    model = network(torchconv)
    expected = gradients(model, images())

    def elsewhere(x: Tensor) -> Tensor:
        with save_on_cpu():
            return model(x)

    def without_hooks(x: Tensor) -> Tensor:
        with disable_saved_tensors_hooks("not here"):
            return model(x)

    assert_same_bits(gradients(model, images(), elsewhere), expected)
    assert_same_bits(gradients(model, images(), without_hooks), expected)


def test_hooks_that_are_refused_are_refused_with_torchs_error() -> None:
    with (
        disable_saved_tensors_hooks("not here"),
        pytest.raises(RuntimeError, match="not here"),
        saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    ):
        single("Conv2d", torchconv)(images())


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
def test_the_backward_pass_works_on_what_hooks_give_back(name: str) -> None:
    conv = single(name, torchconv)

    def doubled(x: Tensor) -> Tensor:
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: 2 * tensor):
            return conv(x)

    output, by_input, by_weight, by_bias = gradients(conv, images())
    # The output is squared outside of the hooks.
    assert_same_bits(gradients(conv, images(), doubled), [output, 2 * by_input, 2 * by_weight, by_bias])


def after_change(library: Any, name: str, changed: str | None, frozen: str | None) -> list[Tensor] | None:
    """The gradients after a change in place between the passes; None where autograd refuses the backward pass."""
    layer: Any = single(name, library)
    leaf = images().requires_grad_(frozen != "input")
    if frozen == "weight":
        layer.weight.requires_grad_(False)
    input = leaf.clone()
    output = layer(input)
    loss = (output * filled(output.shape, seed=1)).sum()  # keeps no output
    if changed:
        with torch.no_grad():
            {"input": input, "output": output, **dict(layer.named_parameters())}[changed].mul_(3)
    return backward(loss, [leaf, *layer.parameters()])


def backward(loss: Tensor, leaves: list[Tensor]) -> list[Tensor] | None:
    try:
        loss.backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@every_layer
def test_after_a_change_in_place_gradients_are_right_or_refused_as_torch_refuses_them(name: str) -> None:
    weights = "Conv" in name
    for frozen in (None, "input", "weight") if weights else (None,):
        right = after_change(torchconv, name, None, frozen)
        assert right
        for changed in ("input", "output", "weight", "bias") if weights else ("input", "output"):
            ours = after_change(torchconv, name, changed, frozen)
            if ours is None:
                assert after_change(nn, name, changed, frozen) is None
            else:
                assert_same_bits(ours, right)


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize(
    ("changed", "frozen", "refused"),
    [
        ("input", None, True),
        ("weight", None, True),
        ("bias", None, False),
        ("output", None, False),
        ("input", "weight", False),  # torch refuses these two needlessly
        ("weight", "input", False),
    ],
)
def test_a_convolution_refuses_changes_of_what_it_needs(
    name: str, changed: str, frozen: str | None, refused: bool
) -> None:
    assert (after_change(torchconv, name, changed, frozen) is None) == refused


def test_a_max_pooling_refuses_changes_of_its_saved_positions() -> None:
    x = images().requires_grad_()
    output = functional.max_pool2d(x, 2)
    (positions,) = output.grad_fn.saved_tensors
    positions.zero_()
    assert backward(output.sum(), [x]) is None


def test_returned_indices_may_be_changed() -> None:
    x = images().requires_grad_()
    output, indices = functional.max_pool2d(x, 2, return_indices=True)
    indices.zero_()  # torch needs them itself and refuses the backward pass
    gradient = backward(output.sum(), [x])
    expected = torch.autograd.grad(nn.functional.max_pool2d(x, 2).sum(), x)
    assert_close(gradient, list(expected))


def test_an_unpooling_refuses_changed_indices_as_torch_does() -> None:
    for library in (torchconv, nn):
        x = images(2, 4, 6, 5).requires_grad_()
        _, indices = nn.functional.max_pool2d(images(), 2, return_indices=True)
        output = library.MaxUnpool2d(2)(x, indices)
        indices.zero_()
        assert backward(output.sum(), [x]) is None


def fused_trunk() -> nn.Sequential:
    conv, pooled = torchconv.ConvReLU2d, torchconv.ConvReLUPool2d
    layers = [conv(4, 8, 3, padding=1), pooled(8, 8, 3, padding=1, pool_kernel_size=2)]
    return nn.Sequential(*layers, conv(8, 8, 3, padding=1), pooled(8, 4, 3, padding=1, pool_kernel_size=2)).double()


@pytest.mark.parametrize("reentrant", [False, True])
def test_fused_layers_recomputed_by_checkpoint_keep_only_where_each_part_begins(reentrant: bool) -> None:
    trunk, x = fused_trunk(), images(dtype=torch.float64).requires_grad_()
    (plain := trunk(x)).square().sum().backward()
    expected = [x.grad, *(p.grad for p in trunk.parameters())]
    x.grad = None
    trunk.zero_grad()
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = checkpoint_sequential(trunk, 2, x, use_reentrant=reentrant)
    assert torch.equal(output, plain)
    output.square().sum().backward()
    for ours, theirs in zip([x.grad, *(p.grad for p in trunk.parameters())], expected, strict=True):
        assert torch.equal(ours, theirs)  # type: ignore[arg-type]
    assert kept  # by the last part, which isn't recomputed
    first = {p.data_ptr() for p in trunk[:2].parameters()}
    assert not first & {tensor.data_ptr() for tensor in kept}
