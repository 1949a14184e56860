"""Convolution and transposed convolution, and their lazy forms, which take in_channels from the first input."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torchconv import functional


def padded(layer: Any, input: Tensor) -> tuple[Tensor, Any]:
    """The input and the zeros that are yet to be put around it: only these does the function itself know."""
    if layer.padding_mode == "zeros":
        return input, layer.padding
    return F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0


class Conv1d(nn.Conv1d):
    """A drop-in for `torch.nn.Conv1d`: same arguments, parameters and state_dict; see `torchconv.functional.conv1d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = padded(self, input)
        return functional.conv1d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(nn.Conv2d):
    """A drop-in for `torch.nn.Conv2d`: same arguments, parameters and state_dict; see `torchconv.functional.conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = padded(self, input)
        return functional.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv3d(nn.Conv3d):
    """A drop-in for `torch.nn.Conv3d`: same arguments, parameters and state_dict; see `torchconv.functional.conv3d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = padded(self, input)
        return functional.conv3d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


def _conv_transpose(function: Any, module: Any, input: Tensor, output_size: list[int] | None) -> Tensor:
    stride, padding, dilation, rank = module.stride, module.padding, module.dilation, len(module.kernel_size)
    extra = module._output_padding(input, output_size, stride, padding, module.kernel_size, rank, dilation)
    return function(input, module.weight, module.bias, stride, padding, extra, module.groups, dilation)


class ConvTranspose1d(nn.ConvTranspose1d):
    """A drop-in for `torch.nn.ConvTranspose1d`; see `torchconv.functional.conv_transpose1d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _conv_transpose(functional.conv_transpose1d, self, input, output_size)


class ConvTranspose2d(nn.ConvTranspose2d):
    """A drop-in for `torch.nn.ConvTranspose2d`; see `torchconv.functional.conv_transpose2d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _conv_transpose(functional.conv_transpose2d, self, input, output_size)


class ConvTranspose3d(nn.ConvTranspose3d):
    """A drop-in for `torch.nn.ConvTranspose3d`; see `torchconv.functional.conv_transpose3d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _conv_transpose(functional.conv_transpose3d, self, input, output_size)


class LazyConv1d(nn.LazyConv1d):
    """A drop-in for `torch.nn.LazyConv1d`: becomes a `torchconv.Conv1d` with its first input."""

    cls_to_become = Conv1d


class LazyConv2d(nn.LazyConv2d):
    """A drop-in for `torch.nn.LazyConv2d`: becomes a `torchconv.Conv2d` with its first input."""

    cls_to_become = Conv2d


class LazyConv3d(nn.LazyConv3d):
    """A drop-in for `torch.nn.LazyConv3d`: becomes a `torchconv.Conv3d` with its first input."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(nn.LazyConvTranspose1d):
    """A drop-in for `torch.nn.LazyConvTranspose1d`: becomes a `torchconv.ConvTranspose1d` with its first input."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(nn.LazyConvTranspose2d):
    """A drop-in for `torch.nn.LazyConvTranspose2d`: becomes a `torchconv.ConvTranspose2d` with its first input."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(nn.LazyConvTranspose3d):
    """A drop-in for `torch.nn.LazyConvTranspose3d`: becomes a `torchconv.ConvTranspose3d` with its first input."""

    cls_to_become = ConvTranspose3d
