"""A network as a chain of layers, and which pixels each position of a layer sees."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchconv.fuse import FusedMaxPool2d
from torchconv.nn import ConvReLUPool2d

# Of each position by itself. Batch normalization too, in evaluation mode.
POINTWISE = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Sigmoid, nn.Softplus, nn.Tanh, FusedMaxPool2d),
)
WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
PROBE = 256  # pixels: side of the picture, at most, that shows in which order a network calls its layers

Network = Callable[[Tensor], Mapping[str, Tensor]]
Interval = tuple[int, int]  # begin and end of positions along one dimension


class Window(NamedTuple):
    """A window along one dimension: pixels it spans, steps of how many, and zeros in front of the image and behind."""

    span: int
    stride: int
    before: int
    after: int
    ceil_mode: bool = False

    def length(self, length: int) -> int:
        """Number of the window's positions; see `torchconv.reference.output_size`."""
        room = length + self.before + self.after - self.span
        positions = (room + (self.stride - 1 if self.ceil_mode else 0)) // self.stride + 1
        return positions - (self.ceil_mode and (positions - 1) * self.stride >= length + self.before)

    def reads(self, positions: Interval) -> Interval:
        """What these positions see, also of the padding."""
        begin, end = positions
        return begin * self.stride - self.before, (end - 1) * self.stride - self.before + self.span


@dataclass(frozen=True)
class Layer:
    """A layer of a chain, and the channels of its output."""

    module: nn.Module
    channels: int

    @property
    def windows(self) -> list[tuple[Window, Window]]:
        """One after the other, of the rows and of the columns: none if pointwise; others once it is fused."""
        return windows_of(self.module)

    def stride(self, dim: int) -> int:
        return prod(window[dim].stride for window in self.windows)

    def length(self, dim: int, length: int) -> int:
        """Height (dim 0) or width (1) of the output."""
        for window in self.windows:
            length = window[dim].length(length)
        return length

    def reads(self, dim: int, positions: Interval, length: int) -> Interval:
        """The part of an input of this length that these positions see: a pixel at least, be it only zeros they see."""
        for window in reversed(self.windows):
            positions = window[dim].reads(positions)
        begin = max(0, min(positions[0], length - 1))
        return begin, max(begin + 1, min(positions[1], length))


def chain(network: Network, names: Sequence[str], picture: Tensor) -> tuple[list[Layer], dict[str, int]]:
    """The layers of a network from its first window to the last activation asked for, in the order of their calls.

    Args:
        network: a module; from its first window on, each layer in it takes what the one before it gives.
        names: of the activations.
        picture: shows in which order the layers are called; of a larger one only a corner is used.

    Returns:
        The layers, and which of them gives the activation of each name.

    Raises:
        TypeError: no module, or a layer that looks at neighbours in another way than convolution and pooling do.
        ValueError: no chain, or an activation that isn't the output of one of its layers.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, a chain of layers, got {type(network).__name__}")
    layers: list[Layer] = []
    latest: list[Tensor] = []
    index_of: dict[int, int] = {}  # by the output's id, which is its own as long as it lives: until the end, if named

    def record(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if not layers and not isinstance(module, WINDOWED):
            return  # of the whole picture
        windows_of(module)
        layers.append(Layer(module, output.shape[1]))
        if latest and (len(arguments) != 1 or arguments[0] is not latest[0]):
            raise ValueError(
                f"network: expected a chain of layers, got {module} elsewhere than after {layers[-2].module}"
            )
        latest[:] = [output]
        index_of[id(output)] = len(layers) - 1

    handles = [module.register_forward_hook(record) for module in _parts(network)]
    try:
        with torch.no_grad():
            activations = network(picture[:, :, :PROBE, :PROBE])
    finally:
        for handle in handles:
            handle.remove()
    unknown = [name for name in names if id(activations[name]) not in index_of]
    if unknown:
        raise ValueError(
            f"network: expected the output of a layer in a chain of convolutions, got {', '.join(unknown)}"
        )
    indices = {name: index_of[id(activations[name])] for name in names}
    return layers[: max(indices.values()) + 1], indices


def before(network: Network, layer: Layer, picture: Tensor) -> Tensor:
    """What a network gives to a layer of it: the picture itself, normalized perhaps."""
    reached: list[Tensor] = []

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        reached.append(arguments[0])
        raise _Reached

    handle = layer.module.register_forward_pre_hook(stop)
    try:
        network(picture)
    except _Reached:
        pass
    finally:
        handle.remove()
    return reached[0]


class _Reached(Exception):
    """The network has come to the layer asked for."""


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The layers in a module: those that have windows, and those that have no parts themselves."""
    parts = list(module.children())
    if not parts or isinstance(module, WINDOWED):
        yield module
    else:
        for part in parts:
            yield from _parts(part)


def _pair(value: Any) -> tuple[int, int]:
    """One for the rows and one for the columns."""
    return (value, value) if isinstance(value, int) else tuple(value)


def windows_of(module: nn.Module) -> list[tuple[Window, Window]]:
    """A layer's windows, one after the other.

    Raises:
        TypeError: a layer that looks at neighbours in another way, or isn't known not to.
    """
    if isinstance(module, POINTWISE) or (isinstance(module, nn.BatchNorm2d) and not _of_batch(module)):
        return []
    if not isinstance(module, WINDOWED) or getattr(module, "return_indices", False):
        raise TypeError(
            f"network: {module} can't be evaluated in tiles, expected convolution, pooling, or pointwise layers"
        )
    if getattr(module, "padding_mode", "zeros") != "zeros":
        raise TypeError(f"network: {module} can't be evaluated in tiles, expected padding_mode='zeros'")
    windows = [_window(module, "")]
    if isinstance(module, ConvReLUPool2d):
        windows.append(_window(module, "pool_"))
    return windows


def _window(module: Any, prefix: str) -> tuple[Window, Window]:
    """Of the attributes that begin with `prefix`."""
    kernel_size, stride, padding, dilation = (
        getattr(module, prefix + name, 1) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    spans = [d * (k - 1) + 1 for k, d in zip(_pair(kernel_size), _pair(dilation), strict=True)]
    if isinstance(padding, str):
        ends = [((span - 1) // 2, span // 2) if padding == "same" else (0, 0) for span in spans]
    else:
        ends = [(p, p) for p in _pair(padding)]
    ceil_mode = (bool(prefix) or not isinstance(module, nn.Conv2d)) and module.ceil_mode
    rows, columns = (
        Window(span, step, *end, ceil_mode) for span, step, end in zip(spans, _pair(stride), ends, strict=True)
    )
    return rows, columns


def _of_batch(module: nn.BatchNorm2d) -> bool:
    """Whether it normalizes by the batch's own statistics."""
    return module.training or module.running_mean is None
