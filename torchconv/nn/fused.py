"""A convolution with what usually follows it, as one layer that keeps less for backward than the several."""

from math import inf
from typing import Any

from torch import Tensor

from torchconv.functional.arguments import IntOrInts
from torchconv.functional.fused import conv_relu2d, conv_relu_pool2d
from torchconv.nn.conv import Conv2d, padded


class _Block(Conv2d):
    """A convolution and what follows it, whose output is kept for backward or computed again."""

    recompute: bool = False

    def __init__(self, *args: Any, recompute: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recompute = recompute

    def extra_repr(self) -> str:
        return super().extra_repr() + (", recompute=True" if self.recompute else "")


class ConvReLU2d(_Block):
    """`Conv2d` and `ReLU` in one: same arguments, parameters and state_dict as `torchconv.Conv2d`.

        block = torchconv.ConvReLU2d(3, 64, kernel_size=3, padding=1)
        block.load_state_dict(torch.nn.Conv2d(3, 64, 3, padding=1).state_dict())
        activation = block(image)  # torch.relu(conv(image))

    For backward it keeps a bit for each element of the output; see `torchconv.functional.conv_relu2d`.

    Args:
        *args, **kwargs: those of `Conv2d`.
        max_value: the most that an output is: 6 for `Conv2d` and `ReLU6`. An attribute.
        recompute: whether a fused block that takes the output computes it again in its backward pass, of this one's
            input, instead of keeping it: less where the input is small and there anyway, as a picture is. An attribute,
            which `convert` sets for such layers.
    """

    max_value: float = inf

    def __init__(self, *args: Any, max_value: float = inf, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_value = max_value

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = padded(self, input)
        geometry = (self.stride, padding, self.dilation, self.groups)
        return conv_relu2d(input, weight, bias, *geometry, max_value=self.max_value, recompute=self.recompute)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.max_value == inf else f", max_value={self.max_value}")


class ConvReLUPool2d(_Block):
    """`Conv2d`, `ReLU` and `MaxPool2d` in one: parameters and state_dict as `torchconv.Conv2d`.

        block = torchconv.ConvReLUPool2d(3, 64, kernel_size=3, padding=1, pool_kernel_size=2)
        block.load_state_dict(torch.nn.Conv2d(3, 64, 3, padding=1).state_dict())
        activation = block(image)  # max_pool2d(torch.relu(conv(image)), 2)

    For backward it keeps a byte for each window; see `torchconv.functional.conv_relu_pool2d`.

    Args:
        *args: those of `Conv2d`.
        pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode: those of `MaxPool2d`.
        **kwargs: those of `Conv2d`, and `recompute`, as of `ConvReLU2d`.
    """

    pool_kernel_size: IntOrInts
    pool_stride: IntOrInts
    pool_padding: IntOrInts
    pool_dilation: IntOrInts
    ceil_mode: bool

    def __init__(
        self,
        *args: Any,
        pool_kernel_size: IntOrInts = 2,
        pool_stride: IntOrInts | None = None,
        pool_padding: IntOrInts = 0,
        pool_dilation: IntOrInts = 1,
        ceil_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.pool_kernel_size = pool_kernel_size
        self.pool_stride = pool_kernel_size if pool_stride is None else pool_stride
        self.pool_padding = pool_padding
        self.pool_dilation = pool_dilation
        self.ceil_mode = ceil_mode

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = padded(self, input)
        return conv_relu_pool2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            pool_kernel_size=self.pool_kernel_size,
            pool_stride=self.pool_stride,
            pool_padding=self.pool_padding,
            pool_dilation=self.pool_dilation,
            ceil_mode=self.ceil_mode,
            recompute=self.recompute,
        )

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, pool_kernel_size={self.pool_kernel_size}, pool_stride={self.pool_stride}, "
            f"pool_padding={self.pool_padding}, pool_dilation={self.pool_dilation}, ceil_mode={self.ceil_mode}"
        )
