"""Power-average pooling over one, two and three dimensions."""

from math import inf, prod

from torch import Tensor

from torchconv.functional.arguments import IntOrInts, ints
from torchconv.functional.avg_pool import avg_pool_nd
from torchconv.functional.max_pool import max_pool_nd


def lp_pool1d(
    input: Tensor,
    norm_type: float,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Norm of each window, (sum of x^p)^(1/p). Equivalent to `torch.nn.functional.lp_pool1d`.

    As there, where the sum is zero the gradient is, and a negative sum (odd p) gives what its absolute value gives,
    with its sign, taken to 1/p.

    Args:
        input: (N, C, L) or (C, L).
        norm_type: p; infinity for the maximum.
        kernel_size, stride: in pixels, an int; stride defaults to kernel_size.
        ceil_mode: also pool a last window that juts out behind the input; its mean is taken for the missing pixels.

    Returns:
        (N, C, L'), in the input's memory format.

    Raises:
        RuntimeError: sizes that don't go together, or a norm_type of 0.
        NotImplementedError: a dtype that has no such powers.
        TypeError: an argument of another type.
    """
    return _lp_pool("lp_pool1d", 1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Norm of each window, (sum of x^p)^(1/p). Equivalent to `torch.nn.functional.lp_pool2d`.

    As there, where the sum is zero the gradient is, and a negative sum (odd p) gives what its absolute value gives,
    with its sign, taken to 1/p.

    Args:
        input: (N, C, H, W) or (C, H, W).
        norm_type: p; infinity for the maximum.
        kernel_size, stride: in pixels, one int or (height, width); stride defaults to kernel_size.
        ceil_mode: also pool a last window that juts out behind the input; its mean is taken for the missing pixels.

    Returns:
        (N, C, H', W'), in the input's memory format.

    Raises:
        RuntimeError: sizes that don't go together, or a norm_type of 0.
        NotImplementedError: a dtype that has no such powers.
        TypeError: an argument of another type.
    """
    return _lp_pool("lp_pool2d", 2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor,
    norm_type: float,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Norm of each window, (sum of x^p)^(1/p). Equivalent to `torch.nn.functional.lp_pool3d`.

    As there, where the sum is zero the gradient is, and a negative sum (odd p) gives what its absolute value gives,
    with its sign, taken to 1/p.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W).
        norm_type: p; infinity for the maximum.
        kernel_size, stride: in pixels, one int or (depth, height, width); stride defaults to kernel_size.
        ceil_mode: also pool a last window that juts out behind the input; its mean is taken for the missing pixels.

    Returns:
        (N, C, D', H', W'), in the input's memory format.

    Raises:
        RuntimeError: sizes that don't go together, or a norm_type of 0.
        NotImplementedError: a dtype that has no such powers.
        TypeError: an argument of another type.
    """
    return _lp_pool("lp_pool3d", 3, input, norm_type, kernel_size, stride, ceil_mode)


def _lp_pool(
    function: str,
    rank: int,
    input: Tensor,
    norm_type: float,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    ceil_mode: bool,
) -> Tensor:
    if not isinstance(input, Tensor):
        raise TypeError(f"{function}: input is {type(input).__name__}, expected a Tensor")
    if not isinstance(norm_type, (int, float)):
        raise TypeError(f"{function}: norm_type is {type(norm_type).__name__}, expected a number")
    if norm_type == 0:
        raise RuntimeError(f"{function}: norm_type is 0, expected another number")
    if norm_type == inf:
        return max_pool_nd(function, rank, input.abs(), kernel_size, stride, 0, 1, ceil_mode, False)
    if norm_type == -inf:
        return -max_pool_nd(function, rank, -input.abs(), kernel_size, stride, 0, 1, ceil_mode, False)
    taps = prod(ints(function, "kernel_size", kernel_size, rank, 1))
    mean = avg_pool_nd(function, rank, input.pow(norm_type), kernel_size, stride, 0, ceil_mode, True, None)
    # relu changes nothing but the gradient: where the sum is 0 it is 0, and not the root's infinite one.
    return (mean.sign() * mean.abs().relu()).mul(taps).pow(1.0 / norm_type)
