"""SimpleConvNet: the textbook's network, in shape, arguments and initial weights."""

import pytest
import torch
from torch.nn import functional as F

from torchconv import Conv2d, MaxPool2d
from torchconv.models import SimpleConvNet


def test_is_the_textbooks_network() -> None:
    network = SimpleConvNet()
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert shapes == {
        "conv1.weight": (30, 1, 5, 5),
        "conv1.bias": (30,),
        "affine1.weight": (100, 4320),
        "affine1.bias": (100,),
        "affine2.weight": (10, 100),
        "affine2.bias": (10,),
    }
    assert (type(network.conv1), type(network.pool1)) == (Conv2d, MaxPool2d)

    x = torch.rand(2, 1, 28, 28)
    hidden = F.max_pool2d(F.conv2d(x, network.conv1.weight, network.conv1.bias).relu(), 2).flatten(1)
    hidden = F.linear(hidden, network.affine1.weight, network.affine1.bias).relu()
    torch.testing.assert_close(network(x), F.linear(hidden, network.affine2.weight, network.affine2.bias))


def test_arguments_reach_their_layers() -> None:
    conv_param = {"filter_num": 4, "filter_size": 3, "pad": 1, "stride": 2}
    torch.manual_seed(0)
    network = SimpleConvNet((3, 20, 31), conv_param, hidden_size=7, output_size=5, weight_init_std=0.3)
    assert network.conv1.weight.shape == (4, 3, 3, 3)
    assert network.affine1.weight.shape == (7, 4 * 5 * 8)
    assert network(torch.rand(2, 3, 20, 31)).shape == (2, 5)
    assert network.affine1.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert all((layer.bias == 0).all() for layer in (network.conv1, network.affine1, network.affine2))


def test_what_conv_param_lacks_is_the_books() -> None:
    conv = SimpleConvNet(conv_param={"filter_num": 16}).conv1
    assert (conv.out_channels, conv.kernel_size, conv.padding, conv.stride) == (16, (5, 5), (0, 0), (1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"conv_param": {"filters": 3}}, r"conv_param={'filters': 3}: expected the names filter_num, filter_size, pad, "),
     ({"conv_param": {"filter_num": 0}}, r"conv_param\['filter_num'\]=0: expected a whole number of 1 or more"),
     ({"conv_param": {"pad": -1}}, r"conv_param\['pad'\]=-1: expected a whole number of 0 or more"),
     ({"conv_param": {"stride": 1.5}}, r"conv_param\['stride'\]=1.5: expected a whole number"),
     ({"conv_param": {"filter_size": 28}}, r"input_dim=\(1, 28, 28\): with .* gives 1×1 pixels, expected at least 2×2"),
     ({"input_dim": (28, 28)}, r"input_dim=\(28, 28\): expected channels, height and width"),
     ({"input_dim": (0, 28, 28)}, "input_dim=0: expected a whole number of 1 or more"),
     ({"hidden_size": 0}, "hidden_size=0: expected a whole number of 1 or more"),
     ({"output_size": "ten"}, "output_size='ten': expected a whole number of 1 or more"),
     ({"weight_init_std": float("nan")}, "weight_init_std=nan: expected a finite number of 0 or more")],
)  # fmt: skip
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SimpleConvNet(**arguments)


def test_pictures_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"x: expected the shape \(N, 1, 28, 28\), got torch.Size\(\[2, 1, 32, 32\]\)"):
        SimpleConvNet()(torch.rand(2, 1, 32, 32))


def test_learns_a_few_pictures_by_heart() -> None:
    torch.manual_seed(0)
    network = SimpleConvNet()
    images, labels = (torch.rand(10, 1, 28, 28) > 0.8).float(), torch.arange(10)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert (network(images).argmax(1) == labels).all()
