"""Convolution with what usually follows it, as one step: less is kept for the backward pass than by its pieces."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchconv import autograd
from torchconv.autograd import ConvGeometry
from torchconv.autograd.functorch import is_recorded
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
) -> Tensor:
    """`relu(conv2d(...))`, which keeps one bit of each output for the backward pass.

    The gradient of the ReLU is zero where its input is zero or less, as torch's. Differentiable to any order.

    Args:
        input, weight, bias, stride, padding, dilation, groups: see `torchconv.functional.conv2d`.

    Returns:
        (N, O, H', W'), or (O, H', W') for an input without a batch, as `conv2d`.

    Raises:
        RuntimeError, TypeError: as `conv2d`.
    """
    operands = conv_operands("conv_relu2d", 2, input, weight, bias, stride, padding, dilation, groups)
    input, weight, bias, geometry, batched = operands
    if _composed(input):
        output = torch.relu(autograd.conv(input, weight, bias, geometry))
    else:
        output, _ = autograd.conv_relu(input, weight, bias, geometry, is_recorded([input, weight, bias]))
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
) -> Tensor:
    """`max_pool2d(relu(conv2d(...)))`, which keeps a byte and a bit of each pooled output for the backward pass.

    The convolution's own output is not kept. Differentiable to any order.

    Args:
        input, weight, bias, stride, padding, dilation, groups: see `torchconv.functional.conv2d`.
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode: see `torchconv.functional.max_pool2d`;
            `pool_stride` defaults to `pool_kernel_size`.

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
        needs = is_recorded([input, weight, bias])
        output, *_ = autograd.conv_relu_pool(input, weight, bias, geometry, needs, pool, ceil_mode)
    return output if batched else output.squeeze(0)


def _composed(input: Tensor) -> bool:
    """Whether the pieces do it: for transforms, forward mode and compilers, and where there are no kernels."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or input.dtype not in (torch.float32, torch.float64)
    )


def _check_pooling(
    input: Tensor, weight: Tensor, geometry: ConvGeometry, pool: autograd.Window, ceil_mode: bool
) -> None:
    """The pooling must fit the convolution's output."""
    size = output_size(input.shape[2:], weight.shape[2:], *geometry[:3])
    values = torch.empty((input.shape[0], weight.shape[0], *size), dtype=input.dtype, device="meta")
    pooled_size("conv_relu_pool2d", values, pool, ceil_mode)
