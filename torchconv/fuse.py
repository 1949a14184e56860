"""Convolutions that compute what follows them: finding the layers, joining them, and undoing it.

A joined convolution gets another class and reads what it needs off the layers that it stands for. These stay where they
are and pass their input through, so nothing of the model's structure, names and state changes.
"""

import warnings
from collections.abc import Collection, Sequence
from math import prod
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch.nn import Module
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import type_before_parametrizations

from torchconv import nn, packing
from torchconv.dataflow import HOOKS, dataflow
from torchconv.layer_class import assign_class


class _PassedThrough(Module):
    """Mixed in before the class of a layer whose work the convolution before it does."""

    def forward(self, input: Tensor) -> Tensor:
        return input

    def compute(self, input: Tensor) -> Tensor:
        """What the layer did before it was fused."""
        return super().forward(input)


class FusedBatchNorm2d(_PassedThrough, torch.nn.BatchNorm2d):
    """A `BatchNorm2d` that the convolution before it computes. Made by `convert`."""


class FusedReLU(_PassedThrough, torch.nn.ReLU):
    """A `ReLU` that the convolution before it computes. Made by `convert`."""


class FusedReLU6(_PassedThrough, torch.nn.ReLU6):
    """A `ReLU6` that the convolution before it computes. Made by `convert`."""


class FusedMaxPool2d(_PassedThrough, nn.MaxPool2d):
    """A `MaxPool2d` that the convolution before it computes. Made by `convert`."""


class _Kept(NamedTuple):
    """A weight and bias that stand for a convolution's and its batch norm's, and what they were computed of.

    The tensors are kept, so that no other can get their identity, and each one's count of changes and place.
    """

    sources: tuple[Tensor | None, ...]
    versions: list[int]
    places: list[int]
    eps: float
    weight: Tensor
    bias: Tensor

    def are_of(self, sources: Sequence[Tensor | None], given: Sequence[Tensor], eps: float) -> bool:
        """Whether they were computed of these, and none has changed; `given` are those that aren't None."""
        return (
            all(map(is_, self.sources, sources))
            and self.eps == eps
            and self.versions == list(map(_VERSION, given))
            and self.places == list(map(Tensor.data_ptr, given))
        )


class Fusion:
    """A convolution and the layers that it computes as well; each of them has this object as its `_fusion`."""

    def __init__(self, conv: nn.Conv2d, followers: list[Module]) -> None:
        self.conv, self.followers = conv, followers
        self._folded: _Kept | None = None
        conv_class = _CLASSES[tuple(type_before_parametrizations(follower) for follower in followers)]
        vars(conv).update(_attributes(followers))
        assign_class(conv, {nn.Conv2d: conv_class})
        for follower in followers:
            assign_class(follower, _FUSED)
        for layer in (conv, *followers):
            vars(layer)["_fusion"] = self

    def undo(self) -> None:
        """Give every layer its class and attributes back."""
        for layer in (self.conv, *self.followers):
            assign_class(layer, _APART)
            del vars(layer)["_fusion"]
        vars(self.conv).pop("recompute", None)
        for name in _attributes(self.followers):
            del vars(self.conv)[name]

    def fold(self, weight: Tensor, bias: Tensor | None, norm: torch.nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        """The weight and bias of the convolution that gives what `norm` gives of this one.

        Differentiable in all five parameters. While nothing needs a gradient, they are kept from call to call.
        """
        # Read where they are kept: to ask the layer takes longer than all else here, in each call of each layer.
        parameters, buffers = norm._parameters, norm._buffers
        of_norm = (parameters.get("weight"), parameters.get("bias"), buffers["running_mean"], buffers["running_var"])
        sources = (weight, bias, *of_norm)
        given = [tensor for tensor in sources if tensor is not None]
        if (
            torch.compiler.is_compiling()
            or torch._C._get_tracing_state() is not None
            or functorch.peek_interpreter_stack() is not None
            or "parametrizations" in norm._modules
            or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))
        ):
            return _fold(weight, bias, norm)
        kept = self._folded
        if kept is not None and kept.are_of(sources, given, norm.eps):
            return kept.weight, kept.bias
        # A tensor made in inference mode could never be saved for backward.
        with torch.inference_mode(False), torch.no_grad():
            folded = _fold(weight, bias, norm)
        tensors = (*given, *folded)
        if all(type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_inference() for tensor in tensors):
            state = list(map(_VERSION, given)), list(map(Tensor.data_ptr, given)), norm.eps
            self._folded = _Kept(sources, *state, *folded)
            packing.pass_on(weight, folded[0])
        return folded

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_folded": None}


_VERSION = attrgetter("_version")


