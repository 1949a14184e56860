"""The differentiable ops: each a torch.autograd.Function whose backward calls the others.

Convolution is bilinear: with y = conv(x, w), the gradients are conv_input(g, w) and conv_weight(x, g), which are
bilinear again, and the gradients of all three are, once more, these three. So every order of derivative comes out of
three small classes, and forward mode is two calls; `conj` matters to complex values only. im2col and col2im are each
other's adjoint in the same way, and average pooling has one; max pooling's backward scatters to the saved positions,
and the adjoint of that gathers from them.

Only what a gradient that was asked for needs is saved: with a frozen weight the input is not kept.
"""

from torchconv.autograd.adaptive_max_pool import adaptive_max_pool
from torchconv.autograd.conv import ConvGeometry, conv, conv_input, conv_weight
from torchconv.autograd.fused import conv_relu, conv_relu_pool
from torchconv.autograd.linear import adaptive_avg_pool, avg_pool, col2im, im2col
from torchconv.autograd.max_pool import max_pool, max_pool_gather, max_pool_scatter
from torchconv.autograd.transforms import Window

__all__ = [
    "ConvGeometry",
    "Window",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool",
    "col2im",
    "conv",
    "conv_input",
    "conv_relu",
    "conv_relu_pool",
    "conv_weight",
    "im2col",
    "max_pool",
    "max_pool_gather",
    "max_pool_scatter",
]
