"""Local response normalisation, which is a pooling over channels."""

from torch import Tensor, nn

from torchconv import functional


class LocalResponseNorm(nn.LocalResponseNorm):
    """A drop-in for `torch.nn.LocalResponseNorm`; see `torchconv.functional.local_response_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.local_response_norm(input, self.size, self.alpha, self.beta, self.k)
