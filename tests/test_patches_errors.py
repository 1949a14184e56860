"""Wrong arguments of conv_with, and wrong functions: one line that says which, what and what was expected."""

from math import inf
from typing import Any

import pytest
import torch
from grid import filled
from torch import Tensor

from torchconv.functional import conv_with


def l1(patches: Tensor, weight: Tensor) -> Tensor:
    return -(patches.unsqueeze(2) - weight.unsqueeze(-1)).abs().sum(3)


def max_plus(patches: Tensor, weight: Tensor) -> Tensor:
    return (patches.unsqueeze(2) + weight.unsqueeze(-1)).amax(3)


X, W, B = filled((2, 4, 7, 7), torch.float32), filled((6, 4, 3, 3), torch.float32), filled((6,), torch.float32)
WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "function_none": ((None, X, W), {}, TypeError, "function is NoneType, expected a callable of patches and weight"),
    "function_swapped": ((X, l1, W), {}, TypeError, "function is Tensor, expected a callable of patches and weight"),
    "input_none": ((l1, None, W), {}, TypeError, "input is NoneType, expected a Tensor"),
    "input_2d": ((l1, X[0, 0], W), {}, RuntimeError, "input has shape (7, 7), expected 4 dimensions, or 3 without"),
    "weight_none": ((l1, X, None), {}, TypeError, "weight is NoneType, expected a Tensor"),
    "weight_2d": ((l1, X, W[0, 0]), {}, RuntimeError, "weight has shape (3, 3), expected 3, 4 or 5 dimensions"),
    "weight_6d": ((l1, X, W[None, None]), {}, RuntimeError, "weight has shape (1, 1, 6, 4, 3, 3), expected"),
    "kernel_empty": ((l1, X, W[:, :, :0]), {}, RuntimeError, "weight has shape (6, 4, 0, 3), expected a kernel"),
    "channels": ((l1, X[:, :3], W), {}, RuntimeError, "input has shape (2, 3, 7, 7)"),
    "dtype": ((l1, X, W.double()), {}, RuntimeError, "input torch.float32, weight torch.float64: expected one dtype"),
    "device": ((l1, X.to("meta"), W), {}, RuntimeError, "input is on meta and weight on cpu, expected one device"),
    "bias_number": ((l1, X, W, 3), {}, TypeError, "bias is int, expected a Tensor or None"),
    "bias_shape": ((l1, X, W, B[:5]), {}, RuntimeError, "bias has shape (5,), expected (6,)"),
    "groups_0": ((l1, X, W), {"groups": 0}, RuntimeError, "groups is 0, expected 1 or more"),
    "groups_float": ((l1, X, W), {"groups": 2.0}, TypeError, "groups is 2.0, expected an int"),
    "groups_that_do_not_divide": ((l1, X, W[:5, :2]), {"groups": 2}, RuntimeError, "out_channels that groups divides"),
    "stride_0": ((l1, X, W), {"stride": 0}, RuntimeError, "stride is 0, expected 1 or more"),
    "stride_three": ((l1, X, W), {"stride": (1, 1, 1)}, RuntimeError, "stride is (1, 1, 1), expected one int or 2"),
    "padding_negative": ((l1, X, W), {"padding": -1}, RuntimeError, "padding is -1, expected 0 or more"),
    "padding_float": ((l1, X, W), {"padding": 1.0}, TypeError, "padding is 1.0, expected an int or 2 of them"),
    "padding_string": ((l1, X, W), {"padding": "full"}, RuntimeError, "padding is 'full', expected 'valid', 'same'"),
    "padding_same_with_stride": ((l1, X, W), {"padding": "same", "stride": 2}, RuntimeError, "got stride (2, 2)"),
    "dilation_0": ((l1, X, W), {"dilation": 0}, RuntimeError, "dilation is 0, expected 1 or more"),
    "kernel_too_large": ((l1, X, W), {"dilation": 4}, RuntimeError, "kernel spans 9 pixels along spatial dimension 0"),
    "output_enormous": ((l1, X, W), {"padding": 2**30}, RuntimeError, "output would have shape (2, 6, 2147483653, "),
    "padding_value_none": (
        (l1, X, W),
        {"padding_value": None},
        TypeError,
        "padding_value is NoneType, expected",
    ),
    "padding_value_true": ((l1, X, W), {"padding_value": True}, TypeError, "padding_value is bool, expected"),
    "padding_value_beyond_half": (
        (l1, X.half(), W.half()),
        {"padding_value": 1e6},
        RuntimeError,
        "padding_value is 1000000.0, expected a value of the input's dtype, torch.float16",
    ),
    "padding_value_of_no_integer": ((l1, X.long(), W.long()), {"padding_value": -inf}, RuntimeError, "value is -inf"),
    "padding_value_between_integers": ((l1, X.int(), W.int()), {"padding_value": 0.5}, RuntimeError, "value is 0.5"),
    "padding_value_of_no_bool": ((l1, X.bool(), W.bool()), {"padding_value": 2}, RuntimeError, "value is 2"),
    "block_0": ((l1, X, W), {"block": 0}, RuntimeError, "block is 0, expected 1 or more"),
    "block_float": ((l1, X, W), {"block": 8.0}, TypeError, "block is 8.0, expected an int"),
    "block_true": ((l1, X, W), {"block": True}, TypeError, "block is True, expected an int"),
    "returns_none": ((lambda p, w: None, X, W), {}, TypeError, "function returned NoneType, expected a Tensor"),
    "returns_the_pairs": (
        (lambda p, w: p.unsqueeze(2) - w.unsqueeze(-1), X, W),
        {},
        RuntimeError,
        "function returned shape (2, 1, 6, 36, 25), expected (2, 1, 6, 25)",
    ),
    "returns_a_broadcast": (
        (lambda p, w: (w @ p).sum(3, keepdim=True), X, W),
        {"block": 4},
        RuntimeError,
        "function returned shape (2, 1, 6, 1), expected (2, 1, 6, 4), which is (N, groups, ",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named_in_one_line(name: str) -> None:
    args, kwargs, kind, says = WRONG[name]
    with pytest.raises(kind) as raised:
        conv_with(*args, **kwargs)
    message = str(raised.value)
    assert message.startswith("conv_with: ")
    assert says in message
    assert "\n" not in message


def test_padding_values_that_dtypes_hold() -> None:
    for dtype, value in ((torch.float16, -inf), (torch.float16, 65504), (torch.uint8, 255), (torch.bool, 1)):
        output = conv_with(max_plus, X.to(dtype), torch.zeros_like(W, dtype=dtype), padding=9, padding_value=value)
        assert output[0, 0, 0, 0] == value
