"""Weights that are kept once more as the panels that the kernels multiply with: `torchconv.convert(pack_weights=True)`.

Otherwise a convolution brings its weight into that order in each call: of one picture, a tenth to a fourth of its work.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class _Kept(NamedTuple):
    """What the last call saw of a weight, and the panels if the call before had seen the same.

    Attributes:
        version: torch's count of the changes in place.
        layout: where its elements lie.
        values: the weight's own elements. While they are held, no others can come to lie in the same place.
        panels: None until a second call.
    """

    version: int
    layout: tuple[Any, ...]
    values: Tensor
    panels: Tensor | None


_weights: Any = WeakIdKeyDictionary()  # from each weight that is to be packed to what is kept of it, or None


def add(weight: Tensor) -> None:
    """Keep the panels of this weight from its second call on."""
    _weights.setdefault(weight)


_UNKNOWN: Any = object()


def discard(weight: Tensor) -> None:
    """Keep them no longer."""
    _weights.pop(weight, None)


def pass_on(weight: Tensor, derived: Tensor) -> None:
    """What is computed of a weight, to take its place while it doesn't change, is packed if that is."""
    if weight in _weights:
        add(derived)


def forget() -> None:
    """Drop all panels, to be made anew: they are of one instruction set."""
    for weight in list(_weights.keys()):
        _weights[weight] = None


def in_use() -> bool:
    """Whether there may be panels of any weight: not where calls are traced, to be repeated when it has changed."""
    return (
        not torch.compiler.is_compiling()
        and len(_weights) > 0
        and torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
    )


def panels(weight: Tensor, groups: int) -> Tensor | None:
    """The panels of a weight, if they are kept and it is still what it was.

    A change through `.data`, or by another process, is none that torch counts, and goes unseen.
    """
    kept: _Kept | None = _weights.get(weight, _UNKNOWN)
    if kept is _UNKNOWN or weight.is_inference():
        return None
    if not weight.is_cpu:
        _weights[weight] = None
        return None
    layout = weight.data_ptr(), weight.shape, weight.stride()
    if kept is None or kept.version != weight._version or kept.layout != layout:
        _weights[weight] = _Kept(weight._version, layout, weight.detach(), None)
        return None
    packed = kept.panels
    if packed is None:
        packed = torch.ops.torchconv.pack_weight.default(weight.detach(), groups)
        _weights[weight] = kept._replace(panels=packed)
    return packed if packed.shape[0] == groups else None
