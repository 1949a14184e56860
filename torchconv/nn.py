"""Modules: torch.nn's own, computed by torchconv. State, arguments, repr and state_dict are inherited."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torchconv import functional


class Conv2d(nn.Conv2d):
    """Two-dimensional convolution, a drop-in for `torch.nn.Conv2d`: same arguments, parameters and state_dict.

    (N, C, H, W) or (C, H, W) to (N, O, H', W') or (O, H', W'); see `torchconv.functional.conv2d`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return functional.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class MaxPool2d(nn.MaxPool2d):
    """Maximum of each window, a drop-in for `torch.nn.MaxPool2d`.

    (N, C, H, W) or (C, H, W) to (N, C, H', W') or (C, H', W'); see `torchconv.functional.max_pool2d`.
    """

    def forward(self, input: Tensor) -> Any:
        return functional.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )
