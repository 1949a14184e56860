"""An output that is computed again in the backward pass: what takes it keeps in its place what it was computed from.

So it is for a first layer, whose input is a picture of 3 channels and whose output has 64: the input is there anyway,
and computing the output again costs a twentieth of what the next layer does. All that is kept is kept by
`save_for_backward`, so that hooks see it, changes in place are found, and derivatives of any order pass through.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

Operands = tuple[Tensor, Tensor, Tensor | None]  # input, weight, bias


class Origin(NamedTuple):
    """How an output came to be: `compute(*operands)`, while all were in this state."""

    compute: Callable[..., Tensor]
    operands: Operands
    versions: list[int]


def remember(output: Tensor, compute: Callable[..., Tensor], operands: Operands) -> None:
    """Say of an output that `compute`, which is differentiable, gives it again, of a batch or of a part of one."""
    found = Origin(compute, operands, _versions(output, operands))
    output.torchconv_origin = found  # type: ignore[attr-defined]  # which torch's stubs have no word for


def origin(tensor: Tensor) -> Origin | None:
    """What was said of a tensor, if it still holds."""
    found: Origin | None = getattr(tensor, "torchconv_origin", None)
    return None if found is None or found.versions != _versions(tensor, found.operands) else found


def _versions(output: Tensor, operands: Operands) -> list[Any]:
    return [tensor._version for tensor in (output, *operands) if tensor is not None]
