"""How a Function meets torch.func's transforms: what torch.autograd.Function.apply does, at a tenth of its cost.

The general rule must take arguments of any structure: at each level it walks through them with pytree some ten times,
makes a class and binds a signature, 0.3 ms in all, which is more than a small convolution takes. Our Functions take
tensors, then constants, flat, never return an argument, and define `vmap`; so that each level is one loop over the
tensors. The names are torch's own internals, the same from 2.10 on; tests/test_transforms.py would see them change.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._C._functorch import CGradInterpreterPtr, CJvpInterpreterPtr, TransformType
from torch._functorch.autograd_function import VmapInfo
from torch.autograd import Function, forward_ad
from torch.autograd.function import _SingleLevelFunction

# As ints: torch's enumeration takes a microsecond to compare.
_VMAP, _GRAD, _JVP = (int(kind.value) for kind in (TransformType.Vmap, TransformType.Grad, TransformType.Jvp))


def is_recorded(args: Iterable[Any]) -> bool:
    """Whether a gradient or a tangent is to pass through what is computed of these."""
    if torch.is_grad_enabled():
        for arg in args:
            if isinstance(arg, Tensor) and arg.requires_grad:
                return True
    return forward_ad._current_level >= 0


def recorded_by_a_level(function: type[Function]) -> Any:
    """`function` as one level of grad or jvp differentiates it; its last argument is a tuple of what it gives."""

    def forward(ctx: Any, *args: Any) -> Any:
        inputs, (output,) = args[:-1], args[-1]
        function.setup_context(ctx, inputs, output)
        return output

    methods = {
        "forward": staticmethod(forward),
        "backward": staticmethod(lambda ctx, *grads: (*function.backward(ctx, *grads), None)),
        "jvp": staticmethod(lambda ctx, *tangents: function.jvp(ctx, *tangents[:-1])),
    }
    return type(function.__name__, (_SingleLevelFunction,), methods)


class Forms(NamedTuple):
    """A Function as it is defined, as it runs outside of all transforms, and as one level of them records it."""

    defined: type[Function]
    eager: Any
    recorded: Any


def applied(forms: Forms, tensors: Sequence[Tensor | None], constants: tuple[Any, ...]) -> Any:
    """What a Function gives, by the rules of the transform that it is called in, if any."""
    if not torch._C._are_functorch_transforms_active():
        call = forms.eager.apply if is_recorded(tensors) else forms.defined.forward
        return call(*tensors, *constants)
    interpreter: Any = functorch.peek_interpreter_stack()
    kind, level = int(interpreter.key()), interpreter.level()
    if kind == _VMAP:
        return _batched(forms, tensors, constants, level)
    if kind == _GRAD:
        return _differentiated(forms, tensors, constants, level, CGradInterpreterPtr(interpreter))
    if kind == _JVP:
        return _differentiated(forms, tensors, constants, level, CJvpInterpreterPtr(interpreter))
    return forms.defined.apply(*tensors, *constants)


def _differentiated(
    forms: Forms,
    tensors: Sequence[Tensor | None],
    constants: tuple[Any, ...],
    level: int,
    interpreter: CGradInterpreterPtr | CJvpInterpreterPtr,
) -> Any:
    """One level of grad or jvp: what the next level gives, recorded at this one."""
    inside: list[Tensor | None] = []
    lifted: list[Tensor | None] = []
    for tensor in tensors:
        value = None if tensor is None else functorch._unwrap_for_grad(tensor, level)
        inside.append(value)
        # A tensor of an outer level is a constant at this one, whatever gradient it needs there.
        lifted.append(interpreter.lift(tensor) if value is tensor and value is not None else tensor)
    # The next level differentiates as it did where this one began.
    if isinstance(interpreter, CGradInterpreterPtr):
        switch, on, before = torch._C._set_grad_enabled, torch.is_grad_enabled(), interpreter.prevGradMode()
    else:
        switch, on = torch._C._set_fwd_grad_enabled, torch._C._is_fwd_grad_enabled()
        before = interpreter.prevFwdGradMode()
    switch(on and before)
    below = functorch.pop_dynamic_layer_stack()
    try:
        output = applied(forms, inside, constants)
    finally:
        functorch.push_dynamic_layer_stack(below)
        switch(on)
    if isinstance(output, Tensor):
        output = functorch._wrap_for_grad(output, level)
    else:
        output = tuple([functorch._wrap_for_grad(part, level) for part in output])
    if not is_recorded(lifted):
        return output
    allowed = functorch.get_single_level_autograd_function_allowed()
    functorch.set_single_level_autograd_function_allowed(True)
    try:
        return forms.recorded.apply(*lifted, *constants, (output,))
    finally:
        functorch.set_single_level_autograd_function_allowed(allowed)


def _batched(forms: Forms, tensors: Sequence[Tensor | None], constants: tuple[Any, ...], level: int) -> Any:
    """One level of vmap: the rule of the Function, on the tensors inside."""
    inside: list[Tensor | None] = []
    dims: list[int | None] = []
    info = None
    for tensor in tensors:
        if tensor is None:
            value, dim = None, None
        else:
            value, dim = functorch._unwrap_batched(tensor, level)
            if dim is not None and info is None:
                info = VmapInfo(value.shape[dim], "error")  # nothing here is random
        inside.append(value)
        dims.append(dim)
    below = functorch.pop_dynamic_layer_stack()
    try:
        if info is None:
            return applied(forms, tensors, constants)
        output, out_dims = forms.defined.vmap(info, (*dims, *[None] * len(constants)), *inside, *constants)
    finally:
        functorch.push_dynamic_layer_stack(below)
    if isinstance(output, Tensor):
        return functorch._add_batch_dim(output, out_dims, level)
    return tuple(
        part if dim is None else functorch._add_batch_dim(part, dim, level)
        for part, dim in zip(output, out_dims, strict=True)
    )
