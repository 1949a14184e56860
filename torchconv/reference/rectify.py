"""ReLU in place, and its gradient from one bit per element."""

from math import inf

import torch
from torch import Tensor

WORD = 64  # bits


def _in_memory(tensor: Tensor) -> Tensor:
    """A dense tensor's elements in the order in which they lie."""
    return tensor.as_strided((tensor.numel(),), (1,))


def rectify_(values: Tensor, bias: Tensor | None = None, max_value: float = inf) -> Tensor:
    """Add a bias a channel, and bring the values into [0, max_value], in place. -0 and NaN stay, as in torch.relu.

    Args:
        values: dense, contiguous or channels-last.
        bias: one for each of dimension 1, or None.
        max_value: infinite for ReLU, 6 for ReLU6.

    Returns:
        int64 words of 64 bits, for the elements in the order in which they lie, the first one lowest: whether the
        gradient passes, which it does not where a value is <= 0, or >= a finite `max_value`.
    """
    if bias is not None:
        values += bias.reshape(-1, *[1] * (values.dim() - 2))
    elements = _in_memory(values)
    passes = ~(elements <= 0)
    if max_value < inf:
        passes &= ~(elements >= max_value)
        values.masked_fill_(values > max_value, max_value)
    values.masked_fill_(values < 0, 0)
    words = torch.nn.functional.pad(passes.long(), (0, -len(passes) % WORD)).view(-1, WORD)
    return words.bitwise_left_shift(torch.arange(WORD, device=values.device)).sum(1)


def passes(signs: Tensor, like: Tensor) -> Tensor:
    """The bits as booleans, at the places of `like`'s elements, which lie as the rectified values did."""
    bits = signs.unsqueeze(1).bitwise_right_shift(torch.arange(WORD, device=signs.device)).bitwise_and(1)
    return bits.flatten()[: like.numel()].bool().as_strided(like.shape, like.stride())


def rectify_input(grad_output: Tensor, signs: Tensor) -> Tensor:
    """The gradient of `rectify_`: that of its output where the bit is set, zero elsewhere.

    Args:
        grad_output: lies as the values did.
        signs: what `rectify_` returned.
    """
    return grad_output.where(passes(signs, grad_output), 0)
