"""Calls whose arguments are known to go together: to check them again would take as long as a small layer's work."""

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from torchconv import ops

Found = TypeVar("Found")


class KnownCalls(Generic[Found]):
    """What the checks of a call found, by all that they asked for.

    Arguments are known by identity: a layer's are the same objects at each call, and equal ones may be of a wrong type.
    """

    MOST = 4096

    def __init__(self) -> None:
        self._calls: dict[Hashable, tuple[Found, tuple[Any, ...]]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def find(self, key: Hashable) -> Found | None:
        """What was found for this key, if it is known."""
        if key is None:
            return None
        try:
            call = self._calls.get(key)
        except TypeError:  # a symbolic size
            return None
        return None if call is None else call[0]

    def add(self, key: Hashable, found: Found, arguments: tuple[Any, ...]) -> None:
        """Keeps what was found, and alive the arguments that the key names by their id, if none of them can change."""
        if key is None or not all(map(_is_constant, arguments)):
            return
        try:
            hash(key)
        except TypeError:
            return
        if len(self._calls) >= self.MOST:
            self._calls.clear()
        self._calls[key] = found, arguments


def is_plain(tensor: Tensor) -> bool:
    """Whether a call on this tensor may be known: not where it is traced, and not where more is done than to check."""
    return (
        tensor.is_cpu
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and ops.autocast_dtype(tensor) is None
    )


def key_of(input: Any, arguments: tuple[Any, ...], *more: Hashable) -> Hashable:
    """What a pooling's checks ask for, or None where its call may not be known."""
    if not (isinstance(input, Tensor) and is_plain(input)):
        return None
    return input.shape, input.dtype, tuple(map(id, arguments)), *more


def _is_constant(argument: Any) -> bool:
    """Whether an argument can't change while it stays the same object."""
    if type(argument) is tuple:
        return all(type(value) is int for value in argument)
    return argument is None or type(argument) in (int, bool)
