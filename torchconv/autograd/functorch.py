"""How a Function meets torch.func's transforms: what torch.autograd.Function.apply does, at a fifth of its cost.

The general rule must take arguments of any structure: at each level it walks through them with pytree some ten times,
makes a class and binds a signature, 0.3 ms in all, which is more than a small convolution takes. Our Functions take
tensors and constants, flat, never return an argument, and define `vmap`; so that each level is one loop over the
arguments. The names are torch's own internals, the same from 2.10 on; tests/test_transforms.py would see them change.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, _add_batch_dim, _unwrap_batched, _unwrap_for_grad, _wrap_for_grad
from torch._functorch.autograd_function import VmapInfo
from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_current_functorch_interpreter
from torch._functorch.utils import enable_single_level_autograd_function, unwrap_dead_wrappers
from torch.autograd import Function
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction


def transformed(function: type[Function], args: tuple[Any, ...], apply: Callable[..., Any]) -> Any:
    """What `function` gives inside of a transform; `apply` is what calls it at the next level."""
    args = unwrap_dead_wrappers(args)  # what a backward saved of a level that has ended
    interpreter: Any = retrieve_current_functorch_interpreter()
    if interpreter.key() == TransformType.Vmap:
        return _batched(function, args, apply, interpreter)
    if interpreter.key() in (TransformType.Grad, TransformType.Jvp):
        # A tensor of an outer level is a constant at this one, whatever gradient it needs there.
        lifted = [interpreter._cptr.lift(arg) if isinstance(arg, Tensor) else arg for arg in args]
        with enable_single_level_autograd_function():
            return _single_level(function, interpreter.level(), apply).apply(*lifted)
    return function.apply(*args)


def _batched(
    function: type[Function], args: tuple[Any, ...], apply: Callable[..., Any], interpreter: VmapInterpreter
) -> Any:
    """One level of vmap: the rule of `function`, on the tensors inside."""
    level = interpreter.level()
    pairs = [_unwrap_batched(arg, level) if isinstance(arg, Tensor) else (arg, None) for arg in args]
    dims = tuple(dim for _, dim in pairs)
    with interpreter.lower():
        if all(dim is None for dim in dims):
            return apply(*args)
        info = VmapInfo(interpreter.batch_size(), interpreter.randomness())
        output, out_dims = function.vmap(info, dims, *(arg for arg, _ in pairs))
    if isinstance(output, Tensor):
        return _add_batch_dim(output, out_dims, level)
    return tuple(
        part if dim is None else _add_batch_dim(part, dim, level) for part, dim in zip(output, out_dims, strict=True)
    )


@cache
def _single_level(function: type[Function], level: int, apply: Callable[..., Any]) -> Any:
    """`function` as one level of grad or jvp differentiates it."""

    def forward(*args: Any) -> Any:
        inside = [_unwrap_for_grad(arg, level) if isinstance(arg, Tensor) else arg for arg in args]
        lower = retrieve_current_functorch_interpreter().lower()
        # Inside of a Function both modes are off; the next level may differentiate too.
        with torch.enable_grad(), _set_fwd_grad_enabled(True), lower:
            output = apply(*inside)
        if isinstance(output, Tensor):
            return _wrap_for_grad(output, level)
        return tuple(_wrap_for_grad(part, level) for part in output)

    methods = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(function.setup_context),
        "backward": staticmethod(function.backward),
        "jvp": staticmethod(function.jvp),
    }
    return type(function.__name__, (_SingleLevelFunction,), methods)
