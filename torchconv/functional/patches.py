"""Convolution with another inner product: im2col, the caller's function of patches and weight, and the way back."""

from collections.abc import Callable
from math import inf, prod

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torchconv import autograd
from torchconv.functional.arguments import (
    IntOrInts,
    check_channels,
    check_operands,
    conv_window,
    ints,
    is_batched,
)

Reduction = Callable[[Tensor, Tensor], Tensor]


def conv_with(
    function: Reduction,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: str | IntOrInts = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_value: float = 0.0,
    block: int | None = None,
) -> Tensor:
    """Convolution in one to three dimensions with `function` in the place of the inner product.

    `function(patches, weight)` takes patches (N, groups, K, P) and weight (groups, O / groups, K) to
    (N, groups, O / groups, P). K = C / groups * taps counts the channels of a group and the taps of the kernel, the
    taps fastest; P counts the positions of the window. `lambda patches, weight: weight @ patches` is the convolution
    of `torch.nn.functional`. Derivatives of every order, torch.func's transforms and torch.compile see what `function`
    is made of.

    Args:
        function: as above, not changing its arguments; with `block` a position's result depends on its own patch only.
        input: (N, C, *spatial) or (C, *spatial).
        weight: (O, C / groups, *kernel_size), of one to three spatial dimensions.
        bias: (O), added to the result, or None.
        stride, dilation: in pixels, one int or one per spatial dimension.
        padding: pixels on each side; or "valid" (none), or "same" (as many as keep the size; stride 1 only).
        groups: channels are split into this many groups that don't see each other.
        padding_value: what stands in the padding: 0 for a sum, -inf for a maximum.
        block: `function` gets at most this many positions at once, and runs once more for each block in backward
            instead of keeping what it computed in between (but not within torch.func.grad and its kin, which know no
            recomputation). None: all positions at once, everything kept.

    Returns:
        (N, O, *size), or (O, *size) for an input without a batch, size = (spatial + 2 padding - dilation
        (kernel_size - 1) - 1) // stride + 1, in the dtype that `function` and bias give.

    Raises:
        RuntimeError: shapes, sizes or dtypes that don't go together, an unknown padding string, or a result of
            `function` that has another shape.
        TypeError: an argument, or a result of `function`, of another type.
    """
    if not callable(function):
        raise TypeError(f"conv_with: function is {type(function).__name__}, expected a callable of patches and weight")
    if not isinstance(weight, Tensor):
        raise TypeError(f"conv_with: weight is {type(weight).__name__}, expected a Tensor")
    rank = weight.dim() - 2
    if rank not in (1, 2, 3):
        raise RuntimeError(f"conv_with: weight has shape {tuple(weight.shape)}, expected 3, 4 or 5 dimensions")
    batched = is_batched("conv_with", "input", input, rank)
    groups = check_operands("conv_with", rank, input, weight, bias, groups)
    out_channels = weight.shape[0]
    check_channels("conv_with", rank, input, weight, bias, groups)
    _check_padding_value(padding_value, input.dtype)
    if block is not None:
        (block,) = ints("conv_with", "block", block, 1, 1)

    batch = input if batched else input.unsqueeze(0)
    batch, window, size = conv_window("conv_with", batch, weight, stride, padding, dilation, padding_value)
    if padding_value != 0:
        sides = [side for p in reversed(window.padding) for side in (p, p)]
        batch = torch.nn.functional.pad(batch, sides, value=padding_value)
        window = window._replace(padding=(0,) * rank)

    rows = weight.shape[1] * prod(window.kernel_size)
    patches = autograd.im2col(batch, window).reshape(batch.shape[0], groups, rows, prod(size))
    matrix = weight.reshape(groups, out_channels // groups, rows)
    if block is None:
        output = _reduced(function, patches, matrix)
    else:
        output = torch.cat([_recomputed(function, part, matrix) for part in patches.split(block, 3)], 3)
    output = output.reshape(batch.shape[0], out_channels, *size)
    if bias is not None:
        output = output + bias.reshape(-1, *[1] * rank)
    return output if batched else output.squeeze(0)


def _reduced(function: Reduction, patches: Tensor, weight: Tensor) -> Tensor:
    """The function's result, once its shape was checked."""
    output = function(patches, weight)
    if not isinstance(output, Tensor):
        raise TypeError(f"conv_with: function returned {type(output).__name__}, expected a Tensor")
    expected = (patches.shape[0], *weight.shape[:2], patches.shape[3])
    if output.shape != expected:
        raise RuntimeError(
            f"conv_with: function returned shape {tuple(output.shape)}, expected {expected}, "
            f"which is (N, groups, out_channels / groups, positions)"
        )
    return output


def _recomputed(function: Reduction, patches: Tensor, weight: Tensor) -> Tensor:
    """The same, keeping no more than the arguments for backward."""
    if torch._C._are_functorch_transforms_active():  # checkpoint would compute outside of them what was inside
        return _reduced(function, patches, weight)
    return checkpoint(_reduced, function, patches, weight, use_reentrant=False)


def _check_padding_value(value: float, dtype: torch.dtype) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"conv_with: padding_value is {type(value).__name__}, expected a number")
    if dtype.is_floating_point or dtype.is_complex:
        held = not abs(value) > torch.finfo(dtype).max or abs(value) == inf
    elif dtype == torch.bool:
        held = value in (0, 1)
    else:
        held = torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max and value == int(value)
    if not held:
        raise RuntimeError(f"conv_with: padding_value is {value!r}, expected a value of the input's dtype, {dtype}")
