"""What all Functions share: the geometry of a window, and how they meet torch.compile and torch.vmap."""

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch.autograd import Function

from torchconv.autograd.functorch import Forms, applied, recorded_by_a_level


class Window(NamedTuple):
    """How im2col's or a pooling's window moves: one int per spatial dimension."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def differentiable(function: type[Function]) -> Callable[..., Any]:
    """`function.apply`, in forms that torch.compile can trace, that torch.func transforms fast, and that start fast.

    Dynamo refuses a Function that defines `jvp`, which it never needs: forward mode is not compiled. It is shown a
    subclass without. It also refuses the same tensor twice: the second time it gets a view.

    Function.apply binds a signature at every call where `setup_context` is apart from `forward`; outside of transforms
    the two are called as one.

    Its arguments are tensors, or None for one, as `forward` is annotated, and then constants.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    together = {"forward": staticmethod(forward), "setup_context": Function.setup_context}
    eager: Any = type(function.__name__, (function,), together)
    forms = Forms(function, eager, recorded_by_a_level(function))
    traced: Any = type(f"Traced{function.__name__}", (function,), {"jvp": Function.jvp})
    parameters = signature(function.forward).parameters.values()
    tensors = sum(parameter.annotation in (Tensor, Tensor | None) for parameter in parameters)

    def apply(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            distinct: list[Any] = []
            for arg in args:
                repeated = isinstance(arg, Tensor) and any(arg is other for other in distinct)
                distinct.append(arg.view_as(arg) if repeated else arg)
            return traced.apply(*distinct)
        # A backward pass may have saved tensors of a level that has ended.
        living = [arg if arg is None else functorch.unwrap_if_dead(arg) for arg in args[:tensors]]
        return applied(forms, living, args[tensors:])

    return apply


def into_batch(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The dimension that vmap maps over, folded into the batch: (N, ...) to (B * N, ...). None repeats the tensor."""
    if dim is None:
        tensor = tensor.expand(size, *tensor.shape)
    elif dim != 0:
        tensor = tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def into_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The dimension that vmap maps over, folded into the channels: (N, C, ...) to (N, B * C, ...)."""
    if dim is None:
        tensor = tensor.unsqueeze(1).expand(-1, size, *tensor.shape[1:])
    elif dim == 0 and tensor.shape[1] == 1:  # one example at a time: no dimensions to swap
        return tensor.reshape(1, size * tensor.shape[2], *tensor.shape[3:])
    elif dim != 1:
        tensor = tensor.movedim(dim, 1)
    return tensor.flatten(1, 2)


def out_of_batch(tensor: Tensor, size: int) -> Tensor:
    """Undoes `into_batch`: (B * N, ...) to (B, N, ...)."""
    return tensor.view(size, tensor.shape[0] // size, *tensor.shape[1:])


def out_of_channels(tensor: Tensor, size: int) -> Tensor:
    """Undoes `into_channels`: (N, B * C, ...) to (N, B, C, ...)."""
    return tensor.view(tensor.shape[0], size, tensor.shape[1] // size, *tensor.shape[2:])
