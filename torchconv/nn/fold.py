"""The column matrix and the way back, as modules."""

from torch import Tensor, nn

from torchconv import functional


class Unfold(nn.Unfold):
    """A drop-in for `torch.nn.Unfold`, in one to three dimensions; see `torchconv.functional.unfold`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(nn.Fold):
    """A drop-in for `torch.nn.Fold`, in one to three dimensions; see `torchconv.functional.fold`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)
