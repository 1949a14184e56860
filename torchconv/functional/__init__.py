"""Convolution and pooling with the signatures of torch.nn.functional. Arguments are checked here, once.

A wrong argument raises what torch raises: RuntimeError for shapes, sizes, dtypes and unknown strings,
NotImplementedError for a dtype that is not served, TypeError for a wrong type. Messages name the function, the
argument, its value and what was expected.
"""

from torchconv.functional.conv import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from torchconv.functional.im2col import col2im, im2col
from torchconv.functional.max_pool import max_pool1d, max_pool2d, max_pool3d

__all__ = [
    "col2im",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "im2col",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
]
