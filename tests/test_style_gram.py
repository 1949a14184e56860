"""gram_matrix: the textbook's sum, in both memory formats, differentiable to any order."""

import pytest
import torch
from torch import Tensor

from torchconv.style import gram_matrix


def features(layout: str, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    if layout == "sliced":
        return torch.randn(2, 10, 7, 12, dtype=dtype)[:, ::2, 1:6, ::2]
    memory_format = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    return torch.randn(2, 5, 5, 6, dtype=dtype).contiguous(memory_format=memory_format)


LAYOUTS = ["contiguous", "channels-last", "sliced"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_sum_over_pixels_divided_by_their_number(layout: str, dtype: torch.dtype) -> None:
    x = features(layout, dtype)
    expected = torch.einsum("nchw,ndhw->ncd", x, x) / (x.shape[2] * x.shape[3])
    torch.testing.assert_close(gram_matrix(x), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_first_and_second_order(layout: str) -> None:
    x = features(layout)[:, :3, :2].detach().requires_grad_()
    assert torch.autograd.gradcheck(gram_matrix, x)
    assert torch.autograd.gradgradcheck(gram_matrix, x)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_copies_no_features_and_gives_the_gradient_in_their_format(layout: str) -> None:
    x = features(layout).requires_grad_()
    saved = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        gram = gram_matrix(x)
    assert saved == [x.data_ptr()]
    (gradient,) = torch.autograd.grad(gram.square().sum(), x)
    assert gradient.stride() == x.stride()


def test_does_not_depend_on_the_size_of_a_repeated_picture() -> None:
    x = features("contiguous")
    torch.testing.assert_close(gram_matrix(x.repeat(1, 1, 3, 2)), gram_matrix(x))


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 3, 0, 5), (1, 3, 4, 0), (3,)])
def test_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features: expected the shape \(N, C, H, W\)"):
        gram_matrix(torch.zeros(shape))
