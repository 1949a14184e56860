"""Convolution with what usually follows it, as one step: less is kept for the backward pass than by its pieces."""

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from torchconv import autograd
from torchconv.autograd import ConvGeometry
from torchconv.autograd.functorch import is_recorded
from torchconv.autograd.recompute import Operands, remember
from torchconv.functional.arguments import IntOrInts, pool_window, pooled_size
from torchconv.functional.conv import conv_operands
from torchconv.functional.known_calls import KnownCalls, key_of
from torchconv.functional.max_pool import max_pool_nd
from torchconv.reference import output_size

# The windows of poolings that fit their convolution.
_known: KnownCalls[autograd.Window] = KnownCalls()


def conv_relu2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: str | IntOrInts = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    max_value: float = inf,
    recompute: bool = False,
) -> Tensor:
    """`relu(conv2d(...))`, which keeps one bit of each output for the backward pass.

    The gradient of the ReLU is zero where its input is zero or less, as torch's, or a finite `max_value` or more.
    Differentiable to any order.

    Args:
        input, weight, bias, stride, padding, dilation, groups: see `torchconv.functional.conv2d`.
        max_value: the most that an output is: 6 for `relu6(conv2d(...))`.
        recompute: whether a `conv_relu2d` or `conv_relu_pool2d` that takes the output computes it again in its backward
            pass, of `input`, instead of keeping it: less where `input` is small and there anyway, as a picture is.

    Returns:
        (N, O, H', W'), or (O, H', W') for an input without a batch, as `conv2d`.

    Raises:
        RuntimeError, TypeError: as `conv2d`.
        ValueError: `max_value` is not more than 0.
    """
    if not max_value > 0:
        raise ValueError(f"conv_relu2d: max_value is {max_value}, expected more than 0")
    operands = conv_operands("conv_relu2d", 2, input, weight, bias, stride, padding, dilation, groups)
    input, weight, bias, geometry, batched = operands
    if _composed(input):
        values = autograd.conv(input, weight, bias, geometry)
        output = torch.relu(values) if max_value == inf else F.hardtanh(values, 0.0, max_value)
    else:

        def compute(*operands: Tensor | None) -> Tensor:
            return autograd.conv_relu(*operands, geometry, is_recorded(operands), max_value)[0]

        output = _computed(compute, (input, weight, bias), recompute)
    return output if batched else output.squeeze(0)


def conv_relu_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: str | IntOrInts = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    pool_kernel_size: IntOrInts = 2,
    pool_stride: IntOrInts | None = None,
    pool_padding: IntOrInts = 0,
    pool_dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    recompute: bool = False,
) -> Tensor:
    """`max_pool2d(relu(conv2d(...)))`, which keeps a byte and a bit of each pooled output for the backward pass.

    The convolution's own output is not kept. Differentiable to any order.

    Args:
        input, weight, bias, stride, padding, dilation, groups: see `torchconv.functional.conv2d`.
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode: see `torchconv.functional.max_pool2d`;
            `pool_stride` defaults to `pool_kernel_size`.
        recompute: see `conv_relu2d`.

    Returns:
        (N, O, H', W'), or (O, H', W') for an input without a batch, as `max_pool2d`.

    Raises:
        RuntimeError, TypeError: as `conv2d` and `max_pool2d`.
    """
    operands = conv_operands("conv_relu_pool2d", 2, input, weight, bias, stride, padding, dilation, groups)
    input, weight, bias, geometry, batched = operands
    pooling = (pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode)
    if _composed(input):
        values = torch.relu(autograd.conv(input, weight, bias, geometry))
        output = max_pool_nd("conv_relu_pool2d", 2, values, *pooling, return_indices=False)
    else:
        key = key_of(input, pooling, weight.shape, geometry)
        pool = _known.find(key)
        if pool is None:
            pool = pool_window("conv_relu_pool2d", 2, *pooling[:4])
            _check_pooling(input, weight, geometry, pool, ceil_mode)
            _known.add(key, pool, pooling)

        def compute(*operands: Tensor | None) -> Tensor:
            return autograd.conv_relu_pool(*operands, geometry, is_recorded(operands), pool, ceil_mode)[0]

        output = _computed(compute, (input, weight, bias), recompute)
    return output if batched else output.squeeze(0)


def _composed(input: Tensor) -> bool:
    """Whether the pieces do it: for transforms, forward mode and compilers, and where there are no kernels."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or input.dtype not in (torch.float32, torch.float64)
    )


def _computed(compute: Callable[..., Tensor], operands: Operands, recompute: bool) -> Tensor:
    output = compute(*operands)
    if recompute and output.requires_grad:
        remember(output, compute, operands)
    return output


def _check_pooling(
    input: Tensor, weight: Tensor, geometry: ConvGeometry, pool: autograd.Window, ceil_mode: bool
) -> None:
    """The pooling must fit the convolution's output."""
    size = output_size(input.shape[2:], weight.shape[2:], *geometry[:3])
    values = torch.empty((input.shape[0], weight.shape[0], *size), dtype=input.dtype, device="meta")
    pooled_size("conv_relu_pool2d", values, pool, ceil_mode)
