"""Adaptive average and max pooling over one, two and three dimensions: the output's size is given, not the window's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchconv import autograd
from torchconv.functional.arguments import IntOrInts, check_pixels, in_float32, ints, is_batched

OutputSize = int | None | Sequence[int | None]


def adaptive_avg_pool1d(input: Tensor, output_size: IntOrInts) -> Tensor:
    """Means of boxes that share the input out evenly. Equivalent to `torch.nn.functional.adaptive_avg_pool1d`.

    Box o of a dimension covers floor(o * size / output_size) to ceil((o + 1) * size / output_size).

    Args:
        input: (N, C, L) or (C, L).
        output_size: L', an int.

    Returns:
        (N, C, L'), in the input's memory format.

    Raises:
        RuntimeError: sizes that don't go together.
        ValueError: more output sizes than the input has dimensions for.
        NotImplementedError: a dtype that is not floating-point.
        TypeError: an argument of another type.
    """
    return _adaptive_avg_pool("adaptive_avg_pool1d", 1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: OutputSize) -> Tensor:
    """Means of boxes that share the input out evenly. Equivalent to `torch.nn.functional.adaptive_avg_pool2d`.

    Box o of a dimension covers floor(o * size / output_size) to ceil((o + 1) * size / output_size).

    Args:
        input: (N, C, H, W) or (C, H, W).
        output_size: (H', W'), or one int for both; None keeps the input's size.

    Returns:
        (N, C, H', W'), in the input's memory format.

    Raises:
        RuntimeError: sizes that don't go together.
        ValueError: more output sizes than the input has dimensions for.
        NotImplementedError: a dtype that is not floating-point.
        TypeError: an argument of another type.
    """
    return _adaptive_avg_pool("adaptive_avg_pool2d", 2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: OutputSize) -> Tensor:
    """Means of boxes that share the input out evenly. Equivalent to `torch.nn.functional.adaptive_avg_pool3d`.

    Box o of a dimension covers floor(o * size / output_size) to ceil((o + 1) * size / output_size).

    Args:
        input: (N, C, D, H, W) or (C, D, H, W).
        output_size: (D', H', W'), or one int for all; None keeps the input's size.

    Returns:
        (N, C, D', H', W'), in the input's memory format.

    Raises:
        RuntimeError: sizes that don't go together.
        ValueError: more output sizes than the input has dimensions for.
        NotImplementedError: a dtype that is not floating-point.
        TypeError: an argument of another type.
    """
    return _adaptive_avg_pool("adaptive_avg_pool3d", 3, input, output_size)


def adaptive_max_pool1d(input: Tensor, output_size: IntOrInts, return_indices: bool = False) -> Any:
    """Maxima of boxes that share the input out evenly.

    Equivalent to `torch.nn.functional.adaptive_max_pool1d`, bit for bit. Box o of a dimension covers
    floor(o * size / output_size) to ceil((o + 1) * size / output_size). Ties go to the first maximum, a NaN wins.

    Args:
        input: (N, C, L) or (C, L).
        output_size: L', an int.
        return_indices: also return where each maximum was found.

    Returns:
        (N, C, L'), in the input's memory format; with return_indices a pair with the int64 indices into L.

    Raises:
        RuntimeError: sizes that don't go together.
        ValueError: more output sizes than the input has dimensions for.
        NotImplementedError: a dtype that is not floating-point.
        TypeError: an argument of another type.
    """
    return _adaptive_max_pool("adaptive_max_pool1d", 1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: OutputSize, return_indices: bool = False) -> Any:
    """Maxima of boxes that share the input out evenly.

    Equivalent to `torch.nn.functional.adaptive_max_pool2d`, bit for bit. Box o of a dimension covers
    floor(o * size / output_size) to ceil((o + 1) * size / output_size). Ties go to the first maximum, a NaN wins.

    Args:
        input: (N, C, H, W) or (C, H, W).
        output_size: (H', W'), or one int for both; None keeps the input's size.
        return_indices: also return where each maximum was found.

    Returns:
        (N, C, H', W'), in the input's memory format; with return_indices a pair with the int64 indices into H * W.

    Raises:
        RuntimeError: sizes that don't go together.
        ValueError: more output sizes than the input has dimensions for.
        NotImplementedError: a dtype that is not floating-point.
        TypeError: an argument of another type.
    """
    return _adaptive_max_pool("adaptive_max_pool2d", 2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: OutputSize, return_indices: bool = False) -> Any:
    """Maxima of boxes that share the input out evenly.

    Equivalent to `torch.nn.functional.adaptive_max_pool3d`, bit for bit. Box o of a dimension covers
    floor(o * size / output_size) to ceil((o + 1) * size / output_size). Ties go to the first maximum, a NaN wins.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W).
        output_size: (D', H', W'), or one int for all; None keeps the input's size.
        return_indices: also return where each maximum was found.

    Returns:
        (N, C, D', H', W'), in the input's memory format; with return_indices a pair with int64 indices into D * H * W.

    Raises:
        RuntimeError: sizes that don't go together.
        ValueError: more output sizes than the input has dimensions for.
        NotImplementedError: a dtype that is not floating-point.
        TypeError: an argument of another type.
    """
    return _adaptive_max_pool("adaptive_max_pool3d", 3, input, output_size, return_indices)


def _adaptive_avg_pool(function: str, rank: int, input: Tensor, output_size: OutputSize) -> Tensor:
    input, size, batched = _checked(function, rank, input, output_size)
    output = autograd.adaptive_avg_pool(input, size)
    return output if batched else output.squeeze(0)


def _adaptive_max_pool(function: str, rank: int, input: Tensor, output_size: OutputSize, return_indices: bool) -> Any:
    input, size, batched = _checked(function, rank, input, output_size)
    check_pixels(function, input, rank)
    output, indices = autograd.adaptive_max_pool(input, size)
    if not batched:
        output, indices = output.squeeze(0), indices.squeeze(0)
    return (output, indices) if return_indices else output


def _checked(function: str, rank: int, input: Tensor, output_size: OutputSize) -> tuple[Tensor, torch.Size, bool]:
    """The input with a batch, the output's spatial size, and whether there was a batch."""
    sizes = output_size
    if isinstance(input, Tensor) and rank > 1 and isinstance(output_size, (tuple, list)):
        if input.dim() <= len(output_size):  # torch's kind of error, for a tuple
            raise ValueError(
                f"{function}: input has shape {tuple(input.shape)}, expected more than {len(output_size)} dimensions"
            )
        if len(output_size) == rank:  # None keeps the input's size
            kept = input.shape[-rank:]
            sizes = tuple(n if size is None else size for size, n in zip(output_size, kept, strict=True))
    batched = is_batched(function, "input", input, rank)
    size = torch.Size(ints(function, "output_size", sizes, rank, 0))
    if rank == 3 or 0 in input.shape[-rank:]:  # torch takes the mean of no channels at all, but not in volumes
        check_pixels(function, input, rank)
    if not input.is_floating_point() or input.element_size() == 1:
        raise NotImplementedError(f"{function}: input has dtype {input.dtype}, expected a floating-point one")
    if rank == 3:
        input = in_float32(input)
    return (input if batched else input.unsqueeze(0)), size, batched
