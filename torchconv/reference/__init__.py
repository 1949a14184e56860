"""The textbook: every op in plain PyTorch, to be read, checked and changed.

A window of `kernel_size` taps slides over an image. im2col writes down, for every tap, the image as that tap sees it:
one strided slice of the padded image. Convolution is then a matrix product, and all that follows is its adjoint.

Shapes: images are (N, C, *spatial) with one, two or three spatial dimensions, `taps` is the product of `kernel_size`
and `positions` that of the output size. `stride`, `padding`, `dilation` and `kernel_size` hold one int per spatial
dimension. Nothing here checks its arguments (torchconv.functional does), and nothing calls torch's own convolution,
pooling, unfold or fold: the compiled kernels are tested against this file, and without them the package runs on it.

Source: Chellapilla, Puri & Simard 2006, "High performance convolutional neural networks for document processing"
(im2col); Dumoulin & Visin 2016, arXiv:1603.07285 (sizes, strides, padding, the transposed map).
"""

from torchconv.reference.adaptive_pool import (
    adaptive_avg_pool,
    adaptive_avg_pool_input,
    adaptive_max_pool,
)
from torchconv.reference.avg_pool import avg_pool, avg_pool_input
from torchconv.reference.conv import col2im, conv, conv_input, conv_weight, im2col
from torchconv.reference.max_pool import (
    max_pool,
    max_pool_gather,
    max_pool_indices,
    max_pool_scatter,
    position_dtype,
)
from torchconv.reference.rectify import rectify_, rectify_input
from torchconv.reference.windows import output_size

__all__ = [
    "adaptive_avg_pool",
    "adaptive_avg_pool_input",
    "adaptive_max_pool",
    "avg_pool",
    "avg_pool_input",
    "col2im",
    "conv",
    "conv_input",
    "conv_weight",
    "im2col",
    "max_pool",
    "max_pool_gather",
    "max_pool_indices",
    "max_pool_scatter",
    "output_size",
    "position_dtype",
    "rectify_",
    "rectify_input",
]
