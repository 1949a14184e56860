"""Local response normalisation across channels."""

import torch
from torch import Tensor

from torchconv import autograd
from torchconv.autograd import Window
from torchconv.functional.arguments import in_float32, ints


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Divides each value by a power of its neighbouring channels' mean square.

    Equivalent to `torch.nn.functional.local_response_norm`:
    input / (k + alpha * mean of squares over `size` channels)^beta (Krizhevsky, Sutskever & Hinton 2012, section 3.3,
    with a mean in the place of the sum, as in torch).

    Args:
        input: (N, C, ...), of 3 dimensions or more.
        size: channels that are averaged over, half of them in front.
        alpha, beta, k: as above.

    Returns:
        The input's shape.

    Raises:
        RuntimeError: a size that is not positive.
        NotImplementedError: a dtype that is neither floating-point nor int64.
        TypeError: an argument of another type.
        ValueError: fewer than 3 dimensions.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"local_response_norm: input is {type(input).__name__}, expected a Tensor")
    if input.dim() < 3:
        raise ValueError(f"local_response_norm: input has shape {tuple(input.shape)}, expected 3 dimensions or more")
    if isinstance(size, (tuple, list)):
        raise TypeError(f"local_response_norm: size is {size!r}, expected an int")
    (size,) = ints("local_response_norm", "size", size, 1, 1)
    for name, value in (("alpha", alpha), ("beta", beta), ("k", k)):
        if not isinstance(value, (int, float, complex, Tensor)):
            raise TypeError(f"local_response_norm: {name} is {type(value).__name__}, expected a number")
    if input.numel() == 0:
        return input
    if not input.is_floating_point() and input.dtype != torch.int64:
        raise NotImplementedError(
            f"local_response_norm: input has dtype {input.dtype}, expected a floating-point one or int64"
        )
    # A pooling over the rows of a picture: they are the channels, and the columns are the pixels.
    squares = input.square().flatten(2).unsqueeze(1)
    if input.dim() > 3:
        squares = in_float32(squares)  # as torch, which takes a three-dimensional pooling for it
    window = Window((size, 1), (1, 1), (size // 2, 0), (1, 1))
    mean = autograd.avg_pool(squares, window, False, True, None)
    mean = mean.narrow(2, 0, input.shape[1]).reshape(input.shape)  # an even size gives a row too many
    return input / mean.mul(alpha).add(k).pow(beta)
