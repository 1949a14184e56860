"""A call whose arguments are of a known form isn't checked again; whatever differs from it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchconv import ops
from torchconv.functional import (
    avg_pool,
    avg_pool2d,
    avg_pool3d,
    conv,
    conv1d,
    conv2d,
    conv_relu2d,
    max_pool,
    max_pool2d,
    max_pool3d,
)
from torchconv.functional.known_calls import KnownCalls

WINDOW = ((1, 1), (0, 0), (1, 1), 1)  # stride, padding, dilation, groups


@pytest.fixture
def operands() -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias of a call that has been made."""
    tensors = torch.ones(2, 4, 5, 5), torch.ones(6, 4, 3, 3), torch.ones(6)
    conv2d(*tensors, *WINDOW)
    assert len(conv._known) > 0
    return tensors


@pytest.mark.parametrize(
    "wrong",
    [{"stride": (True, 1)}, {"stride": True}, {"padding": (0.0, 0)}, {"dilation": (1.0, 1.0)}, {"groups": True}],
    ids=str,
)
def test_equal_values_of_another_type_are_an_error(operands: tuple[Tensor, ...], wrong: dict[str, Any]) -> None:
    known = dict(zip(("stride", "padding", "dilation", "groups"), WINDOW, strict=True))
    with pytest.raises(TypeError):
        conv2d(*operands, **{**known, **wrong})


def test_other_shapes_dtypes_and_functions_are_checked(operands: tuple[Tensor, ...]) -> None:
    input, weight, bias = operands
    for wrong in (
        (input[:, :3], weight, bias),
        (input, weight[:, :3], bias),
        (input, weight, bias[:5]),
        (input[:, :, :2], weight, bias),
        (input.double(), weight, bias),
        (input, weight.double(), bias),
        (input, weight, bias.double()),
        (input.to("meta"), weight, bias),
    ):
        with pytest.raises(RuntimeError):
            conv2d(*wrong, *WINDOW)
    with pytest.raises(RuntimeError, match="conv1d"):
        conv1d(*operands, *WINDOW)
    assert conv2d(input[0], weight, bias, *WINDOW).shape == (6, 3, 3)


def test_autocast_and_the_algorithm_are_asked_for_at_each_call(operands: tuple[Tensor, ...]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert conv2d(*operands, *WINDOW).dtype == torch.bfloat16
    with ops.algorithm("im2col"):
        assert conv.conv_operands("conv2d", 2, *operands, *WINDOW)[3].algorithm == "im2col"
    assert conv.conv_operands("conv2d", 2, *operands, *WINDOW)[3].algorithm == ops.current_algorithm()
    assert torch.equal(conv_relu2d(*operands, *WINDOW), conv2d(*operands, *WINDOW).relu())


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KnownCalls, "MOST", 4)
    for module in (conv, max_pool, avg_pool):
        monkeypatch.setattr(module, "_known", KnownCalls())
    for size in range(3, 20):
        input = torch.ones(1, 1, size, size)
        for module, call in ((conv, conv2d), (max_pool, max_pool2d), (avg_pool, avg_pool2d)):
            call(input, torch.ones(1, 1, 3, 3) if call is conv2d else 3)
            assert 1 <= len(module._known) <= 4


POOLINGS = {
    max_pool2d: ((2, 2), (2, 2), (0, 0), (1, 1), False),  # kernel_size, stride, padding, dilation, ceil_mode
    avg_pool2d: ((2, 2), (2, 2), (0, 0), False, True, None),  # kernel_size, stride, padding, three ways to count
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_know_the_same_objects_alone(pooling: Callable[..., Tensor]) -> None:
    known, input = POOLINGS[pooling], torch.ones(2, 4, 6, 6)
    pooling(input, *known)
    for place, wrong in ((0, (True, 2)), (0, 2.0), (1, (2.0, 2)), (2, (False, 0)), (3, 0.5), (4, 0)):
        arguments = [wrong if i == place else value for i, value in enumerate(known)]
        with pytest.raises(TypeError):
            pooling(input, *arguments)
    for wrong_input in (input[:, :, :1], input[..., :1], input[0, 0], input[:, :0], input.bool()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            pooling(wrong_input, *known)
    assert pooling(input[0], *known).shape == (4, 3, 3)
    changing = [2, 2]
    assert pooling(input, changing).shape == (2, 4, 3, 3)
    changing[:] = [3, 3]
    assert pooling(input, changing).shape == (2, 4, 2, 2)


def test_volumes_under_autocast_are_pooled_in_float32() -> None:
    input = torch.ones(1, 2, 4, 4, 4, dtype=torch.bfloat16)
    for pooling in (max_pool3d, avg_pool3d):
        assert pooling(input, 2).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert pooling(input, 2).dtype == torch.float32