def _fold(weight: Tensor, bias: Tensor | None, norm: torch.nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = (-norm.running_mean if bias is None else bias - norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)


class _Folded(nn.Conv2d):
    """Mixed in before the class of a convolution with a batch norm behind it."""

    _fusion: Fusion

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        fusion = self._fusion
        norm: Any = fusion.followers[0]
        if norm.training or norm._buffers["running_mean"] is None:
            output = nn.Conv2d._conv_forward(self, input, weight, bias)
            for follower in fusion.followers:
                output = follower.compute(output)  # type: ignore[operator]  # of _PassedThrough
            return output
        norm._check_input_dim(input)
        return super()._conv_forward(input, *fusion.fold(weight, bias, norm))


class FoldedConv2d(_Folded):
    """A convolution that computes the batch norm behind it as well. Made by `convert`."""


class FoldedConvReLU2d(_Folded, nn.ConvReLU2d):
    """A `ConvReLU2d` that computes the batch norm between as well. Made by `convert`."""


class FoldedConvReLUPool2d(_Folded, nn.ConvReLUPool2d):
    """A `ConvReLUPool2d` that computes the batch norm between as well. Made by `convert`."""


_NORM, _RELU, _RELU6, _POOL = torch.nn.BatchNorm2d, torch.nn.ReLU, torch.nn.ReLU6, nn.MaxPool2d
# What the convolution becomes, for what follows it: for each chain, and for each beginning of one.
_CLASSES: dict[tuple[type, ...], type[nn.Conv2d]] = {
    (_RELU,): nn.ConvReLU2d,
    (_RELU6,): nn.ConvReLU2d,
    (_RELU, _POOL): nn.ConvReLUPool2d,
    (_NORM,): FoldedConv2d,
    (_NORM, _RELU): FoldedConvReLU2d,
    (_NORM, _RELU6): FoldedConvReLU2d,
    (_NORM, _RELU, _POOL): FoldedConvReLUPool2d,
}
_FUSED: dict[type, type] = {_NORM: FusedBatchNorm2d, _RELU: FusedReLU, _RELU6: FusedReLU6, _POOL: FusedMaxPool2d}
_APART: dict[type, type] = {
    **dict.fromkeys(_CLASSES.values(), nn.Conv2d),
    **{fused: apart for apart, fused in _FUSED.items()},
}


def fuse(model: Module, fold_batch_norm: bool) -> None:
    """Fuse the convolutions of a model that is converted already with what follows them; see `torchconv.convert`."""
    convs: list[Any] = [layer for layer in model.modules() if _is_apart(layer, nn.Conv2d)]
    if not convs or _has_any_global_hook() or not any(type(layer) in _FUSED for layer in model.modules()):
        return
    links, opaque = dataflow(model)
    names = {layer: name for name, layer in model.named_modules()}
    for module, reason in opaque.items():
        if not set(convs).isdisjoint(module.modules()):
            name = names[module] or "the model"
            warnings.warn(f"convert: fuse leaves {name} as it is, which torch.fx can't trace: {reason}", stacklevel=3)
    after = dict(links)

    def next_of(layer: Module) -> Module | None:
        follower = after.get(layer)
        while follower is not None and _is_apart(follower, torch.nn.Identity):
            follower = after.get(follower)
        return follower

    def followers_of(conv: Module) -> list[Module]:
        followers: list[Module] = []
        kinds: tuple[type[Module], ...] = ()
        while (follower := next_of(followers[-1] if followers else conv)) is not None:
            kind = type_before_parametrizations(follower)
            kinds = (*kinds, kind)
            folds = kind is not _NORM or (fold_batch_norm and _folds(conv, follower))
            if kinds not in _CLASSES or not _is_apart(follower, kind) or not folds:
                break
            followers.append(follower)
        return followers

    fusions = [Fusion(conv, followers) for conv in convs if (followers := followers_of(conv))]
    for fusion in fusions:
        if _is_cheap(fusion.conv, next_of(fusion.followers[-1])):
            fusion.conv.recompute = True  # type: ignore[assignment]  # an attribute of what it has become


def _is_cheap(conv: nn.Conv2d, next: Module | None) -> bool:
    """Whether the block behind may as well compute this one's output again.

    That is where what it is computed of has an eighth of its size, and takes a sixteenth of that block's arithmetic.
    """
    if not isinstance(conv, nn.ConvReLU2d) or not isinstance(next, nn.ConvReLU2d | nn.ConvReLUPool2d):
        return False
    inputs = conv.in_channels * prod(conv.stride)  # for each position of the output, which has out_channels
    products, of_next = (layer.weight[0].numel() for layer in (conv, next))
    of_next = of_next * next.out_channels // (next.in_channels * prod(next.stride))
    return 8 * inputs <= conv.out_channels and 16 * products <= of_next


def fuse_chain(layers: Sequence[Module], seen: Collection[int]) -> None:
    """Fuse the convolutions of a new chain of layers, of which only the outputs at these positions are seen."""
    for position, conv in enumerate(layers):
        followers: list[Any] = []
        for kind in (_RELU, _POOL):
            at = position + len(followers)
            if at in seen or at + 1 == len(layers) or type(layers[at + 1]) is not kind:
                break
            followers.append(layers[at + 1])
        if followers and type(conv) is nn.Conv2d:
            Fusion(conv, followers)


def unfuse(layer: Module) -> None:
    """Undo the fusion that a layer is part of, if it is part of one."""
    fusion: Fusion | None = vars(layer).get("_fusion")
    if fusion is not None:
        fusion.undo()


def _is_apart(layer: Module, kind: type[Module]) -> bool:
    """Whether it is exactly a layer of this kind, whose work nobody would miss it do."""
    # Hooks before a convolution don't see what it gives.
    hooks = HOOKS[1:] if kind is nn.Conv2d else HOOKS
    return (
        type_before_parametrizations(layer) is kind
        and not any(vars(layer)[name] for name in hooks)
        and "forward" not in vars(layer)
        and "_conv_forward" not in vars(layer)
        and not getattr(layer, "return_indices", False)
    )


def _folds(conv: Any, norm: Any) -> bool:
    return norm.running_mean is not None and norm.num_features == conv.out_channels


def _attributes(followers: Sequence[Any]) -> dict[str, Any]:
    """What a ConvReLU2d or ConvReLUPool2d has of the layers that it stands for."""
    last = followers[-1]
    if isinstance(last, _RELU6):
        return {"max_value": last.max_val}
    if not isinstance(last, _POOL):
        return {}
    return {
        "pool_kernel_size": last.kernel_size,
        "pool_stride": last.stride,
        "pool_padding": last.padding,
        "pool_dilation": last.dilation,
        "ceil_mode": last.ceil_mode,
    }
