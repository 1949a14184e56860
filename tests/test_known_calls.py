"""A convolution whose operands are of a known form isn't checked again; whatever differs from it is."""

from typing import Any

import pytest
import torch
from torch import Tensor

from torchconv import functional, ops
from torchconv.functional import conv, conv1d, conv2d, conv_relu2d

WINDOW = ((1, 1), (0, 0), (1, 1), 1)  # stride, padding, dilation, groups


@pytest.fixture
def operands() -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias of a call that has been made."""
    tensors = torch.ones(2, 4, 5, 5), torch.ones(6, 4, 3, 3), torch.ones(6)
    conv2d(*tensors, *WINDOW)
    assert any(known.geometry.stride == (1, 1) for known in conv._checked.values())
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
    monkeypatch.setattr(conv, "_MOST_CHECKED", 4)
    monkeypatch.setattr(conv, "_checked", {})
    for size in range(3, 20):
        functional.conv2d(torch.ones(1, 1, size, size), torch.ones(1, 1, 3, 3))
        assert 1 <= len(conv._checked) <= 4
