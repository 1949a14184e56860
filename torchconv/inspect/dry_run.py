"""A forward pass on tensors that have shapes and no data, and those who watch it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Input: TypeAlias = Tensor | Sequence[int]

# What a picture may measure, for models that are run without being told.
USUAL_SIZES = (224, 32, 28)


class Observer:
    """Is told what happens in a dry run."""

    def begin(self, inputs: Sequence[Tensor]) -> None:
        """The run begins with these inputs."""

    def enter(self, name: str, module: nn.Module) -> None:
        """A module of the model is about to run; its name is that of `named_modules`."""

    def leave(self, name: str, module: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """It has run."""

    def op(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
        """An op has run."""


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of a structure of lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def dry_run(model: nn.Module, input: Input | tuple[Input, ...], *observers: Observer) -> None:
    """Run a model forward without computing or changing anything.

    Args:
        model: in training or evaluation mode, as it is.
        input: a tensor, of which only shape and dtype count, a shape, or a tuple of such. A shape stands for a tensor
            of the model's dtype.
        *observers: who is told.

    Raises:
        RuntimeError: the model depends on the values of tensors, or doesn't take such an input.
        ValueError: it has lazy layers that have not run yet.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"{name}: has no shape before the model has run once, expected initialised parameters")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in _named_tensors(model)}
    like = next((tensor for tensor in fakes.values() if tensor.is_floating_point()), torch.empty(0))
    inputs: list[Tensor] = []
    for given in several_inputs(input):
        if isinstance(given, Tensor):
            inputs.append(mode.from_tensor(given.detach()))
        else:
            with mode:
                inputs.append(torch.empty(tuple(given), dtype=like.dtype, device=like.device))
    for observer in observers:
        observer.begin(inputs)
    with torch.no_grad(), mode, _Ops(observers), _calls(model, observers):
        functional_call(model, fakes, tuple(inputs), tie_weights=False)


def several_inputs(input: Input | tuple[Input, ...]) -> Sequence[Input]:
    """The inputs, of which one may stand for a tuple of one."""
    several = isinstance(input, tuple) and not all(isinstance(size, int) for size in input)
    return cast("tuple[Input, ...]", input) if several else (cast(Input, input),)


def usual_input_size(model: nn.Module) -> tuple[int, ...]:
    """The shape of a picture that a model takes: its `input_dim`, or the first of USUAL_SIZES that it runs on.

    Raises:
        ValueError: it runs on none of them.
    """
    input_dim: Any = getattr(model, "input_dim", None)
    if input_dim is not None:
        return (1, *input_dim)
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None:
        raise ValueError("input_size: expected the shape of an input, as the model has no Conv2d to tell it from")
    for size in USUAL_SIZES:
        shape = (1, first.in_channels, size, size)
        try:
            dry_run(model, shape)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
        else:
            return shape
    raise ValueError(
        f"input_size: expected the shape of an input, as the model takes none of {USUAL_SIZES} pixels: {reason}"
    )


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Of a module in several places once, a tensor of several modules once for each; parameters first."""
    modules = list(model.named_modules())
    for prefix, module in modules:
        yield from module.named_parameters(prefix, recurse=False, remove_duplicate=False)
    for prefix, module in modules:
        yield from module.named_buffers(prefix, recurse=False, remove_duplicate=False)


class _Ops(TorchDispatchMode):
    def __init__(self, observers: Sequence[Observer]) -> None:
        super().__init__()
        self.observers = observers

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        for observer in self.observers:
            observer.op(func, args, kwargs, output)
        return output


@contextmanager
def _calls(model: nn.Module, observers: Sequence[Observer]) -> Iterator[None]:
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, _: Any) -> None:
        for observer in observers:
            observer.enter(names[module], module)

    def leave(module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        for observer in observers:
            observer.leave(names[module], module, tensors_in((inputs, keywords)), tensors_in(output))

    # A hook on all modules at once that takes keywords would leave a trace in torch when it is removed.
    with ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
            hooks.callback(module.register_forward_hook(leave, prepend=True, with_kwargs=True).remove)
        yield
