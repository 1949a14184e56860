"""Local response normalisation, beside torch's."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from grid import BACKENDS, LAYOUTS, filled, gradients, leaf
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv
from torchconv import ops
from torchconv.functional import local_response_norm

SHAPES = [(2, 5, 6), (2, 7, 4, 5), (3, 1, 2, 2), (2, 5, 3, 4, 2), (1, 4, 2, 3, 2, 2)]
ARGUMENTS: list[dict[str, Any]] = [
    {"size": 1},
    {"size": 2},
    {"size": 5, "alpha": 0.7, "beta": 0.5, "k": 2.0},
    {"size": 8, "alpha": 2, "beta": 1, "k": 1},
]


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda a: f"size_{a['size']}")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_torch(shape: tuple[int, ...], arguments: dict[str, Any], dtype: torch.dtype) -> None:
    mine = leaf(filled(shape, dtype))
    exact = leaf(filled(shape, dtype).double())
    output, expected = local_response_norm(mine, **arguments), F.local_response_norm(exact, **arguments)
    assert output.dtype == dtype
    # Square, mean, product, sum, power and quotient round once each in a 16-bit type, and so do the gradient's.
    loose = {"rtol": 0.0, "atol": 8 * torch.finfo(dtype).eps} if dtype.itemsize == 2 else {}
    assert_close(output, expected.to(dtype), **loose)
    grad_output = filled(shape, dtype, 3)
    (grad,), (theirs,) = gradients(output, [mine], grad_output), gradients(expected, [exact], grad_output.double())
    assert_close(grad, theirs.to(dtype), **loose)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    input = LAYOUTS[layout](filled((2, 7, 4, 5)))
    mine, theirs = leaf(input), leaf(input.contiguous())
    output, expected = local_response_norm(mine, 3, 0.5), F.local_response_norm(theirs, 3, 0.5)
    assert_close(output, expected)
    grad_output = LAYOUTS[layout](filled(output.shape, seed=3))
    assert_close(gradients(output, [mine], grad_output), gradients(expected, [theirs], grad_output.contiguous()))


def test_only_neighbouring_channels_meet_an_infinity() -> None:
    input = filled((1, 7, 2, 2))
    input[0, 3, 0, 0], input[0, 6, 1, 1] = torch.inf, torch.nan
    output = local_response_norm(input, 3)
    assert_close(output, F.local_response_norm(input, 3), equal_nan=True)
    assert output.isnan().sum() == 3  # inf / inf, and the last two channels of another pixel


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_nothing_stays_nothing(shape: tuple[int, ...]) -> None:
    assert local_response_norm(filled(shape), 3).shape == F.local_response_norm(filled(shape), 3).shape == shape


def test_module_equals_torch() -> None:
    for arguments in ARGUMENTS:
        ours, theirs = torchconv.LocalResponseNorm(**arguments), nn.LocalResponseNorm(**arguments)
        assert repr(ours) == repr(theirs)
        assert_close(ours(filled((2, 5, 3, 4))), theirs(filled((2, 5, 3, 4))))
