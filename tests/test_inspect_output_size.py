"""The output-size formula: held to the layers, and to the textbook's numbers."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import torchconv
from torchconv.inspect import output_size, same_padding

pixels = st.integers(1, 40)
kernels, strides, dilations = st.integers(1, 6), st.integers(1, 5), st.integers(1, 3)


def run(layer: nn.Module, *size: int) -> tuple[int, ...]:
    with torch.device("meta"):
        return tuple(layer.to("meta")(torch.empty(1, 1, *size)).shape[2:])


@settings(deadline=None)
@given(st.tuples(pixels, pixels), kernels, strides, st.integers(0, 5), dilations)
def test_equals_what_convolutions_give(
    size: tuple[int, int], kernel: int, stride: int, padding: int, dilation: int
) -> None:
    window = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    layer = torchconv.Conv2d(1, 1, **window)
    if min(size) + 2 * padding <= dilation * (kernel - 1):
        with pytest.raises(ValueError, match="a window that fits"):
            output_size(size, **window)
    else:
        assert output_size(size, **window) == run(layer, *size)


@settings(deadline=None)
@given(pixels, pixels, st.tuples(kernels, kernels), strides, st.data(), st.booleans())
def test_equals_what_poolings_give(
    height: int, width: int, kernel: tuple[int, int], stride: int, data: Any, ceil_mode: bool
) -> None:
    padding = data.draw(st.integers(0, min(kernel) // 2))
    assume(height + 2 * padding >= kernel[0] and width + 2 * padding >= kernel[1])
    layer = torchconv.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    assert output_size((height, width), kernel, stride, padding, ceil_mode=ceil_mode) == run(layer, height, width)


@settings(deadline=None)
@given(pixels, kernels, dilations)
def test_same_is_torchs_where_torch_has_it(width: int, kernel: int, dilation: int) -> None:
    layer = torchconv.Conv1d(1, 1, kernel, padding="same", dilation=dilation)
    assert (output_size(width, kernel, 1, "same", dilation),) == run(layer, width) == (width,)


@settings(deadline=None)
@given(pixels, kernels, strides, dilations)
def test_same_is_a_convolution_of_the_padded_input(width: int, kernel: int, stride: int, dilation: int) -> None:
    before, after = same_padding(width, kernel, stride, dilation)
    assert 0 <= after - before <= 1
    assume(before + width + after > dilation * (kernel - 1))
    padded = nn.Sequential(nn.ConstantPad1d((before, after), 0.0), nn.Conv1d(1, 1, kernel, stride, dilation=dilation))
    assert run(padded, width) == (output_size(width, kernel, stride, "same", dilation),) == (-(-width // stride),)


def test_thirteen_pixels_under_valid_and_same() -> None:
    # TensorFlow's documentation: valid drops the last pixels, same pads one before and two behind.
    assert output_size(13, kernel_size=6, stride=5, padding="valid") == 2
    assert output_size(13, kernel_size=6, stride=5, padding="same") == 3
    assert same_padding(13, kernel_size=6, stride=5) == (1, 2)


def test_a_number_for_a_number_and_a_tuple_for_a_sequence() -> None:
    assert output_size(224, 3, padding=1) == 224
    assert output_size([1920, 1080], 5) == (1916, 1076)
    assert output_size((8, 9, 10), (1, 2, 3), stride=(1, 2, 3), padding=(0, 0, 1)) == (8, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input": 0, "kernel_size": 1}, "input=.*1 or more"),
        ({"input": 5, "kernel_size": 0}, "kernel_size=0: expected whole numbers of 1 or more"),
        ({"input": 5, "kernel_size": (3, 3)}, "kernel_size=.*expected an int, as input=5 is one"),
        ({"input": (5, 5), "kernel_size": (3, 3, 3)}, "expected an int or 2 of them"),
        ({"input": 5, "kernel_size": 3, "padding": "full"}, "padding='full': expected 'valid', 'same', or"),
        ({"input": 5, "kernel_size": 3, "padding": -1}, "padding=-1: expected whole numbers of 0 or more"),
        ({"input": 5, "kernel_size": 3, "stride": 1.5}, "stride=1.5: expected"),
        ({"input": 3, "kernel_size": 3, "dilation": 2}, "this one spans 5 pixels of 3"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        output_size(**arguments)
