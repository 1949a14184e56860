"""The numbers with which textbooks explain convolution, from this library."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from torchconv import Conv2d, inspect, models
from torchconv import functional as ours


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_edge_filter_answers_where_the_step_is() -> None:
    image = torch.tensor([10.0, 10, 10, 0, 0, 0]).expand(1, 1, 6, 6)
    edge = torch.tensor([1.0, 0, -1]).expand(1, 1, 3, 3)
    response = ours.conv2d(image, edge)
    assert response.tolist() == [[[[0, 30, 30, 0]] * 4]]
    assert (ours.conv2d(image, edge.transpose(2, 3)) == 0).all()  # there is no horizontal edge


@pytest.mark.parametrize(("filters", "weights"), [(1, 75), (16, 1_200)])
def test_filters_on_a_large_picture_have_few_weights(filters: int, weights: int) -> None:
    with torch.device("meta"):
        layer = Conv2d(3, filters, kernel_size=5, bias=False)
        assert parameters(layer) == weights
        assert layer(torch.empty(1, 3, 1920, 1080)).shape == (1, filters, 1916, 1076)
    assert inspect.output_size((1920, 1080), kernel_size=5) == (1916, 1076)


def test_what_200_filters_cost() -> None:
    with torch.device("meta"):
        layer = Conv2d(3, 200, kernel_size=5, padding="same")
        with FlopCounterMode(display=False) as counter:
            maps = layer(torch.empty(1, 3, 150, 100))
    assert parameters(layer) == 15_200
    assert counter.get_total_flops() // 2 == 225_000_000  # a multiplication and an addition each
    assert maps.numel() * maps.element_size() * 8 == 96_000_000


def test_three_3x3_layers_see_7x7() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*(Conv2d(1, 1, kernel_size=3) for _ in range(3)))
    sizes = [field.size for field in inspect.receptive_fields(layers, (1, 1, 9, 9)).values()]
    assert sizes == [(3, 3), (5, 5), (7, 7)]
    image = torch.zeros(1, 1, 7, 7, requires_grad=True)
    layers(image).sum().backward()
    assert (image.grad != 0).all()


def test_two_3x3_layers_see_what_a_5x5_layer_sees_with_18_weights_for_25() -> None:
    two = nn.Sequential(Conv2d(1, 1, 3, bias=False), Conv2d(1, 1, 3, bias=False))
    one = nn.Sequential(Conv2d(1, 1, 5, bias=False))
    assert (parameters(two), parameters(one)) == (18, 25)
    assert inspect.receptive_field(two, "1", (1, 1, 9, 9)) == inspect.receptive_field(one, "0", (1, 1, 9, 9))


def test_kernel_of_the_pictures_size_is_an_affine_layer() -> None:
    torch.manual_seed(0)
    layer, affine = Conv2d(1, 10, kernel_size=100).double(), nn.Linear(10_000, 10).double()
    assert parameters(layer) == parameters(affine)
    with torch.no_grad():
        layer.weight.copy_(affine.weight.view(10, 1, 100, 100))
        layer.bias.copy_(affine.bias)
    images = torch.rand(3, 1, 100, 100, dtype=torch.float64)
    torch.testing.assert_close(layer(images).flatten(1), affine(images.flatten(1)))


@pytest.mark.parametrize(("images", "rows"), [(1, 9), (10, 90)])
def test_im2col_of_7x7_pictures(images: int, rows: int) -> None:
    x = torch.rand(images, 3, 7, 7)
    columns = ours.im2col(x, kernel_size=5).transpose(1, 2).flatten(0, 1)  # a window in each row, as the books have it
    assert columns.shape == (rows, 75)
    weight = torch.rand(8, 3, 5, 5)
    maps = (columns @ weight.flatten(1).T).view(images, 3, 3, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps, F.conv2d(x, weight))


@pytest.mark.parametrize(("padding", "width", "pixels"), [("valid", 2, (0, 0)), ("same", 3, (1, 2))])
def test_width_13_with_kernel_6_and_stride_5(padding: str, width: int, pixels: tuple[int, int]) -> None:
    assert inspect.output_size(13, kernel_size=6, stride=5, padding=padding) == width
    x = F.pad(torch.arange(1.0, 14).view(1, 1, 13), pixels)
    windows = ours.unfold(x, kernel_size=(6,), stride=(5,))
    assert windows.shape == (1, 6, width)
    assert (windows == 13).any() == (padding == "same")  # "valid" drops the last pixels


def test_most_of_vgg19s_parameters_are_in_its_affine_layers() -> None:
    with torch.device("meta"):
        network = models.vgg19()
    assert parameters(network) == 143_667_240
    assert parameters(network.classifier) == 123_642_856
    assert parameters(network.classifier) / parameters(network) == pytest.approx(0.8606, abs=1e-4)


@pytest.mark.parametrize(("layer", "pixels"), [("relu4_2", 84), ("relu5_1", 156)])
def test_how_far_vgg19s_layers_see(layer: str, pixels: int) -> None:
    with torch.device("meta"):
        network = models.vgg_features("vgg19", layers=[layer], weights=None)
    assert inspect.receptive_field(network, layer, (1, 3, 224, 224)).size == (pixels, pixels)
