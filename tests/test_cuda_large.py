"""Pictures of more than 2**31 elements on a GPU: indices are of 64 bits. Where the memory is there."""

import pytest
import torch
from device import DEVICE, free_memory, on_the_device
from torch import Tensor

from torchconv import functional

pytestmark = [*on_the_device, pytest.mark.slow]

SIDE, STEP, WINDOW = 2**15 + 1, 64, 65  # the last window ends with the picture


def picture(dtype: torch.dtype, gigabytes: float) -> Tensor:
    """Two channels of zeros but for their last pixels, more than 2**31 elements in all; skips without the memory."""
    if free_memory() < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of memory")
    image = torch.zeros(1, 2, SIDE, SIDE, dtype=dtype, device=DEVICE)
    assert image.numel() > 2**31
    image[0, :, -1, -1] = torch.tensor([3.0, 5.0], device=DEVICE)
    return image


def test_pooling_of_more_elements_than_32_bits_count() -> None:
    image = picture(torch.bfloat16, 12)
    output, indices = functional.max_pool2d(image, WINDOW, STEP, return_indices=True)
    assert output[0, :, -1, -1].tolist() == [3.0, 5.0]
    assert output.count_nonzero() == 2
    assert indices[0, :, -1, -1].tolist() == [SIDE**2 - 1] * 2
    output = functional.avg_pool2d(image.requires_grad_(), WINDOW, STEP, divisor_override=1)
    assert output[0, :, -1, -1].tolist() == [3.0, 5.0]
    grad_output = torch.zeros_like(output)
    grad_output[0, 1, -1, -1] = 7.0
    (gradient,) = torch.autograd.grad(output, image, grad_output)
    assert gradient[0, 1, -WINDOW:, -WINDOW:].eq(7.0).all()
    assert gradient[0, 1, -WINDOW - 1].count_nonzero() == 0
    assert gradient[0, 0, -1].count_nonzero() == 0


def test_max_pooling_s_gradient_of_more_elements_than_32_bits_count() -> None:
    image = picture(torch.bfloat16, 14).requires_grad_()
    output = functional.max_pool2d(image, WINDOW, STEP)
    (gradient,) = torch.autograd.grad(output, image, output.detach())
    assert gradient[0, :, -1, -1].tolist() == [3.0, 5.0]


def test_convolution_of_more_elements_than_32_bits_count() -> None:
    image = picture(torch.float32, 16).view(2, 1, SIDE, SIDE)
    output = functional.conv2d(image, torch.ones(1, 1, WINDOW, WINDOW, device=DEVICE), stride=STEP)
    assert output[:, 0, -1, -1].tolist() == [3.0, 5.0]
    assert output.count_nonzero() == 2


def test_fused_convolution_to_more_elements_than_32_bits_count() -> None:
    image = picture(torch.float32, 24).view(2, 1, SIDE, SIDE)
    output = functional.conv_relu2d(image, torch.full((1, 1, 1, 1), 2.0, device=DEVICE))
    assert output[:, 0, -1, -1].tolist() == [6.0, 10.0]
    assert output[1, 0, :-1].count_nonzero() == 0


def test_columns_of_more_elements_than_32_bits_count() -> None:
    columns = functional.unfold(picture(torch.bfloat16, 8), 1, stride=STEP)
    assert columns[0, :, -1].tolist() == [3.0, 5.0]
    assert columns.count_nonzero() == 2
