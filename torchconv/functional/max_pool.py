"""Max pooling over one, two and three dimensions."""

from typing import Any

import torch
from torch import Tensor

from torchconv import autograd, reference
from torchconv.autograd.functorch import is_recorded
from torchconv.functional.arguments import IntOrInts, in_float32, is_batched, pool_window, pooled_size
from torchconv.functional.known_calls import KnownCalls, key_of

# The windows of calls with a batch.
_known: KnownCalls[autograd.Window] = KnownCalls()


def max_pool1d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum of each window. Equivalent to `torch.nn.functional.max_pool1d`, bit for bit.

    Ties go to the first maximum, a NaN wins, padding (at most half of the kernel) never does. What is saved for
    backward is one byte per window.

    Args:
        input: (N, C, L) or (C, L).
        kernel_size, stride, padding, dilation: in pixels, an int; stride defaults to kernel_size.
        ceil_mode: also pool a last window that juts out behind the input.
        return_indices: also return where each maximum was found.

    Returns:
        (N, C, L'), in the input's memory format; with return_indices a pair with the int64 indices into L.

    Raises:
        RuntimeError: sizes that don't go together.
        NotImplementedError: a dtype without an order.
        TypeError: an argument of another type.
    """
    return max_pool_nd("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum of each window. Equivalent to `torch.nn.functional.max_pool2d`, bit for bit.

    Ties go to the first maximum, a NaN wins, padding (at most half of the kernel) never does. What is saved for
    backward is one byte per window.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding, dilation: in pixels, one int or (height, width); stride defaults to kernel_size.
        ceil_mode: also pool a last window that juts out behind the input.
        return_indices: also return where each maximum was found.

    Returns:
        (N, C, H', W'), in the input's memory format; with return_indices a pair with the int64 indices into H * W.

    Raises:
        RuntimeError: sizes that don't go together.
        NotImplementedError: a dtype without an order.
        TypeError: an argument of another type.
    """
    return max_pool_nd("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum of each window. Equivalent to `torch.nn.functional.max_pool3d`, bit for bit.

    Ties go to the first maximum, a NaN wins, padding (at most half of the kernel) never does. What is saved for
    backward is one byte per window.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W).
        kernel_size, stride, padding, dilation: one int or (depth, height, width); stride defaults to kernel_size.
        ceil_mode: also pool a last window that juts out behind the input.
        return_indices: also return where each maximum was found.

    Returns:
        (N, C, D', H', W'), in the input's memory format; with return_indices a pair with int64 indices into D * H * W.

    Raises:
        RuntimeError: sizes that don't go together.
        NotImplementedError: a dtype without an order.
        TypeError: an argument of another type.
    """
    return max_pool_nd("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool_nd(
    function: str,
    rank: int,
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    dilation: IntOrInts,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    """Max pooling over `rank` dimensions, for the function of this name."""
    arguments = kernel_size, stride, padding, dilation, ceil_mode
    key = key_of(input, arguments, rank)
    window = _known.find(key)
    batched = True
    if window is None:
        batched = is_batched(function, "input", input, rank)
        window = pool_window(function, rank, kernel_size, stride, padding, dilation)
        if input.is_complex() or input.dtype == torch.bool or (input.is_floating_point() and input.element_size() == 1):
            raise NotImplementedError(
                f"{function}: input has dtype {input.dtype}, expected one whose values can be ordered"
            )
        pooled_size(function, input, window, ceil_mode)
        if rank == 3:
            input = in_float32(input)
        if batched:
            _known.add(key, window, arguments)
    batch = input if batched else input.unsqueeze(0)
    # Under a transform, a tensor of another level may be what gets a gradient.
    recorded = is_recorded([input]) or torch._C._are_functorch_transforms_active()
    save_positions = bool(return_indices) or recorded
    output, positions = autograd.max_pool(batch, window, ceil_mode, save_positions)
    if not return_indices:
        return output if batched else output.squeeze(0)
    indices = reference.max_pool_indices(positions, batch.shape[2:], *window)
    return (output, indices) if batched else (output.squeeze(0), indices.squeeze(0))
