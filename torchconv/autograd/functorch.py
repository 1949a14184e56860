"""How a Function meets torch.func's transforms: what torch.autograd.Function.apply does, at a tenth of its cost.

The general rule must take arguments of any structure: at each level it walks through them with pytree some ten times,
makes a class and binds a signature, 0.3 ms in all, which is more than a small convolution takes. Our Functions take
tensors and constants, flat, never return an argument, and define `vmap`; so that each level is one loop over the
arguments. The names are torch's own internals, the same from 2.10 on; tests/test_transforms.py would see them change.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._C._functorch import CGradInterpreterPtr, CJvpInterpreterPtr, CVmapInterpreterPtr, TransformType
from torch._functorch.autograd_function import VmapInfo
from torch.autograd import Function
from torch.autograd.function import _SingleLevelFunction


def transformed(function: type[Function], args: tuple[Any, ...], apply: Callable[..., Any]) -> Any:
    """What `function` gives inside of a transform; `apply` is what calls it at the next level."""
    # A backward pass may have saved tensors of a level that has ended.
    args = tuple([functorch.unwrap_if_dead(arg) if isinstance(arg, Tensor) else arg for arg in args])
    interpreter: Any = functorch.peek_interpreter_stack()
    kind = interpreter.key()
    if kind == TransformType.Vmap:
        return _batched(function, args, apply, CVmapInterpreterPtr(interpreter))
    if kind not in (TransformType.Grad, TransformType.Jvp):
        return function.apply(*args)
    pointer: Any = CGradInterpreterPtr(interpreter) if kind == TransformType.Grad else CJvpInterpreterPtr(interpreter)
    # A tensor of an outer level is a constant at this one, whatever gradient it needs there.
    lifted = [pointer.lift(arg) if isinstance(arg, Tensor) else arg for arg in args]
    allowed = functorch.get_single_level_autograd_function_allowed()
    functorch.set_single_level_autograd_function_allowed(True)
    try:
        return _single_level(function, pointer.level(), kind, apply).apply(*lifted)
    finally:
        functorch.set_single_level_autograd_function_allowed(allowed)


@contextmanager
def _next_level() -> Iterator[None]:
    level = functorch.pop_dynamic_layer_stack()
    try:
        yield
    finally:
        functorch.push_dynamic_layer_stack(level)


def _batched(
    function: type[Function], args: tuple[Any, ...], apply: Callable[..., Any], interpreter: CVmapInterpreterPtr
) -> Any:
    """One level of vmap: the rule of `function`, on the tensors inside."""
    level = interpreter.level()
    inside, dims = [], []
    for arg in args:
        tensor, dim = functorch._unwrap_batched(arg, level) if isinstance(arg, Tensor) else (arg, None)
        inside.append(tensor)
        dims.append(dim)
    with _next_level():
        if all(dim is None for dim in dims):
            return apply(*args)
        info = VmapInfo(interpreter.batchSize(), "error")  # nothing here is random
        output, out_dims = function.vmap(info, tuple(dims), *inside)
    if isinstance(output, Tensor):
        return functorch._add_batch_dim(output, out_dims, level)
    return tuple(
        part if dim is None else functorch._add_batch_dim(part, dim, level)
        for part, dim in zip(output, out_dims, strict=True)
    )


@cache
def _single_level(function: type[Function], level: int, kind: TransformType, apply: Callable[..., Any]) -> Any:
    """`function` as one level of grad or jvp differentiates it."""

    def forward(*args: Any) -> Any:
        inside = [functorch._unwrap_for_grad(arg, level) if isinstance(arg, Tensor) else arg for arg in args]
        interpreter: Any = functorch.peek_interpreter_stack()
        # Inside of a Function both modes are off. The next level differentiates as it did where this one began.
        backward, dual = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
        jvp = kind == TransformType.Jvp
        torch._C._set_grad_enabled(jvp or CGradInterpreterPtr(interpreter).prevGradMode())
        torch._C._set_fwd_grad_enabled(not jvp or CJvpInterpreterPtr(interpreter).prevFwdGradMode())
        try:
            with _next_level():
                output = apply(*inside)
        finally:
            torch._C._set_grad_enabled(backward)
            torch._C._set_fwd_grad_enabled(dual)
        if isinstance(output, Tensor):
            return functorch._wrap_for_grad(output, level)
        return tuple([functorch._wrap_for_grad(part, level) for part in output])

    methods = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(function.setup_context),
        "backward": staticmethod(function.backward),
        "jvp": staticmethod(function.jvp),
    }
    return type(function.__name__, (_SingleLevelFunction,), methods)
