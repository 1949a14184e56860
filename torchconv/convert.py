"""Whole models: torchconv's layers in the place of torch.nn's, or torchconv's functions in the place of torch's.

torchconv's layers add no state to the torch.nn classes that they derive from, so a layer is converted, and reverted,
by assigning its class: the object stays, with its parameters, buffers, hooks and all else that it has or that knows it.
"""

from collections.abc import Callable, Iterator
from inspect import signature
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode

from torchconv import functional, nn, packing
from torchconv.fuse import fuse as fuse_layers
from torchconv.fuse import unfuse
from torchconv.layer_class import assign_class

AnyModule = TypeVar("AnyModule", bound=Module)

_FAMILY = tuple(
    f"torch.nn.modules.{file}" for file in ("conv", "pooling", "fold")
)  # where torch.nn defines such layers


def _layers() -> dict[type, type]:
    """Torchconv's layer for each torch.nn class that it derives from and shares the name with."""
    layers = {}
    for name, ours in vars(nn).items():
        theirs = getattr(torch.nn, name, None)
        if isinstance(ours, type) and isinstance(theirs, type) and ours is not theirs and issubclass(ours, theirs):
            layers[theirs] = ours
    return layers


_OURS = _layers()
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def convert(
    model: AnyModule,
    memory_format: torch.memory_format | None = None,
    *,
    fuse: bool = False,
    fold_batch_norm: bool = False,
    pack_weights: bool = False,
) -> AnyModule:
    """Swap every layer of a model that torchconv has for torchconv's, in place.

    Each layer stays the object that it is: parameters, buffers, hooks, parametrizations, devices, training mode and
    attributes are untouched, a layer used twice stays one layer, an optimizer keeps working, the state_dict has the
    same keys. Only layers that are exactly torch.nn's are swapped, not those of classes derived from them;
    `unconvertible` names the rest. Converting twice is converting once.

        model = torchconv.convert(torchvision.models.resnet18(), memory_format=torch.channels_last)

    For inference, everything at once:

        model = torchconv.convert(model.eval(), torch.channels_last, fuse=True, fold_batch_norm=True, pack_weights=True)

    With `fuse`, a Conv2d followed by a ReLU or ReLU6 module, and by a MaxPool2d after a ReLU, computes them as well,
    and keeps far less for backward:

        model = torchconv.convert(torchvision.models.vgg16(), fuse=True)
        model.features[0], model.features[1]  # ConvReLU2d(3, 64, ...), FusedReLU(inplace=True)
        model(images).sum().backward()  # the same numbers; revert(model) undoes it

    The convolution becomes a `ConvReLU2d` or `ConvReLUPool2d`; the ReLU and the pooling keep their places and pass
    their input through. Which follow each other is read off traces of the model by torch.fx, in training and in
    evaluation, so it must be called as a whole from then on: a part of it, such as `model.features[:1]`, gives
    what the fused layers give. What can be seen from outside isn't fused: an output that is used, returned or kept
    elsewhere as well, a layer that is called twice, one with a hook (later hooks see the fused output), a pooling that
    returns indices. Nor is `torch.relu`, which is no layer. If submodules with convolutions can't be traced, a warning
    names them, and nothing is fused inside: convert the parts that are always called whole by themselves, as in
    `convert(model.backbone, fuse=True)`. Revert before you exchange or move layers.

    Args:
        model: any module; it may itself be a layer.
        memory_format: what to bring the parameters into as well, as `model.to(memory_format=...)` does. With
            channels-last weights the first convolution gives channels-last activations, whatever its input, and the
            layers after it keep to that. The kernels then work in place: networks of convolutions run up to twice as
            fast as in contiguous tensors, and give the same numbers.
        fuse: whether to fuse convolutions with what follows them.
        fold_batch_norm: whether a convolution computes a BatchNorm2d behind it as well, and what follows that, by
            weights and a bias that stand for both. This is so whenever the batch norm is in evaluation mode; in
            training mode, where its input is needed, the layers are computed one by one, as before. Parameters,
            buffers and their gradients stay what they were. While none of them needs a gradient, the weights are
            kept from call to call, unless one of them changed; a change through `.data` goes unseen.
        pack_weights: whether the convolutions' weights are kept once more, in the order that the kernels read them in,
            for float32 and float64 on a CPU. That is for inference: of one picture a network is 3 to 17% faster, of
            many hardly, and weights take twice the memory. A weight is packed in the second call in which it is what
            it was before, and anew when it has changed; a change through `.data`, or by another process that shares
            it, goes unseen. A copy of the model, or a layer that gets another parameter, is to be converted again.

    Returns:
        The same model.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
        ValueError: `fold_batch_norm` without `fuse`.
    """
    if fold_batch_norm and not fuse:
        raise ValueError("convert: fold_batch_norm is True, which expects fuse=True")
    for layer in _checked("convert", model).modules():
        if _obstacle(layer) is None:
            assign_class(layer, _OURS)
    if fuse:
        fuse_layers(model, fold_batch_norm)
    if pack_weights:
        for weight in _conv_weights(model):
            packing.add(weight)
    if memory_format is not None:
        model.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stubs don't know that argument alone
    return model


