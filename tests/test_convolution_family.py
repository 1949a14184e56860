"""Convolution, transposed convolution and max pooling over one, two and three dimensions, beside torch's."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import torchconv
from torchconv import functional

RANKS = (1, 2, 3)
CASES = 25


@pytest.fixture(params=["auto", "reference"], autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with torchconv.algorithm(request.param):
        yield request.param


def normal(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64).requires_grad_()


def sides(rank: int, low: int, high: int) -> list[int]:
    return [random.randint(low, high) for _ in range(rank)]


def assert_same(ours: Callable[..., Any], theirs: Callable[..., Any], leaves: tuple[Tensor, ...], *args: Any) -> None:
    """Equal results and gradients, or an error on both sides."""
    try:
        expected = theirs(*leaves, *args)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            ours(*leaves, *args)
        return
    actual = ours(*leaves, *args)
    torch.testing.assert_close(actual, expected)
    grad_output = torch.randn_like(expected)
    gradients = (torch.autograd.grad(output, leaves, grad_output) for output in (actual, expected))
    for gradient, expected_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seed", range(CASES))
def test_random_geometry_is_torchs(rank: int, seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    groups = random.choice((1, 1, 2))
    channels, out_channels = groups * random.randint(1, 3), groups * random.randint(1, 3)
    kernel, stride, dilation, padding = sides(rank, 1, 3), sides(rank, 1, 3), sides(rank, 1, 3), sides(rank, 0, 2)
    extra = [random.randint(0, max(s, d)) for s, d in zip(stride, dilation, strict=True)]  # the largest is refused
    input, bias = normal(2, channels, *sides(rank, 4, 8)), normal(out_channels)
    assert_same(
        getattr(functional, f"conv{rank}d"),
        getattr(F, f"conv{rank}d"),
        (input, normal(out_channels, channels // groups, *kernel), bias),
        *(stride, padding, dilation, groups),
    )
    assert_same(
        getattr(functional, f"conv_transpose{rank}d"),
        getattr(F, f"conv_transpose{rank}d"),
        (input, normal(channels, out_channels // groups, *kernel), bias),
        *(stride, padding, extra, groups, dilation),
    )
    half, ceil_mode = [k // 2 for k in kernel], bool(seed % 2)
    ours, theirs = getattr(functional, f"max_pool{rank}d"), getattr(F, f"max_pool{rank}d")
    assert_same(ours, theirs, (input,), kernel, stride, half, 1, ceil_mode)
    indices = [pool(input, kernel, stride, half, 1, ceil_mode, True)[1] for pool in (ours, theirs)]
    assert torch.equal(*indices)


@pytest.mark.parametrize("rank", RANKS)
def test_modules_are_torchs(rank: int) -> None:
    torch.manual_seed(rank)
    x = normal(2, 4, *[7] * rank)
    for name, args, kwargs in (
        ("Conv", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}),
        ("Conv", (4, 6, 3), {"padding": "same", "padding_mode": "circular"}),
        ("ConvTranspose", (4, 6, 3), {"stride": 2, "output_padding": 1, "groups": 2}),
        ("MaxPool", (3,), {"stride": 2, "ceil_mode": True}),
    ):
        kind = f"{name}{rank}d"
        theirs = getattr(nn, kind)(*args, **kwargs).double()
        ours = getattr(torchconv, kind)(*args, **kwargs).double()
        ours.load_state_dict(theirs.state_dict())
        assert isinstance(ours, type(theirs))
        assert repr(ours) == repr(theirs)
        for input in (x, x[0]):
            torch.testing.assert_close(ours(input), theirs(input))


@pytest.mark.parametrize("rank", RANKS)
def test_output_size_chooses_among_the_possible(rank: int) -> None:
    ours = getattr(torchconv, f"ConvTranspose{rank}d")(3, 2, 3, stride=2).double()
    theirs = getattr(nn, f"ConvTranspose{rank}d")(3, 2, 3, stride=2).double()
    theirs.load_state_dict(ours.state_dict())
    x = normal(1, 3, *[4] * rank)
    for size in ([9] * rank, [10] * rank):
        assert ours(x, output_size=size).shape[2:] == torch.Size(size)
        torch.testing.assert_close(ours(x, output_size=size), theirs(x, output_size=size))
    with pytest.raises(ValueError, match="valid sizes range"):
        ours(x, output_size=[11] * rank)


@pytest.mark.parametrize("rank", RANKS)
def test_transposed_convolution_differentiates_twice(rank: int) -> None:
    input, weight, bias = normal(1, 2, *[3] * rank), normal(2, 2, *[2] * rank), normal(2)
    function = getattr(functional, f"conv_transpose{rank}d")
    assert gradcheck(lambda *a: function(*a, stride=2, padding=1), (input, weight, bias), check_forward_ad=True)
    assert gradgradcheck(lambda *a: function(*a, stride=2, padding=1), (input, weight, bias))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weight": torch.zeros(5, 2, 3, 3)}, "channels that groups divides"),
        ({"bias": torch.zeros(5)}, "bias has shape"),
        ({"output_padding": 2}, "output_padding is 2"),
        ({"padding": 9}, "expected 1 or more"),
        ({"output_padding": -1}, "output_padding is -1"),
        ({"groups": 3}, "groups"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_bad_arguments_of_transposed_convolution(arguments: dict[str, Any], says: str) -> None:
    call = {"input": torch.zeros(1, 4, 5, 5), "weight": torch.zeros(4, 2, 3, 3), "stride": 2, **arguments}
    with pytest.raises(RuntimeError):
        F.conv_transpose2d(**call)
    with pytest.raises(RuntimeError, match=says):
        functional.conv_transpose2d(**call)
