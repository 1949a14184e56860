"""Poolings beside torch's: the call, the memory formats and the comparison that their tests share."""

from dataclasses import dataclass
from typing import Any

import torch
from grid import filled, gradients, leaf, strides
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from torchconv import functional, ops

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FORMATS = ("contiguous", "channels_last", "every_second_column")


@dataclass(frozen=True)
class Pooling:
    name: str  # of the function, which ends in its rank: avg_pool2d
    input: tuple[int, ...]
    arguments: dict[str, Any]

    @property
    def rank(self) -> int:
        return int(self.name[-2])

    def ours(self, input: Tensor, **more: Any) -> Any:
        return getattr(functional, self.name)(input, **self.arguments, **more)

    def theirs(self, input: Tensor, **more: Any) -> Any:
        return getattr(F, self.name)(input, **self.arguments, **more)

    def in_format(self, tensor: Tensor, format: str) -> Tensor:
        """The same values with other strides; one-dimensional pictures have no channels-last format."""
        if format == "every_second_column":
            return tensor.repeat_interleave(2, -1)[..., ::2]
        batch = tensor if tensor.dim() == self.rank + 2 else tensor.unsqueeze(0)
        last = format == "channels_last" and self.rank > 1
        batch = batch.contiguous(memory_format=ops.memory_format_of(batch.dim(), last))
        return batch if tensor.dim() == self.rank + 2 else batch.squeeze(0)

    def assert_in_format(self, tensor: Tensor, format: str) -> None:
        """A result from an input in `format` is channels-last if that was, else contiguous; an empty one is both."""
        expected = self.in_format(tensor, "contiguous" if format == "every_second_column" else format)
        assert tensor.numel() == 0 or strides(tensor) == strides(expected)


def assert_same_pooling(pooling: Pooling, input: Tensor, format: str, **tolerance: float) -> None:
    """Output and gradient equal to those that torch computes from the same values in float64, in the input's format."""
    mine, exact = leaf(pooling.in_format(input, format)), leaf(input.double())
    assert mine is not None
    output, expected = pooling.ours(mine), pooling.theirs(exact)
    assert output.dtype == input.dtype
    assert_close(output, expected.to(input.dtype), equal_nan=True, **tolerance)
    pooling.assert_in_format(output, format)
    # The gradient is in the format of the input, whatever that of the output's is.
    grad_output = filled(output.shape, input.dtype, 3)
    (grad,), (theirs,) = gradients(output, [mine], grad_output), gradients(expected, [exact], grad_output.double())
    assert_close(grad, theirs.to(input.dtype), equal_nan=True, **tolerance)
    pooling.assert_in_format(grad, format)
