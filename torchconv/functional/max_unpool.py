"""The partial inverse of max pooling, over one, two and three dimensions."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from torchconv import ops
from torchconv.functional.arguments import IntOrInts, check_pixels, in_float32, is_batched, window_of


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts values back to where max pooling found them, among zeros. Equivalent to `torch.nn.functional.max_unpool1d`.

    Args:
        input: (N, C, L) or (C, L).
        indices: int64, of the same shape, from `max_pool1d` with return_indices: places in the result's L.
        kernel_size, stride, padding: of that pooling, an int; stride defaults to kernel_size.
        output_size: the result's spatial size, or its whole shape; by default the least that the pooling allows.

    Returns:
        (N, C, L'), in the input's memory format.

    Raises:
        RuntimeError: sizes or dtypes that don't go together, or an index outside of the result.
        ValueError: an output_size that such a pooling can't have had.
        TypeError: an argument of another type.
    """
    return _max_unpool("max_unpool1d", 1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts values back to where max pooling found them, among zeros. Equivalent to `torch.nn.functional.max_unpool2d`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        indices: int64, of the same shape, from `max_pool2d` with return_indices: places in the result's H * W.
        kernel_size, stride, padding: of that pooling, one int or (height, width); stride defaults to kernel_size.
        output_size: the result's spatial size, or its whole shape; by default the least that the pooling allows.

    Returns:
        (N, C, H', W'), in the input's memory format.

    Raises:
        RuntimeError: sizes or dtypes that don't go together, or an index outside of the result.
        ValueError: an output_size that such a pooling can't have had.
        TypeError: an argument of another type.
    """
    return _max_unpool("max_unpool2d", 2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts values back to where max pooling found them, among zeros. Equivalent to `torch.nn.functional.max_unpool3d`.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W).
        indices: int64, of the same shape, from `max_pool3d` with return_indices: places in the result's D * H * W.
        kernel_size, stride, padding: that pooling's; one int or (depth, height, width); stride defaults to kernel_size.
        output_size: the result's spatial size, or its whole shape; by default the least that the pooling allows.

    Returns:
        (N, C, D', H', W'), in the input's memory format.

    Raises:
        RuntimeError: sizes or dtypes that don't go together, or an index outside of the result.
        ValueError: an output_size that such a pooling can't have had.
        TypeError: an argument of another type.
    """
    return _max_unpool("max_unpool3d", 3, input, indices, kernel_size, stride, padding, output_size)


def _max_unpool(
    function: str,
    rank: int,
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    output_size: Sequence[int] | None,
) -> Tensor:
    batched = is_batched(function, "input", input, rank)
    if not isinstance(indices, Tensor):
        raise TypeError(f"{function}: indices is {type(indices).__name__}, expected a Tensor")
    if indices.dtype != torch.int64:
        raise RuntimeError(f"{function}: indices has dtype {indices.dtype}, expected torch.int64")
    if indices.shape != input.shape:
        raise RuntimeError(
            f"{function}: indices has shape {tuple(indices.shape)}, expected the input's, {tuple(input.shape)}"
        )
    check_pixels(function, input, rank)
    window = window_of(function, rank, kernel_size, kernel_size if stride is None else stride, padding, 1)
    least = [
        (n - 1) * s + k - 2 * p
        for n, k, s, p in zip(input.shape[-rank:], window.kernel_size, window.stride, window.padding, strict=True)
    ]
    size = _chosen_size(function, rank, output_size, least, window.stride)
    input = in_float32(input)
    pixels = input if batched else input.unsqueeze(0)
    places = indices if batched else indices.unsqueeze(0)
    # The pixels are scattered along the dimension where they lie, so that the result keeps the input's memory format.
    last = ops.is_channels_last(pixels)
    dim = 1 if last else 2
    if last:
        pixels, places = pixels.movedim(1, -1), places.movedim(1, -1)
    pixels, places = pixels.flatten(dim, dim + rank - 1), places.flatten(dim, dim + rank - 1)
    shape = list(pixels.shape)
    shape[dim] = prod(size)
    try:
        output = pixels.new_zeros(shape).scatter(dim, places, pixels).unflatten(dim, size)
    except RuntimeError as error:
        raise RuntimeError(f"{function}: indices has one outside of the output's {tuple(size)} pixels") from error
    if last:
        output = output.movedim(-1, 1)
    return output if batched else output.squeeze(0)


def _chosen_size(
    function: str, rank: int, output_size: Sequence[int] | None, least: list[int], stride: tuple[int, ...]
) -> list[int]:
    """The output's spatial size: the default, or one that is less than a stride away from it."""
    size = list(least)
    if output_size is not None:
        if not isinstance(output_size, (tuple, list)) or not all(isinstance(n, int) for n in output_size):
            raise TypeError(f"{function}: output_size is {output_size!r}, expected {rank} ints or a whole shape")
        size = list(output_size)
        if len(size) == rank + 2:
            size = size[2:]
        if len(size) != rank:
            raise ValueError(f"{function}: output_size is {output_size!r}, expected {rank} sizes or a whole shape")
        for i, (n, default, s) in enumerate(zip(size, least, stride, strict=True)):
            if not default - s < n < default + s:
                raise ValueError(
                    f"{function}: output_size is {output_size!r}, expected between {default - s + 1} and "
                    f"{default + s - 1} for spatial dimension {i}"
                )
    if any(n < 0 for n in size):
        raise ValueError(f"{function}: the output would have spatial shape {tuple(size)}, expected 0 or more")
    return size
