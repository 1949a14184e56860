"""Max pooling over one, two and three dimensions."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchconv import autograd, reference
from torchconv.autograd import Window
from torchconv.functional.arguments import IntOrInts, check_addressable, check_fits, ints, is_batched


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
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


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
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


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
    return _max_pool("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _max_pool(
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
    batched = is_batched(function, "input", input, rank)
    kernel = ints(function, "kernel_size", kernel_size, rank, 1)
    no_stride = stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0)
    window = Window(
        kernel,
        kernel if no_stride else ints(function, "stride", stride, rank, 1),
        ints(function, "padding", padding, rank, 0),
        ints(function, "dilation", dilation, rank, 1),
    )
    for k, p in zip(window.kernel_size, window.padding, strict=True):
        if 2 * p > k:
            raise RuntimeError(
                f"{function}: padding is {padding!r}, expected at most half of kernel_size, {kernel_size!r}"
            )
    if 0 in input.shape[-rank - 1 :]:
        raise RuntimeError(
            f"{function}: input has shape {tuple(input.shape)}, expected no empty dimension but the batch"
        )
    if input.is_complex() or input.dtype == torch.bool or (input.is_floating_point() and input.element_size() == 1):
        raise NotImplementedError(
            f"{function}: input has dtype {input.dtype}, expected one whose values can be ordered"
        )
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"{function}: ceil_mode is {ceil_mode!r}, expected a bool")
    check_fits(function, window, input.shape[-rank:])
    output_size = reference.output_size(input.shape[-rank:], *window, ceil_mode)
    check_addressable(function, input, [*input.shape[:-rank], *output_size], window)
    batch = input if batched else input.unsqueeze(0)
    save_positions = return_indices or torch.is_grad_enabled() or forward_ad._current_level >= 0
    output, positions = autograd.max_pool(batch, window, ceil_mode, save_positions)
    if not return_indices:
        return output if batched else output.squeeze(0)
    indices = reference.max_pool_indices(positions, batch.shape[2:], *window)
    return (output, indices) if batched else (output.squeeze(0), indices.squeeze(0))
