"""What all Functions share: the geometry of a window, and how they meet torch.compile and torch.vmap."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


# Geometries are dataclasses, not tuples: functorch walks through every tuple, at every level of its transforms.
@dataclass(frozen=True)
class Window:
    """How im2col's or a pooling's window moves: one int per spatial dimension."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return iter((self.kernel_size, self.stride, self.padding, self.dilation))


def differentiable(function: type[Function]) -> Callable[..., Any]:
    """`function.apply`, in a form that torch.compile can trace.

    Dynamo refuses a Function that defines `jvp`, which it never needs: forward mode is not compiled. It is shown a
    subclass without. It also refuses the same tensor twice: the second time it gets a view.
    """
    traced: Any = type(f"Traced{function.__name__}", (function,), {"jvp": Function.jvp})

    def apply(*args: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function.apply(*args)
        distinct: list[Any] = []
        for arg in args:
            repeated = isinstance(arg, Tensor) and any(arg is other for other in distinct)
            distinct.append(arg.view_as(arg) if repeated else arg)
        return traced.apply(*distinct)

    return apply


def into_batch(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The dimension that vmap maps over, folded into the batch: (N, ...) to (B * N, ...). None repeats the tensor."""
    by_example = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return by_example.flatten(0, 1)


def into_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The dimension that vmap maps over, folded into the channels: (N, C, ...) to (N, B * C, ...)."""
    by_example = tensor.unsqueeze(1).expand(-1, size, *tensor.shape[1:]) if dim is None else tensor.movedim(dim, 1)
    return by_example.flatten(1, 2)


def out_of_batch(tensor: Tensor, size: int) -> Tensor:
    """Undoes `into_batch`: (B * N, ...) to (B, N, ...)."""
    return tensor.unflatten(0, (size, tensor.shape[0] // size))


def out_of_channels(tensor: Tensor, size: int) -> Tensor:
    """Undoes `into_channels`: (N, B * C, ...) to (N, B, C, ...)."""
    return tensor.unflatten(1, (size, tensor.shape[1] // size))
