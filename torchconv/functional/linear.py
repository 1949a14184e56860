"""The affine map of fully connected layers, which for few rows and a large weight is a convolution."""

import torch
from torch import Tensor

from torchconv import autograd, ops
from torchconv.autograd import ConvGeometry


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The products of rows and weights, input @ weight^T + bias. Equivalent to `torch.nn.functional.linear`.

    In the classifier of an AlexNet or a VGG, and in its gradients, the time goes into reading and writing weights, not
    into multiplying them. So where a float32 weight of a million elements and more meets up to 32 rows, this is a
    convolution of pictures of one pixel (Long, Shelhamer & Darrell 2015, arXiv:1411.4038, section 3.1), whose kernels
    pass by the weight once; else, and while compiling, it is torch's own.

    Args:
        input: (..., C).
        weight: (O, C).
        bias: (O), or None.

    Returns:
        (..., O).

    Raises:
        RuntimeError: shapes or dtypes that don't go together.
    """
    if not ops.linear_serves(input, weight, bias):
        return torch.nn.functional.linear(input, weight, bias)
    geometry = ConvGeometry((1,), (0,), (1,), 1, ops.current_algorithm())
    output = autograd.conv(input.reshape(-1, input.shape[-1], 1), weight.unsqueeze(-1), bias, geometry)
    return output.reshape(*input.shape[:-1], weight.shape[0])
