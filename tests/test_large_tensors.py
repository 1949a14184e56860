"""Pictures of more than 2**31 elements: indices are of 64 bits. Almost all of them are zeros that take no memory."""

import pytest
import torch
from grid import compiled_only
from torch import Tensor

from torchconv.functional import avg_pool2d, conv2d, max_pool2d, unfold

pytestmark = [pytest.mark.slow, compiled_only]  # the reference holds a copy of the picture for each tap

SIDE = 2**15 + 1
STEP, WINDOW = 64, 65  # the last window ends with the picture


def picture(dtype: torch.dtype) -> Tensor:
    """Two channels of zeros but for their last pixels."""
    image = torch.zeros(1, 2, SIDE, SIDE, dtype=dtype)
    assert image.numel() > 2**31
    image[0, :, -1, -1] = torch.tensor([3.0, 5.0])
    return image


def test_max_pooling() -> None:
    output, indices = max_pool2d(picture(torch.bfloat16), WINDOW, STEP, return_indices=True)
    assert output[0, :, -1, -1].tolist() == [3.0, 5.0]
    assert output.count_nonzero() == 2
    assert indices[0, :, -1, -1].tolist() == [SIDE**2 - 1] * 2


def test_average_pooling_and_its_gradient() -> None:
    image = picture(torch.bfloat16).requires_grad_()
    output = avg_pool2d(image, WINDOW, STEP, divisor_override=1)
    assert output[0, :, -1, -1].tolist() == [3.0, 5.0]
    grad_output = torch.zeros_like(output)
    grad_output[0, 1, -1, -1] = 7.0
    (gradient,) = torch.autograd.grad(output, image, grad_output)
    assert gradient[0, 1, -WINDOW:, -WINDOW:].eq(7.0).all()
    assert gradient[0, 1, -WINDOW - 1].count_nonzero() == 0
    assert gradient[0, 0, -1].count_nonzero() == 0


def test_convolution() -> None:
    image = picture(torch.float32).view(2, 1, SIDE, SIDE)  # of one channel: no other layout is needed
    output = conv2d(image, torch.ones(1, 1, WINDOW, WINDOW), stride=STEP)
    assert output[:, 0, -1, -1].tolist() == [3.0, 5.0]
    assert output.count_nonzero() == 2


def test_columns() -> None:
    columns = unfold(picture(torch.bfloat16), 1, stride=STEP)
    assert columns[0, :, -1].tolist() == [3.0, 5.0]
    assert columns.count_nonzero() == 2
