"""Convolution and pooling with the signatures of torch.nn.functional. Arguments are checked here, once.

A wrong argument raises what torch raises: RuntimeError for shapes, sizes, dtypes and unknown strings,
NotImplementedError for a dtype that is not served, TypeError for a wrong type. Messages name the function, the
argument, its value and what was expected.
"""

from torchconv.functional.adaptive_pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
)
from torchconv.functional.avg_pool import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
)
from torchconv.functional.conv import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from torchconv.functional.fused import (
    conv_relu2d,
    conv_relu_pool2d,
)
from torchconv.functional.linear import (
    linear,
)
from torchconv.functional.local_response_norm import (
    local_response_norm,
)
from torchconv.functional.lp_pool import (
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
)
from torchconv.functional.max_pool import (
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from torchconv.functional.max_unpool import (
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)
from torchconv.functional.patches import (
    conv_with,
)
from torchconv.functional.unfold import (
    col2im,
    fold,
    im2col,
    unfold,
)

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "col2im",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_relu2d",
    "conv_relu_pool2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_with",
    "fold",
    "im2col",
    "linear",
    "local_response_norm",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "unfold",
]
