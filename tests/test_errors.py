"""Bad arguments of functions and modules: the kind of error that torch raises, in one line, and nothing allocated."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from grid import BACKENDS, filled
from torch import Tensor, nn
from torch.nn import functional as F

from torchconv import Conv2d, MaxPool2d, functional, ops
from torchconv.functional import conv2d, fold, max_pool2d, unfold

X, W, B = filled((2, 4, 7, 7), torch.float32), filled((6, 4, 3, 3), torch.float32), filled((6,), torch.float32)
COLUMNS = filled((2, 36, 25), torch.float32)
ENORMOUS = torch.zeros(1).expand(2**16, 4, 2**14, 2**14)  # 2**46 elements in 4 bytes

Call = tuple[tuple[Any, ...], dict[str, Any], str]

# Arguments, and what the message must say: the argument's name and its value.
CONV: dict[str, Call] = {
    "input_2d": ((filled((4, 4)), W), {}, r"input has shape \(4, 4\)"),
    "input_5d": ((filled((1, 2, 4, 7, 7)), W), {}, r"input has shape \(1, 2, 4, 7, 7\)"),
    "input_none": ((None, W), {}, "input is NoneType"),
    "input_list": (([1.0], W), {}, "input is list"),
    "input_array": ((np.zeros((2, 4, 7, 7)), W), {}, "input is ndarray"),
    "weight_3d": ((X, filled((6, 4, 3))), {}, r"weight has shape \(6, 4, 3\)"),
    "weight_none": ((X, None), {}, "weight is NoneType"),
    "kernel_empty": ((X, filled((6, 4, 0, 3), torch.float32)), {}, r"weight has shape \(6, 4, 0, 3\)"),
    "channels": ((filled((2, 3, 7, 7), torch.float32), W), {}, r"input has shape \(2, 3, 7, 7\)"),
    "channels_without_a_batch": ((filled((3, 7, 7), torch.float32), W), {}, r"input has shape \(3, 7, 7\)"),
    "weight_dtype": ((X, W.double()), {}, "input torch.float32, weight torch.float64"),
    "half_and_bfloat16": ((X.half(), W.bfloat16()), {}, "input torch.float16, weight torch.bfloat16"),
    "integer_input": ((X.long(), W), {}, "input torch.int64, weight torch.float32"),
    "bias_dtype": ((X, W, B.double()), {}, "bias torch.float64"),
    "bias_shape": ((X, W, B[:5]), {}, r"bias has shape \(5,\), expected \(6,\)"),
    "bias_2d": ((X, W, B[:, None]), {}, r"bias has shape \(6, 1\)"),
    "bias_number": ((X, W, 3), {}, "bias is int"),
    "groups_0": ((X, W), {"groups": 0}, "groups is 0"),
    "groups_negative": ((X, W), {"groups": -1}, "groups is -1"),
    "groups_that_do_not_divide": ((X, W), {"groups": 3}, "groups=3"),
    "groups_that_do_not_divide_the_output": ((X, filled((6, 1, 3, 3), torch.float32)), {"groups": 4}, "groups=4"),
    "groups_enormous": ((X, W), {"groups": 2**62}, f"groups={2**62}"),
    "groups_true": ((X, W), {"groups": True}, "groups is True"),
    "groups_float": ((X, W), {"groups": 1.0}, "groups is 1.0"),
    "groups_none": ((X, W), {"groups": None}, "groups is None"),
    "kernel_larger_than_input": ((X[:, :, :2], W), {}, "kernel spans 3 .* padded input's 2"),
    "dilated_kernel_larger_than_input": ((X, W), {"dilation": 4}, "kernel spans 9 .* padded input's 7"),
    "input_empty": ((X[:, :, :0], W), {}, r"input has shape \(2, 4, 0, 7\)"),
    "padding_string": ((X, W), {"padding": "Same"}, "padding is 'Same'"),
    "padding_empty_string": ((X, W), {"padding": ""}, "padding is ''"),
    "padding_same_with_stride": ((X, W), {"padding": "same", "stride": 2}, r"padding='same' .* stride \(2, 2\)"),
    "padding_negative": ((X, W), {"padding": -1}, "padding is -1"),
    "padding_none": ((X, W), {"padding": None}, "padding is None"),
    "padding_float": ((X, W), {"padding": 1.0}, "padding is 1.0"),
    "padding_float_in_a_list": ((X, W), {"padding": [1.0, 1]}, r"padding is \[1.0, 1\]"),
    "padding_true": ((X, W), {"padding": True}, "padding is True"),
    "padding_three": ((X, W), {"padding": (1, 1, 1)}, r"padding is \(1, 1, 1\)"),
    "padding_none_of_them": ((X, W), {"padding": ()}, r"padding is \(\)"),
    "stride_0": ((X, W), {"stride": 0}, "stride is 0"),
    "stride_0_in_one_direction": ((X, W), {"stride": (1, 0)}, r"stride is \(1, 0\)"),
    "stride_negative": ((X, W), {"stride": -1}, "stride is -1"),
    "stride_none": ((X, W), {"stride": None}, "stride is None"),
    "stride_string": ((X, W), {"stride": "1"}, "stride is '1'"),
    "stride_float": ((X, W), {"stride": 1.0}, "stride is 1.0"),
    "stride_three": ((X, W), {"stride": (1, 1, 1)}, r"stride is \(1, 1, 1\)"),
    "dilation_0": ((X, W), {"dilation": 0}, "dilation is 0"),
    "dilation_negative": ((X, W), {"dilation": -1}, "dilation is -1"),
    "dilation_float": ((X, W), {"dilation": 1.5}, "dilation is 1.5"),
    "dilation_enormous": ((X, W), {"dilation": 2**62}, f"dilation is {2**62}"),
    "padding_enormous": ((X, W), {"padding": 2**40}, f"padding is {2**40}"),
    "padding_overflows": ((X, W), {"padding": 2**62}, f"padding is {2**62}"),
    "output_enormous": ((X, W), {"padding": 2**30}, "output would have shape .*2147483653"),
    "output_of_200_terabytes": ((X, W), {"padding": 2**20}, "output would have shape .*2097157"),
    "input_enormous": ((ENORMOUS, W), {}, "output would have shape"),
}
POOL: dict[str, Call] = {
    "input_2d": ((filled((4, 4)), 2), {}, r"input has shape \(4, 4\)"),
    "input_5d": ((filled((1, 1, 1, 4, 4)), 2), {}, r"input has shape \(1, 1, 1, 4, 4\)"),
    "input_none": ((None, 2), {}, "input is NoneType"),
    "no_channels": ((X[:, :0], 2), {}, r"input has shape \(2, 0, 7, 7\)"),
    "no_height": ((X[:, :, :0], 2), {}, r"input has shape \(2, 4, 0, 7\)"),
    "no_channels_nor_batch": ((X[:0, :0], 2), {}, r"input has shape \(0, 0, 7, 7\)"),
    "bool": ((X.bool(), 2), {}, "dtype torch.bool"),
    "complex": ((X.cfloat(), 2), {}, "dtype torch.complex64"),
    "8_bit_float": ((X.to(torch.float8_e4m3fn), 2), {}, "dtype torch.float8_e4m3fn"),
    "kernel_0": ((X, 0), {}, "kernel_size is 0"),
    "kernel_negative": ((X, -1), {}, "kernel_size is -1"),
    "kernel_three": ((X, (2, 2, 2)), {}, r"kernel_size is \(2, 2, 2\)"),
    "kernel_none": ((X, None), {}, "kernel_size is None"),
    "kernel_float": ((X, 2.0), {}, "kernel_size is 2.0"),
    "kernel_true": ((X, True), {}, "kernel_size is True"),
    "kernel_string": ((X, "2"), {}, "kernel_size is '2'"),
    "kernel_larger_than_input": ((X, 8), {}, "kernel spans 8 .* padded input's 7"),
    "kernel_enormous": ((X, 2**40), {}, f"kernel_size is {2**40}"),
    "stride_0": ((X, 2), {"stride": 0}, "stride is 0"),
    "stride_negative": ((X, 2), {"stride": -1}, "stride is -1"),
    "stride_float": ((X, 2), {"stride": 1.0}, "stride is 1.0"),
    "stride_enormous": ((X, 2), {"stride": 2**62}, f"stride is {2**62}"),
    "padding_above_half": ((X, 3), {"padding": 2}, "padding is 2, .* half of kernel_size, 3"),
    "padding_above_half_of_one": ((X, 1), {"padding": 1}, "padding is 1, .* half of kernel_size, 1"),
    "padding_above_half_but_dilated": (
        (X, 3),
        {"padding": 2, "dilation": 2},
        "padding is 2, .* half of kernel_size, 3",
    ),
    "padding_negative": ((X, 2), {"padding": -1}, "padding is -1"),
    "padding_enormous": ((X, 2), {"padding": 2**40}, f"padding is {2**40}"),
    "dilation_0": ((X, 2), {"dilation": 0}, "dilation is 0"),
    "dilation_enormous": ((X, 2), {"dilation": 2**40}, f"dilation is {2**40}"),
    "dilated_kernel_larger_than_input": ((X, 2), {"dilation": 7}, "kernel spans 8 .* padded input's 7"),
    "ceil_mode_none": ((X, 2), {"ceil_mode": None}, "ceil_mode is None"),
    "ceil_mode_int": ((X, 2), {"ceil_mode": 1}, "ceil_mode is 1"),
    "input_enormous": ((ENORMOUS, 1), {}, "output would have shape"),
}
UNFOLD: dict[str, Call] = {
    "input_5d": ((X[None], 3), {}, r"input has shape \(1, 2, 4, 7, 7\)"),
    "no_channels": ((X[:, :0], 3), {}, r"input has shape \(2, 0, 7, 7\)"),
    "kernel_0": ((X, 0), {}, "kernel_size is 0"),
    "kernel_float": ((X, 3.0), {}, "kernel_size is 3.0"),
    "kernel_larger_than_input": ((X, 8), {}, "kernel spans 8"),
    "stride_0": ((X, 3), {"stride": 0}, "stride is 0"),
    "dilation_0": ((X, 3), {"dilation": 0}, "dilation is 0"),
    "padding_negative": ((X, 3), {"padding": -1}, "padding is -1"),
    "padding_enormous": ((X, 3), {"padding": 2**40}, f"padding is {2**40}"),
    "output_enormous": ((X, 3), {"padding": 2**29}, "output would have shape"),
    "input_enormous": ((ENORMOUS, 3), {}, "output would have shape"),
}
FOLD: dict[str, Call] = {
    "input_4d": ((COLUMNS[None], 7, 3), {}, r"input has shape \(1, 2, 36, 25\)"),
    "rows": ((COLUMNS[:, :35], 7, 3), {}, r"input has shape \(2, 35, 25\)"),
    "no_rows": ((COLUMNS[:, :0], 7, 3), {}, r"input has shape \(2, 0, 25\)"),
    "columns": ((COLUMNS[..., :24], 7, 3), {}, r"input has shape \(2, 36, 24\)"),
    "size_0": ((COLUMNS, 0, 3), {}, "output_size is 0"),
    "size_negative": ((COLUMNS, -7, 3), {}, "output_size is -7"),
    "size_float": ((COLUMNS, 7.0, 3), {}, "output_size is 7.0"),
    "size_enormous": ((COLUMNS, 2**40, 3), {}, f"output_size is {2**40}"),
    "size_of_a_terabyte": ((COLUMNS, 2**20, 3), {}, r"1048574 \* 1048574 columns"),
    "kernel_0": ((COLUMNS, 7, 0), {}, "kernel_size is 0"),
    "kernel_larger_than_image": ((COLUMNS, 2, 3), {}, "kernel spans 3"),
}
AVG: dict[str, Call] = {
    "input_5d": ((X[None], 2), {}, r"input has shape \(1, 2, 4, 7, 7\)"),
    "input_none": ((None, 2), {}, "input is NoneType"),
    "no_channels": ((X[:, :0], 2), {}, r"input has shape \(2, 0, 7, 7\)"),
    "int32": ((X.int(), 2), {}, "dtype torch.int32"),
    "8_bit_float": ((X.to(torch.float8_e4m3fn), 2), {}, "dtype torch.float8_e4m3fn"),
    "kernel_larger_than_input": ((X, 8), {}, "kernel spans 8 .* padded input's 7"),
    "stride_0": ((X, 2, 0), {}, "stride is 0"),
    "ceil_mode_int": ((X, 2), {"ceil_mode": 1}, "ceil_mode is 1"),
    "count_include_pad_none": ((X, 2), {"count_include_pad": None}, "count_include_pad is None"),
    "divisor_0": ((X, 2), {"divisor_override": 0}, "divisor_override is 0"),
    "divisor_float": ((X, 2), {"divisor_override": 2.0}, "divisor_override is 2.0"),
    "input_enormous": ((ENORMOUS, 1), {}, "output would have shape"),
}
AVG_3D: dict[str, Call] = {
    "input_3d": ((X[0], 2), {}, r"input has shape \(4, 7, 7\)"),
    "kernel_larger_than_the_unpadded_input": ((X, (5, 3, 3), 1, (1, 0, 0)), {}, r"kernel_size is \(5, 3, 3\)"),
}
ADAPTIVE: dict[str, Call] = {
    "no_height": ((X[:, :, :0], 2), {}, r"input has shape \(2, 4, 0, 7\)"),
    "integer": ((X.long(), 2), {}, "dtype torch.int64"),
    "size_negative": ((X, -1), {}, "output_size is .*-1"),
    "size_float": ((X, 2.0), {}, "output_size is .*2.0"),
    "size_three": ((X, (2, 2, 2)), {}, r"output_size is \(2, 2, 2\)"),
    "size_enormous": ((X, 2**40), {}, "output_size is .*1099511627776"),
}
INDICES = torch.zeros(2, 4, 7, 7, dtype=torch.int64)
UNPOOL: dict[str, Call] = {
    "input_2d": ((X[0, 0], INDICES[0, 0], 2), {}, r"input has shape \(7, 7\)"),
    "indices_none": ((X, None, 2), {}, "indices is NoneType"),
    "indices_int32": ((X, INDICES.int(), 2), {}, "indices has dtype torch.int32"),
    "indices_shape": ((X, INDICES[:1], 2), {}, r"indices has shape \(1, 4, 7, 7\)"),
    "size_too_small": ((X, INDICES, 2), {"output_size": (12, 14)}, r"output_size is \(12, 14\)"),
    "size_too_large": ((X, INDICES, 2), {"output_size": (14, 16)}, r"output_size is \(14, 16\)"),
    "size_three": ((X, INDICES, 2), {"output_size": (4, 14, 14)}, r"output_size is \(4, 14, 14\)"),
}
LP: dict[str, Call] = {
    "input_5d": ((X[None], 2.0, 2), {}, r"input has shape \(1, 2, 4, 7, 7\)"),
    "kernel_larger_than_input": ((X, 2.0, 8), {}, "kernel spans 8 .* padded input's 7"),
    "kernel_larger_than_input_max": ((X, float("inf"), 8), {}, "kernel spans 8 .* padded input's 7"),
    "stride_0": ((X, 2.0, 2, 0), {}, "stride is 0"),
}
NORM: dict[str, Call] = {
    "input_2d": ((X[0, 0], 2), {}, r"input has shape \(7, 7\)"),
    "size_0": ((X, 0), {}, "size is 0"),
    "size_float": ((X, 2.0), {}, "size is 2.0"),
}
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Call]]] = {
    "conv2d": (conv2d, F.conv2d, CONV),
    "max_pool2d": (max_pool2d, F.max_pool2d, POOL),
    "unfold": (unfold, F.unfold, UNFOLD),
    "fold": (fold, F.fold, FOLD),
    "avg_pool2d": (functional.avg_pool2d, F.avg_pool2d, AVG),
    "avg_pool3d": (functional.avg_pool3d, F.avg_pool3d, AVG_3D),
    "adaptive_avg_pool2d": (functional.adaptive_avg_pool2d, F.adaptive_avg_pool2d, ADAPTIVE),
    "adaptive_max_pool2d": (functional.adaptive_max_pool2d, F.adaptive_max_pool2d, ADAPTIVE),
    "max_unpool2d": (functional.max_unpool2d, F.max_unpool2d, UNPOOL),
    "lp_pool2d": (functional.lp_pool2d, F.lp_pool2d, LP),
    "local_response_norm": (functional.local_response_norm, F.local_response_norm, NORM),
}
CASES = [(function, name) for function, (_, _, calls) in FUNCTIONS.items() for name in calls]


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@pytest.mark.parametrize("name", [name for name in functional.__all__ if name[-2] in "123" or name.endswith("norm")])
def test_what_is_no_tensor_is_a_type_error(name: str) -> None:
    for value in (None, [1.0], np.zeros((2, 4, 7, 7))):  # torch's is sometimes an AttributeError
        with pytest.raises(TypeError, match=f"^{name}: input is {type(value).__name__}, expected a Tensor$"):
            getattr(functional, name)(value, *[2] * (1 if name.startswith("adaptive") else 2))


# Torch pads such pictures for real and then fails to allocate, or overflows on the way; don't let it try.
UNTRIED_IN_TORCH = ("input_enormous", "output_enormous", "output_of_200_terabytes")


@pytest.mark.parametrize(("function", "name"), CASES, ids=lambda value: str(value))
def test_bad_argument_raises_what_torch_raises(function: str, name: str) -> None:
    ours, theirs, calls = FUNCTIONS[function]
    args, kwargs, says = calls[name]
    kind: type[Exception] = RuntimeError
    if name not in UNTRIED_IN_TORCH:
        with pytest.raises(Exception) as torchs:  # noqa: PT011  # whatever it is, ours must be of that kind
            theirs(*args, **kwargs)
        kind = torchs.type
    before = psutil.Process().memory_info().rss
    with pytest.raises(kind) as raised:
        ours(*args, **kwargs)
    assert psutil.Process().memory_info().rss - before < 2**23
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"{function}: ")
    assert re.search(says, message), message


def test_sizes_beyond_torchs_own_limits_are_errors() -> None:
    for value in (2**31, 2**62, 2**63, 2**200):  # torch takes the first two as strides, and overflows at the others
        with pytest.raises(RuntimeError) as raised:
            conv2d(X, W, stride=value)
        assert str(raised.value) == f"conv2d: stride is {value}, expected less than 2**31"
    assert conv2d(X, W, stride=2**31 - 1).shape == (2, 6, 1, 1)


def test_other_integer_types_are_taken_as_torch_takes_them() -> None:
    for one in (np.int64(1), torch.tensor(1)):
        arguments = {"stride": one, "padding": one, "dilation": one, "groups": one}
        torch.testing.assert_close(conv2d(X, W, **arguments), F.conv2d(X, W, padding=1))
    assert max_pool2d(X, np.int64(2), [np.int64(2), 1]).shape == (2, 4, 3, 6)


def test_other_devices_and_layouts() -> None:
    with pytest.raises(RuntimeError, match="input is on meta and weight on cpu"):
        conv2d(X.to("meta"), W)
    with pytest.raises(RuntimeError):
        conv2d(X.to_sparse(), W)
    with pytest.raises(RuntimeError):
        conv2d(X, W.to_sparse())
    with pytest.raises(RuntimeError):
        max_pool2d(X.to_sparse(), 2)


MODULES: dict[str, tuple[Callable[[Any], nn.Module], Tensor]] = {
    "conv_channels": (lambda kinds: kinds[0](4, 6, 3), X[:, :3]),
    "conv_too_small": (lambda kinds: kinds[0](4, 6, 9), X),
    "conv_dtype": (lambda kinds: kinds[0](4, 6, 3), X.double()),
    "conv_rank": (lambda kinds: kinds[0](4, 6, 3), X[None]),
    "conv_reflects_more_than_there_is": (lambda kinds: kinds[0](4, 6, 3, padding=8, padding_mode="reflect"), X),
    "conv_wraps_more_than_there_is": (lambda kinds: kinds[0](4, 6, 3, padding=8, padding_mode="circular"), X),
    "pool_too_small": (lambda kinds: kinds[1](8), X),
    "pool_padding": (lambda kinds: kinds[1](2, padding=2), X),
    "pool_rank": (lambda kinds: kinds[1](2), X[0, 0]),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_raise_what_torchs_do(name: str) -> None:
    make, input = MODULES[name]
    with pytest.raises(Exception) as torchs:  # noqa: PT011
        make((nn.Conv2d, nn.MaxPool2d))(input)
    with pytest.raises(torchs.type) as raised:
        make((Conv2d, MaxPool2d))(input)
    assert "\n" not in str(raised.value)


def test_modules_refuse_what_torchs_refuse_when_made() -> None:
    for arguments in ({"groups": 3}, {"padding": "sama"}, {"padding_mode": "mirror"}, {"padding": "same", "stride": 2}):
        with pytest.raises(ValueError, match=r".") as torchs:
            nn.Conv2d(4, 6, 3, **arguments)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=re.escape(str(torchs.value))):
            Conv2d(4, 6, 3, **arguments)  # type: ignore[arg-type]
