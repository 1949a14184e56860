"""Local response normalisation across channels."""

from torch import Tensor
from torch.nn.functional import pad

from torchconv.functional.avg_pool import avg_pool2d, avg_pool3d


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
        TypeError: an argument of another type.
        ValueError: fewer than 3 dimensions.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"local_response_norm: input is {type(input).__name__}, expected a Tensor")
    if input.dim() < 3:
        raise ValueError(f"local_response_norm: input has shape {tuple(input.shape)}, expected 3 dimensions or more")
    if input.numel() == 0:
        return input
    # A pooling over channels: they are the height of a picture, or the depth of a volume, of a single channel.
    around = size // 2, (size - 1) // 2
    squares = input.square().unsqueeze(1)
    if input.dim() == 3:
        mean = avg_pool2d(pad(squares, (0, 0, *around)), (size, 1), stride=1)
    else:
        mean = avg_pool3d(pad(squares.flatten(4), (0, 0, 0, 0, *around)), (size, 1, 1), stride=1)
    return input / mean.reshape(input.shape).mul(alpha).add(k).pow(beta)
