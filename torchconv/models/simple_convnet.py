"""The first convolutional network of K. Saito, "Deep Learning from Scratch", 2016 (O'Reilly Japan), chapter 7."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from torchconv.nn import Conv2d, MaxPool2d

CONV_PARAM = {"filter_num": 30, "filter_size": 5, "pad": 0, "stride": 1}


class SimpleConvNet(nn.Module):
    """Convolution - ReLU - max pooling - affine - ReLU - affine, with the book's arguments and names of layers.

    Weights are drawn from N(0, weight_init_std²), biases are zero. The last layer of the book, softmax, is in the loss:
    train it with a cross-entropy.

    Shape:
        Pictures of (N, *input_dim), to logits of (N, output_size).

    Args:
        input_dim: channels, height and width of a picture.
        conv_param: number and size of the filters, padding and stride; those of the default that it lacks are added.
        hidden_size: width of the hidden affine layer.
        output_size: number of classes.
        weight_init_std: standard deviation of the initial weights.

    Raises:
        ValueError: an argument is out of its range, or conv_param has an unknown name; or, when called, an input of
            another shape.
    """

    def __init__(
        self,
        input_dim: Sequence[int] = (1, 28, 28),
        conv_param: Mapping[str, int] = CONV_PARAM,
        hidden_size: int = 100,
        output_size: int = 10,
        weight_init_std: float = 0.01,
    ) -> None:
        super().__init__()
        unknown = [name for name in conv_param if name not in CONV_PARAM]
        if unknown:
            raise ValueError(f"conv_param={dict(conv_param)!r}: expected the names {', '.join(CONV_PARAM)}")
        if len(input_dim) != 3:
            raise ValueError(f"input_dim={tuple(input_dim)!r}: expected channels, height and width")
        conv = CONV_PARAM | dict(conv_param)
        for name, value, least in [
            *(("input_dim", size, 1) for size in input_dim),
            *((f"conv_param[{name!r}]", value, 0 if name == "pad" else 1) for name, value in conv.items()),
            ("hidden_size", hidden_size, 1),
            ("output_size", output_size, 1),
        ]:
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: expected a whole number of {least} or more")
        if not 0 <= weight_init_std < math.inf:
            raise ValueError(f"weight_init_std={weight_init_std!r}: expected a finite number of 0 or more")
        self.input_dim = tuple(input_dim)
        channels, *sizes = input_dim
        filters, kernel_size, padding, stride = (conv[name] for name in CONV_PARAM)
        height, width = ((size + 2 * padding - kernel_size) // stride + 1 for size in sizes)
        if min(height, width) < 2:
            raise ValueError(
                f"input_dim={self.input_dim}: with conv_param={conv} the convolution gives {height}×{width} pixels, "
                "expected at least 2×2, which the pooling takes"
            )
        self.conv1 = Conv2d(channels, filters, kernel_size, stride, padding)
        self.relu1 = nn.ReLU()
        self.pool1 = MaxPool2d(kernel_size=2)
        self.affine1 = nn.Linear(filters * (height // 2) * (width // 2), hidden_size)
        self.relu2 = nn.ReLU()
        self.affine2 = nn.Linear(hidden_size, output_size)
        for layer in (self.conv1, self.affine1, self.affine2):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, 0, weight_init_std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.input_dim:
            expected = ", ".join(map(str, self.input_dim))
            raise ValueError(f"x: expected the shape (N, {expected}), got {x.shape}")  # as a tuple, fx can't trace it
        x = self.pool1(self.relu1(self.conv1(x)))
        return self.affine2(self.relu2(self.affine1(x.flatten(1))))
