"""Any valid geometry gives what torch gives, forward and backward; where torch refuses one, so do we."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from grid import (
    ALGORITHMS,
    BACKENDS,
    LAYOUTS,
    ConvProblem,
    assert_same_convolution,
    filled,
    gradients,
    leaf,
    rounds_every_sum,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from torchconv import ops
from torchconv.functional import col2im, conv2d, im2col, max_pool2d

# The same examples at each run; a failure prints how to call it again.
settings.register_profile(
    "core",
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the algorithm stays the same for all examples
)
settings.load_profile("core")

PAIRS = {"kernel": (1, 4), "stride": (1, 4), "dilation": (1, 3), "padding": (0, 4)}
STRIDED = sorted(name for name in LAYOUTS if name != "imaginary_part_of_a_conjugate")  # not for 16-bit types
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


@dataclass(frozen=True)
class Geometry:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]

    @property
    def window(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    @property
    def fits(self) -> bool:
        zipped = zip(self.kernel, self.dilation, self.padding, self.size, strict=True)
        return all(d * (k - 1) + 1 <= n + 2 * p for k, d, p, n in zipped)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    pairs = {name: draw(st.tuples(st.integers(*bounds), st.integers(*bounds))) for name, bounds in PAIRS.items()}
    return Geometry(size=draw(st.tuples(st.integers(1, 12), st.integers(1, 12))), **pairs)


@st.composite
def convolutions(draw: st.DrawFn) -> ConvProblem:
    g = draw(geometries())
    groups, batch = draw(st.sampled_from((1, 1, 2, 3))), draw(st.integers(0, 3))
    inputs, outputs = draw(st.tuples(st.sampled_from((1, 2, 5, 17)), st.sampled_from((1, 3, 16, 18))))
    input, weight = (batch, groups * inputs, *g.size), (groups * outputs, inputs, *g.kernel)
    return ConvProblem(input, weight, g.stride, g.padding, g.dilation, groups, draw(st.booleans()))


@given(
    problem=convolutions(),
    dtype=st.sampled_from(DTYPES),
    layouts=st.tuples(*[st.sampled_from(STRIDED)] * 3),
)
def test_convolution(problem: ConvProblem, dtype: torch.dtype, layouts: tuple[str, ...], algorithm: str) -> None:
    g = Geometry(problem.weight[2:], problem.stride, problem.dilation, problem.padding, problem.input[2:])  # type: ignore[arg-type]
    input, weight, bias = problem.tensors(dtype)
    if not g.fits:
        for convolution in (conv2d, F.conv2d):
            with pytest.raises(RuntimeError):
                convolution(input, weight, bias, **problem.arguments)
        return
    tensors = [LAYOUTS[layouts[0]](input), LAYOUTS[layouts[1]](weight), bias]
    assert_same_convolution(conv2d, F.conv2d, problem, tensors, LAYOUTS[layouts[2]])


@given(
    g=geometries(),
    batch=st.integers(0, 3),
    channels=st.sampled_from((1, 3, 17)),
    ceil_mode=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    layouts=st.tuples(*[st.sampled_from(STRIDED)] * 2),
    ties=st.booleans(),
)
def test_max_pooling(
    g: Geometry,
    batch: int,
    channels: int,
    ceil_mode: bool,
    dtype: torch.dtype,
    layouts: tuple[str, str],
    ties: bool,
    backend: str,
) -> None:
    values = filled((batch, channels, *g.size), dtype)
    input = LAYOUTS[layouts[0]](values.round() if ties else values)
    arguments = {"kernel_size": g.kernel, **g.window, "ceil_mode": ceil_mode}
    if not g.fits or any(2 * p > k for k, p in zip(g.kernel, g.padding, strict=True)):
        # Torch counts the windows first, so that in ceil_mode it lets some pass that are larger than the padded input.
        assume(not ceil_mode)
        for pool in (max_pool2d, F.max_pool2d):
            with pytest.raises(RuntimeError):
                pool(input, **arguments)
        return
    mine, exact = leaf(input), leaf(input.double())
    ours, places = max_pool2d(mine, **arguments, return_indices=True)
    theirs, indices = F.max_pool2d(exact, **arguments, return_indices=True)
    # A dilated window may fall between two edges and hold nothing: torch's index then lies outside of the input.
    inside = indices < g.size[0] * g.size[1]
    assert torch.equal(ours.double(), theirs)
    assert torch.equal(places[inside], indices[inside])
    assume(bool(inside.all()))
    grad_output = LAYOUTS[layouts[1]](filled(ours.shape, dtype, 3))
    (grad,), (expected,) = gradients(ours, [mine], grad_output), gradients(theirs, [exact], grad_output.double())
    # In a 16-bit type the reference rounds the sum after each of up to 16 windows that hold a pixel.
    loose = {"rtol": 0.0, "atol": 16 * 4 * torch.finfo(dtype).eps} if rounds_every_sum(dtype, backend) else {}
    assert_close(grad, expected.to(dtype), **loose)


@given(g=geometries(), batch=st.integers(0, 3), channels=st.sampled_from((1, 3, 17)), layout=st.sampled_from(STRIDED))
def test_columns(g: Geometry, batch: int, channels: int, layout: str, backend: str) -> None:
    input: Tensor = LAYOUTS[layout](filled((batch, channels, *g.size)))
    arguments = {"kernel_size": g.kernel, **g.window}
    if not g.fits:
        for function in (im2col, F.unfold):
            with pytest.raises(RuntimeError):
                function(input, **arguments)
        return
    columns = im2col(input, **arguments)
    assert torch.equal(columns, F.unfold(input.contiguous(), **arguments))
    assert_close(col2im(columns, g.size, **arguments), F.fold(columns, g.size, **arguments))
