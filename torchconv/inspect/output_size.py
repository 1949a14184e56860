"""How many positions a sliding window has: the formula behind every convolution and pooling."""

from collections.abc import Sequence
from typing import TypeAlias, overload

IntOrInts: TypeAlias = int | Sequence[int]
PADDINGS = ("valid", "same")


def same_padding(input: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """The padding before and after that gives `padding="same"` its ceil(input / stride) positions.

    It is split evenly; an odd rest goes behind, as in TensorFlow.

        >>> same_padding(13, kernel_size=6, stride=5)
        (1, 2)
    """
    positions = -(-input // stride)
    total = max(0, (positions - 1) * stride + dilation * (kernel_size - 1) + 1 - input)
    return total // 2, total - total // 2


@overload
def output_size(
    input: int,
    kernel_size: int,
    stride: int = 1,
    padding: str | int = "valid",
    dilation: int = 1,
    *,
    ceil_mode: bool = False,
) -> int: ...


@overload
def output_size(
    input: Sequence[int],
    kernel_size: IntOrInts,
    stride: IntOrInts = 1,
    padding: str | IntOrInts = "valid",
    dilation: IntOrInts = 1,
    *,
    ceil_mode: bool = False,
) -> tuple[int, ...]: ...


def output_size(
    input: IntOrInts,
    kernel_size: IntOrInts,
    stride: IntOrInts = 1,
    padding: str | IntOrInts = "valid",
    dilation: IntOrInts = 1,
    *,
    ceil_mode: bool = False,
) -> int | tuple[int, ...]:
    """The size of what a convolution or pooling gives: floor((n + 2p - d(k - 1) - 1) / s) + 1.

        >>> output_size(13, kernel_size=6, stride=5, padding="valid")
        2
        >>> output_size(13, kernel_size=6, stride=5, padding="same")
        3

    Args:
        input: the size of the input, or one size for each dimension.
        kernel_size, stride, dilation: one for all dimensions, or one for each.
        padding: pixels on each side, one for all dimensions or one for each; "valid" for none, where what no whole
            window reaches is dropped; or "same" for as many as it takes to give ceil(n / s) positions. With stride 1
            that is torch's "same"; with a larger one, which torch's layers refuse, TensorFlow's (see `same_padding`).
        ceil_mode: pooling's: also count a last window that juts out.

    Returns:
        An int for an int, otherwise a tuple.

    Raises:
        ValueError: an argument is out of its range, or the window is larger than the padded input.
    """
    if isinstance(input, int):
        for name, value in {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}.items():
            if not isinstance(value, int):
                raise ValueError(f"{name}={value!r}: expected an int, as input={input} is one")
    sizes = (input,) if isinstance(input, int) else tuple(input)
    rank = len(sizes)
    if isinstance(padding, str) and padding not in PADDINGS:
        raise ValueError(f"padding={padding!r}: expected 'valid', 'same', or a number of pixels")
    pads: tuple[str | int, ...] = (
        (padding,) * rank if isinstance(padding, str) else _each("padding", padding, rank, least=0)
    )
    windows = zip(
        _each("input", sizes, rank),
        _each("kernel_size", kernel_size, rank),
        _each("stride", stride, rank),
        pads,
        _each("dilation", dilation, rank),
        strict=True,
    )
    output = tuple(_positions(*window, ceil_mode) for window in windows)
    return output[0] if isinstance(input, int) else output


def _each(name: str, value: IntOrInts, rank: int, least: int = 1) -> tuple[int, ...]:
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank:
        raise ValueError(f"{name}={value!r}: expected an int or {rank} of them, one for each dimension of the input")
    if any(not isinstance(number, int) or isinstance(number, bool) or number < least for number in values):
        raise ValueError(f"{name}={value!r}: expected whole numbers of {least} or more")
    return values


def _positions(n: int, k: int, s: int, padding: str | int, d: int, ceil_mode: bool) -> int:
    if padding == "same":
        return -(-n // s)
    p = 0 if isinstance(padding, str) else padding
    room = n + 2 * p - d * (k - 1) - 1
    if room < 0:
        raise ValueError(
            f"input={n}, kernel_size={k}, dilation={d}, padding={padding!r}: expected a window that fits, "
            f"this one spans {d * (k - 1) + 1} pixels of {n + 2 * p}"
        )
    size = room // s + 1
    if ceil_mode and room % s and size * s < n + p:  # not one that would start in the padding behind
        size += 1
    return size
