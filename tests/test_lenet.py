"""LeNet-5: the published parts and numbers, and the modern form."""

import copy
import re

import pytest
import torch
import torchinfo
import torchsummary
from torch import Tensor, nn
from torch.nn import functional as F

import torchconv
from torchconv.models import LeNet5, ModernLeNet5, lenet


@pytest.fixture
def network() -> LeNet5:
    torch.manual_seed(0)
    return LeNet5()


def test_has_the_published_60000_parameters(network: LeNet5, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {name: sum(each.numel() for each in layer.parameters()) for name, layer in network.named_children()}
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164}
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == 60_000
    assert torchinfo.summary(network, (1, 1, 32, 32), verbose=0).total_params == 60_000
    assert len(list(network.state_dict())) == len(list(network.parameters()))
    torchsummary.summary(network, (1, 32, 32), device="cpu")
    assert "1,516" in capsys.readouterr().out


def test_c3_sees_what_table_1_says() -> None:
    """Three maps in a row, round the end; four in a row; three of the other fours; all."""
    cycle = [{(start + step) % 6 for step in range(6)} for start in range(6)]
    for count, maps in ((3, lenet.C3_INPUTS[:6]), (4, lenet.C3_INPUTS[6:12])):
        assert [set(inputs) for inputs in maps] == [{(start + step) % 6 for step in range(count)} for start in range(6)]
    assert [set(inputs) for inputs in lenet.C3_INPUTS[12:15]] == [{0, 1, 3, 4}, {1, 2, 4, 5}, {0, 2, 3, 5}]
    assert set(lenet.C3_INPUTS[15]) == cycle[0]


def by_the_paper(network: LeNet5, x: Tensor) -> Tensor:
    """Penalties of pictures (N, 1, 32, 32), from the paper's text, with torch's functions."""

    def subsampled(x: Tensor, layer: nn.Module) -> Tensor:
        total = x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]
        return total * layer.weight[:, None, None] + layer.bias[:, None, None]

    def squashed(a: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * a)

    x = torch.lerp(torch.tensor(-0.1), torch.tensor(1.175), x)
    x = squashed(F.conv2d(x, network.c1.weight, network.c1.bias))
    x = squashed(subsampled(x, network.s2))
    kernels = iter(network.c3.weight)
    maps = [
        sum(F.conv2d(x[:, each : each + 1], next(kernels)[None]) for each in inputs) + bias
        for inputs, bias in zip(lenet.C3_INPUTS, network.c3.bias, strict=True)
    ]
    x = squashed(subsampled(squashed(torch.cat(maps, 1)), network.s4))
    x = squashed(F.conv2d(x, network.c5.weight, network.c5.bias)).flatten(1)
    x = squashed(F.linear(x, network.f6.weight, network.f6.bias))
    return torch.stack([(x - bitmap).square().sum(1) for bitmap in lenet.digit_bitmaps()], dim=1)


def test_computes_what_the_paper_says(network: LeNet5) -> None:
    images = torch.rand(3, 1, 32, 32)
    scores, penalties = network(images), by_the_paper(network, images)
    torch.testing.assert_close(scores, -penalties)
    ours = torch.autograd.grad(scores.logsumexp(1).sum(), list(network.parameters()))
    theirs = torch.autograd.grad((-penalties).logsumexp(1).sum(), list(network.parameters()))
    torch.testing.assert_close(ours, theirs)


def test_small_pictures_get_a_margin_of_background(network: LeNet5) -> None:
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(network(images), network(F.pad(images, (2, 2, 2, 2))))


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 30, 30), (1, 32, 32), (2, 1, 28, 32)])
def test_pictures_of_another_shape(network: LeNet5, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"\(N, 1, 28, 28\), got torch.Size\({re.escape(str(list(shape)))}\)"):
        network(torch.rand(shape))


def test_bitmaps_are_drawings_of_the_digits() -> None:
    bitmaps = lenet.digit_bitmaps()
    assert bitmaps.shape == (10, 84)
    assert (bitmaps.abs() == 1).all()
    assert torch.cdist(bitmaps, bitmaps).fill_diagonal_(9).square().min() >= 4 * 8  # 8 pixels apart, or more
    one, seven = bitmaps.view(10, 12, 7)[1], bitmaps.view(10, 12, 7)[7]
    assert (one[:10, 4] == 1).all()
    assert seven[0].tolist() == [1] * 7
    assert seven[9].tolist() == [-1, -1, 1, 1, -1, -1, -1]


def test_initial_weights_are_within_the_published_range(network: LeNet5) -> None:
    fan_in = {"c1": 25, "s2": 4, "c5": 400, "f6": 120}
    scaled = [network.get_parameter(f"{name}.weight").flatten() * count for name, count in fan_in.items()]
    # By connection: three inputs each for the first 18, four for the next 36, six for the last.
    scaled += [network.c3.weight[:18].flatten() * 75, network.c3.weight[18:54].flatten() * 100]
    scaled += [network.c3.weight[54:].flatten() * 150]
    for values in scaled:
        assert values.abs().max() <= 2.4 * (1 + 1e-6)
        if len(values) >= 100:
            assert values.abs().max() > 2.2
            assert values.var().item() == pytest.approx(2.4**2 / 3, rel=0.3)


def test_loss_is_equation_9(network: LeNet5) -> None:
    penalties, target = torch.rand(4, 10) * 30, torch.tensor([3, 1, 4, 1])
    j = torch.tensor(lenet.RUBBISH_PENALTY)
    expected = torch.stack(
        [y[d] + torch.log(torch.exp(-j) + torch.exp(-y).sum()) for y, d in zip(penalties, target, strict=True)]
    )
    torch.testing.assert_close(network.loss(-penalties, target), expected.mean())
    assert (expected > 0).all()


def test_wrong_classes_far_beyond_rubbish_are_left_alone(network: LeNet5) -> None:
    scores = torch.full((1, 10), -3 * lenet.RUBBISH_PENALTY, requires_grad=True)
    network.loss(scores, torch.tensor([2])).backward()
    assert scores.grad is not None
    assert scores.grad[0, 2].item() == pytest.approx(-1, abs=1e-6)
    assert scores.grad[0, [0, 1, 3, 9]].abs().max() < 1e-6


@pytest.mark.parametrize(("make", "steps"), [(LeNet5, 80), (ModernLeNet5, 20)])
def test_learns_a_few_pictures_by_heart(make: type[nn.Module], steps: int) -> None:
    torch.manual_seed(2)
    network = make()
    loss = getattr(network, "loss", F.cross_entropy)
    images, labels = (torch.rand(10, 1, 28, 28) > 0.8).float(), torch.arange(10)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()
    assert (network(images).argmax(1) == labels).all()


def test_modern_form_is_a_fused_chain_with_the_same_logits() -> None:
    network = ModernLeNet5(num_classes=26)
    assert sum(parameter.numel() for parameter in ModernLeNet5().parameters()) == 61_706
    images = torch.rand(2, 1, 28, 28)
    fused = torchconv.convert(copy.deepcopy(network), fuse=True)
    assert [type(layer) for layer in fused.features if isinstance(layer, nn.Conv2d)] == [torchconv.ConvReLUPool2d] * 2
    assert network(images).shape == (2, 26)
    torch.testing.assert_close(fused(images), network(images))
    torch.testing.assert_close(torchconv.revert(copy.deepcopy(network))(images), network(images))
    with pytest.raises(ValueError, match=r"\(N, 1, 28, 28\), got torch.Size\(\[2, 1, 32, 32\]\)"):
        network(torch.rand(2, 1, 32, 32))
