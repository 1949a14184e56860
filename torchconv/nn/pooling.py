"""Pooling: max, its inverse, average, power-average, and the adaptive ones."""

from typing import Any

from torch import Tensor, nn

from torchconv import functional


class MaxPool1d(nn.MaxPool1d):
    """A drop-in for `torch.nn.MaxPool1d`; see `torchconv.functional.max_pool1d`."""

    def forward(self, input: Tensor) -> Any:
        return functional.max_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class MaxPool2d(nn.MaxPool2d):
    """A drop-in for `torch.nn.MaxPool2d`; see `torchconv.functional.max_pool2d`."""

    def forward(self, input: Tensor) -> Any:
        return functional.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class MaxPool3d(nn.MaxPool3d):
    """A drop-in for `torch.nn.MaxPool3d`; see `torchconv.functional.max_pool3d`."""

    def forward(self, input: Tensor) -> Any:
        return functional.max_pool3d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class MaxUnpool1d(nn.MaxUnpool1d):
    """A drop-in for `torch.nn.MaxUnpool1d`; see `torchconv.functional.max_unpool1d`."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return functional.max_unpool1d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool2d(nn.MaxUnpool2d):
    """A drop-in for `torch.nn.MaxUnpool2d`; see `torchconv.functional.max_unpool2d`."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return functional.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool3d(nn.MaxUnpool3d):
    """A drop-in for `torch.nn.MaxUnpool3d`; see `torchconv.functional.max_unpool3d`."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return functional.max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class AvgPool1d(nn.AvgPool1d):
    """A drop-in for `torch.nn.AvgPool1d`; see `torchconv.functional.avg_pool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )


class AvgPool2d(nn.AvgPool2d):
    """A drop-in for `torch.nn.AvgPool2d`; see `torchconv.functional.avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AvgPool3d(nn.AvgPool3d):
    """A drop-in for `torch.nn.AvgPool3d`; see `torchconv.functional.avg_pool3d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class LPPool1d(nn.LPPool1d):
    """A drop-in for `torch.nn.LPPool1d`; see `torchconv.functional.lp_pool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.lp_pool1d(input, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)


class LPPool2d(nn.LPPool2d):
    """A drop-in for `torch.nn.LPPool2d`; see `torchconv.functional.lp_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.lp_pool2d(input, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)


class LPPool3d(nn.LPPool3d):
    """A drop-in for `torch.nn.LPPool3d`; see `torchconv.functional.lp_pool3d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.lp_pool3d(input, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)


class AdaptiveAvgPool1d(nn.AdaptiveAvgPool1d):
    """A drop-in for `torch.nn.AdaptiveAvgPool1d`; see `torchconv.functional.adaptive_avg_pool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """A drop-in for `torch.nn.AdaptiveAvgPool2d`; see `torchconv.functional.adaptive_avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(nn.AdaptiveAvgPool3d):
    """A drop-in for `torch.nn.AdaptiveAvgPool3d`; see `torchconv.functional.adaptive_avg_pool3d`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.adaptive_avg_pool3d(input, self.output_size)


class AdaptiveMaxPool1d(nn.AdaptiveMaxPool1d):
    """A drop-in for `torch.nn.AdaptiveMaxPool1d`; see `torchconv.functional.adaptive_max_pool1d`."""

    def forward(self, input: Tensor) -> Any:
        return functional.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    """A drop-in for `torch.nn.AdaptiveMaxPool2d`; see `torchconv.functional.adaptive_max_pool2d`."""

    def forward(self, input: Tensor) -> Any:
        return functional.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(nn.AdaptiveMaxPool3d):
    """A drop-in for `torch.nn.AdaptiveMaxPool3d`; see `torchconv.functional.adaptive_max_pool3d`."""

    def forward(self, input: Tensor) -> Any:
        return functional.adaptive_max_pool3d(input, self.output_size, self.return_indices)
