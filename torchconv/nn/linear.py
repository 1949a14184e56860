"""Fully connected layers, and the lazy form, which takes in_features from the first input."""

from torch import Tensor, nn

from torchconv import functional


class Linear(nn.Linear):
    """A drop-in for `torch.nn.Linear`: same arguments, parameters and state_dict; see `torchconv.functional.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class LazyLinear(nn.LazyLinear):
    """A drop-in for `torch.nn.LazyLinear`: becomes a `torchconv.Linear` with its first input."""

    cls_to_become = Linear
