"""Average pooling over one, two and three dimensions."""

from operator import index

import torch
from torch import Tensor

from torchconv import autograd
from torchconv.functional.arguments import IntOrInts, in_float32, is_batched, pool_window, pooled_size
from torchconv.functional.known_calls import KnownCalls, key_of

# The windows of calls with a batch.
_known: KnownCalls[autograd.Window] = KnownCalls()


def avg_pool1d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean of each window. Equivalent to `torch.nn.functional.avg_pool1d`.

    Args:
        input: (N, C, L) or (C, L).
        kernel_size, stride, padding: in pixels, an int; stride defaults to kernel_size.
        ceil_mode: also pool a last window that juts out behind the input.
        count_include_pad: whether zeros of the padding count as pixels.

    Returns:
        (N, C, L'), in the input's memory format.

    Raises:
        RuntimeError: sizes that don't go together.
        NotImplementedError: a dtype that is neither floating-point nor int64.
        TypeError: an argument of another type.
    """
    counting = ceil_mode, count_include_pad, None
    return avg_pool_nd("avg_pool1d", 1, input, kernel_size, stride, padding, *counting)


def avg_pool2d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean of each window. Equivalent to `torch.nn.functional.avg_pool2d`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding: in pixels, one int or (height, width); stride defaults to kernel_size.
        ceil_mode: also pool a last window that juts out behind the input.
        count_include_pad: whether zeros of the padding count as pixels.
        divisor_override: what every sum is divided by, instead of the window's pixels.

    Returns:
        (N, C, H', W'), in the input's memory format.

    Raises:
        RuntimeError: sizes that don't go together.
        NotImplementedError: a dtype that is neither floating-point nor int64.
        TypeError: an argument of another type.
    """
    counting = ceil_mode, count_include_pad, divisor_override
    return avg_pool_nd("avg_pool2d", 2, input, kernel_size, stride, padding, *counting)


def avg_pool3d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean of each window. Equivalent to `torch.nn.functional.avg_pool3d`.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W).
        kernel_size, stride, padding: in pixels, one int or (depth, height, width); stride defaults to kernel_size.
        ceil_mode: also pool a last window that juts out behind the input.
        count_include_pad: whether zeros of the padding count as pixels.
        divisor_override: what every sum is divided by, instead of the window's pixels.

    Returns:
        (N, C, D', H', W'), in the input's memory format.

    Raises:
        RuntimeError: sizes that don't go together.
        NotImplementedError: a dtype that is neither floating-point nor int64.
        TypeError: an argument of another type.
    """
    counting = ceil_mode, count_include_pad, divisor_override
    return avg_pool_nd("avg_pool3d", 3, input, kernel_size, stride, padding, *counting)


def avg_pool_nd(
    function: str,
    rank: int,
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Average pooling over `rank` dimensions, for the function of this name."""
    counting = ceil_mode, count_include_pad, divisor_override
    arguments = kernel_size, stride, padding, *counting
    key = key_of(input, arguments, rank)
    known = _known.find(key)
    if known is not None:
        return autograd.avg_pool(input, known, *counting)
    batched = is_batched(function, "input", input, rank)
    window = pool_window(function, rank, kernel_size, stride, padding, 1)
    if not isinstance(count_include_pad, bool):
        raise TypeError(f"{function}: count_include_pad is {count_include_pad!r}, expected a bool")
    if divisor_override is not None:
        if isinstance(divisor_override, (bool, float)) or not hasattr(divisor_override, "__index__"):
            raise TypeError(f"{function}: divisor_override is {divisor_override!r}, expected an int or None")
        divisor_override = index(divisor_override)
        if divisor_override == 0:
            raise RuntimeError(f"{function}: divisor_override is 0, expected another number")
    if input.element_size() == 1 or not (input.is_floating_point() or input.dtype == torch.int64):
        raise NotImplementedError(f"{function}: input has dtype {input.dtype}, expected a floating-point one or int64")
    pooled_size(function, input, window, ceil_mode)
    if rank == 3:
        input = in_float32(input)
        if any(k > n for k, n in zip(window.kernel_size, input.shape[-rank:], strict=True)):  # torch's rule for volumes
            raise RuntimeError(
                f"{function}: kernel_size is {kernel_size!r}, expected at most the input's {tuple(input.shape[-rank:])}"
            )
    if batched:
        _known.add(key, window, arguments)
    batch = input if batched else input.unsqueeze(0)
    output = autograd.avg_pool(batch, window, ceil_mode, count_include_pad, divisor_override)
    return output if batched else output.squeeze(0)
