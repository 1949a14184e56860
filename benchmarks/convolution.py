"""One convolution layer as something to time: its forward pass and both gradients, by torch and by torchconv."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from side_by_side import FORMATS
from torch import Tensor, nn
from torch.nn import functional as F

from torchconv import functional
from torchconv.autograd import ConvGeometry, conv, conv_input, conv_weight

PASSES = ("forward", "input", "weight")  # the forward pass, the gradient in the input, the gradient in the weight
Pair = tuple[int, int]
Pass = Callable[[], Tensor]


def add_passes(options: argparse.ArgumentParser) -> None:
    """The option that picks some of them."""
    options.add_argument(
        "--passes", nargs="+", default=list(PASSES), choices=PASSES, metavar="PASS", help="%(default)s"
    )


@dataclass(frozen=True)
class Layer:
    """A convolution, transposed or not, on a picture of `size`."""

    in_channels: int
    out_channels: int
    size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    transposed: bool = False
    output_padding: Pair = (0, 0)
    bias: bool = True

    @classmethod
    def of(cls, module: nn.Conv2d | nn.ConvTranspose2d, size: torch.Size) -> "Layer":
        """What a module does to a picture of this size."""
        return cls(
            module.in_channels,
            module.out_channels,
            tuple(size),
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            module.transposed,
            module.output_padding,
            module.bias is not None,
        )

    def __str__(self) -> str:
        parts = [f"{self.in_channels}→{self.out_channels}", "×".join(map(str, self.kernel))]
        parts += [f"stride {self.stride[0]}"] * (self.stride != (1, 1))
        parts += [f"dilation {self.dilation[0]}"] * (self.dilation != (1, 1))
        parts += [f"groups {self.groups}"] * (self.groups > 1)
        parts += ["transposed"] * self.transposed
        return " ".join([*parts, "@", "×".join(map(str, self.size))])

    @property
    def output_size(self) -> Pair:
        sizes = []
        for n, k, s, p, d, o in zip(
            self.size, self.kernel, self.stride, self.padding, self.dilation, self.output_padding, strict=True
        ):
            window = d * (k - 1) + 1
            sizes.append((n - 1) * s - 2 * p + window + o if self.transposed else (n + 2 * p - window) // s + 1)
        return sizes[0], sizes[1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        outer, inner = (self.out_channels, self.in_channels)[:: -1 if self.transposed else 1]
        return outer, inner // self.groups, *self.kernel

    def flops(self, batch: int) -> int:
        """Multiplications and additions of the definition, whatever the algorithm; the same for all three passes."""
        positions = self.size if self.transposed else self.output_size
        return 2 * batch * positions[0] * positions[1] * torch.Size(self.weight_shape).numel()

    def bytes(self, batch: int, element: int = 4) -> int:
        """What has to be read and written at least."""
        height, width = self.output_size
        activations = self.in_channels * self.size[0] * self.size[1] + self.out_channels * height * width
        return element * (batch * activations + torch.Size(self.weight_shape).numel())

    def tensors(self, batch: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Random input, weight, bias and output gradient. The weight keeps the activations' variance."""
        weight = torch.randn(self.weight_shape) / torch.Size(self.weight_shape[1:]).numel() ** 0.5
        return {
            "input": torch.randn(batch, self.in_channels, *self.size).to(dtype),
            "weight": weight.to(dtype),
            "bias": torch.randn(self.out_channels).to(dtype),
            "grad_output": torch.randn(batch, self.out_channels, *self.output_size).to(dtype),
        }


def torch_pass(layer: Layer, name: str, tensors: dict[str, Tensor]) -> Pass:
    """One pass of the layer, as torch.nn has it computed."""
    x, w, g = (tensors[key] for key in ("input", "weight", "grad_output"))
    b = tensors["bias"] if layer.bias else None
    if name == "forward":
        if layer.transposed:
            return partial(
                F.conv_transpose2d,
                *(x, w, b, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation),
            )
        return partial(F.conv2d, x, w, b, layer.stride, layer.padding, layer.dilation, layer.groups)
    gradients = partial(
        torch.ops.aten.convolution_backward,
        *(g, x, w, None, layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding),
        *(layer.groups, [name == "input", name == "weight", False]),
    )
    return lambda: gradients()[PASSES.index(name) - 1]


def torchconv_pass(layer: Layer, name: str, tensors: dict[str, Tensor], algorithm: str = "auto") -> Pass:
    """One pass of the layer, as torchconv's layers have it computed."""
    x, w, g = (tensors[key] for key in ("input", "weight", "grad_output"))
    b = tensors["bias"] if layer.bias else None
    geometry = ConvGeometry(layer.stride, layer.padding, layer.dilation, layer.groups, algorithm)
    if layer.transposed:
        return {
            "forward": partial(
                functional.conv_transpose2d,
                *(x, w, b, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation),
            ),
            "input": partial(conv, g, w, None, geometry),
            "weight": partial(conv_weight, g, x, w.shape[2:], geometry),
        }[name]
    return {
        "forward": partial(functional.conv2d, x, w, b, layer.stride, layer.padding, layer.dilation, layer.groups),
        "input": partial(conv_input, g, w, x.shape[2:], geometry),
        "weight": partial(conv_weight, x, g, w.shape[2:], geometry),
    }[name]


def in_format(tensors: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The same tensors, in contiguous (nchw) or in channels-last (nhwc) memory."""
    return {name: t.contiguous(memory_format=FORMATS[layout]) if t.dim() == 4 else t for name, t in tensors.items()}


def sides(layer: Layer, name: str, tensors: dict[str, Tensor]) -> dict[str, Pass]:
    """One pass on both sides, in both memory formats."""
    laid = {layout: in_format(tensors, layout) for layout in FORMATS}
    passes = {"torch": torch_pass, "torchconv": torchconv_pass}
    return {
        f"{side}{layout}": make(layer, name, t)
        for side, make in ((f"{k} ", v) for k, v in passes.items())
        for layout, t in laid.items()
    }