def revert(model: AnyModule) -> AnyModule:
    """Swap every torchconv layer of a model for torch.nn's, in place: what undoes `convert`.

    Layers that were torchconv's from the beginning are swapped too, but for those that torch.nn hasn't, as a
    `ConvReLU2d`; classes derived from torchconv's are left. The memory format of the parameters stays. Of layers that
    were fused, all become their own again, also where only one of them is part of `model`.

    Args:
        model: any module; it may itself be a layer.

    Returns:
        The same model.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
    """
    for weight in _conv_weights(_checked("revert", model)):
        packing.discard(weight)
    for layer in model.modules():
        unfuse(layer)
        assign_class(layer, _THEIRS)
    return model


def unconvertible(model: Module) -> dict[str, str]:
    """The convolution, pooling and folding layers that `convert` leaves as they are, and why.

    The same before and after `convert`. A layer used in several places has the first one's name, as in
    `model.named_modules()`.

        >>> torchconv.unconvertible(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.FractionalMaxPool2d(2, 8)))
        {'1': 'torchconv has no FractionalMaxPool2d'}

    Args:
        model: any module; it may itself be a layer, whose name is then "".

    Returns:
        From the layer's name to the reason.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
    """
    obstacles = {name: _obstacle(layer) for name, layer in _checked("unconvertible", model).named_modules()}
    return {name: obstacle for name, obstacle in obstacles.items() if obstacle}


def enabled() -> TorchFunctionMode:
    """Compute the calls of torch.nn.functional that torchconv has by torchconv, inside a `with` block.

    It reaches any code, without a change to it: calls of `torch.nn.functional` and their namesakes in `torch`, whether
    from torch.nn's layers, from classes derived from them or from functions. It doesn't reach TorchScript,
    `torch.ops.aten` and other threads. Blocks may be nested.

        with torchconv.enabled():
            loss = model(images).square().mean()

    The backward pass uses what its forward pass did, inside the block or out of it. Only activation checkpointing
    computes the forward pass anew, and needs to be told:
    `checkpoint(..., use_reentrant=False, context_fn=lambda: (torchconv.enabled(), torchconv.enabled()))`.

    Returns:
        The context manager. It may be kept and entered again.
    """
    return _Enabled()


class _Enabled(TorchFunctionMode):
    # torch takes the mode off the stack while this runs, so what torchconv calls in turn does not come back here.
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _FUNCTIONS.get(func, func)(*args, **(kwargs or {}))


def _functions() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Torchconv's function for each of torch's, as a mode gets to see it."""
    functions: dict[Callable[..., Any], Callable[..., Any]] = {}
    for name, ours in list(vars(functional).items()):
        theirs = getattr(F, name, None)
        if name.startswith("_") or theirs is None or theirs is ours or not isinstance(ours, FunctionType):
            continue
        functions[theirs] = ours
        # A pooling with return_indices=True arrives under a name of its own. torch has both kinds, too.
        for module in (F, torch):
            if indices := getattr(module, f"{name}_with_indices", None):
                functions[indices] = _with_indices(ours)
        if namesake := getattr(torch, name, None):
            # torch.adaptive_max_pool1d, unlike torch.nn.functional's, always returns the indices.
            functions[namesake] = _with_indices(ours) if name == "adaptive_max_pool1d" else ours
    return functions


def _with_indices(pool: Callable[..., Any]) -> Callable[..., Any]:
    def pool_with_indices(*args: Any, **kwargs: Any) -> Any:
        arguments = signature(pool).bind(*args, **kwargs).arguments
        return pool(**{**arguments, "return_indices": True})

    return pool_with_indices


_FUNCTIONS = _functions()


def _checked(function: str, model: AnyModule) -> AnyModule:
    if not isinstance(model, Module):
        raise TypeError(f"{function}: model is {type(model).__name__}, expected a torch.nn.Module")
    return model


def _conv_weights(model: Module) -> Iterator[Tensor]:
    """The weights of torchconv's convolutions, but for those that a parametrization computes in each call."""
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is not None and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield weight


def _obstacle(layer: Module) -> str | None:
    """Why this layer can't become torchconv's; "" for what is no business of torchconv, None if it can."""
    if isinstance(layer, torch.jit.ScriptModule):
        return "compiled by TorchScript" if layer.original_name in {kind.__name__ for kind in _OURS} else ""
    kind = type_before_parametrizations(layer)
    if kind in _OURS:
        replaced = [name for name in ("forward", "_conv_forward") if name in vars(layer)]
        return f"its {replaced[0]} was replaced on the object" if replaced else None
    bases = [base for base in kind.__mro__ if base.__module__ in _FAMILY]
    if not bases or any(base in _THEIRS for base in kind.__mro__):
        return ""
    if bases[0] is not kind:
        return f"{kind.__module__}.{kind.__qualname__} is a class derived from torch.nn.{bases[0].__name__}"
    return f"torchconv has no {kind.__name__}"
