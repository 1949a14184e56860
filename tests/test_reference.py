"""The reference against an even more naive one: loops in pure Python, straight from the definitions."""

from itertools import product
from math import inf, isnan

import pytest
import torch
from grid import filled
from torch import Tensor
from torch.testing import assert_close

from torchconv import reference

# Input size, kernel size, stride, padding, dilation; as many values as there are spatial dimensions.
GEOMETRIES: dict[str, tuple[tuple[int, ...], ...]] = {
    "1d": ((7,), (3,), (2,), (1,), (2,)),
    "2d": ((4, 5), (2, 3), (1, 2), (1, 1), (2, 1)),
    "2d_stride_beyond_the_kernel": ((5, 6), (2, 1), (3, 2), (0, 0), (1, 1)),
    "3d": ((3, 4, 3), (2, 2, 3), (1, 2, 1), (1, 0, 1), (2, 1, 1)),
}

Position = tuple[int, ...]


def windows(geometry: tuple[tuple[int, ...], ...], ceil_mode: bool = False) -> dict[Position, list[Position | None]]:
    """For each position of the window the pixels that its taps meet, None for those in the padding."""
    size, kernel, stride, padding, dilation = geometry
    ranges = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        positions = []
        for o in range(n + 2 * p):
            fits = o * s + d * (k - 1) < n + 2 * p
            # In ceil_mode a window may jut out if the one before doesn't reach the edge, and if it starts in the image.
            juts = ceil_mode and o * s < n + p and (o - 1) * s + d * (k - 1) < n + 2 * p - 1
            if fits or juts:
                positions.append(o)
        ranges.append(positions)
    found: dict[Position, list[Position | None]] = {}
    for position in product(*ranges):
        pixels: list[Position | None] = []
        for tap in product(*map(range, kernel)):
            zipped = zip(position, tap, stride, padding, dilation, strict=True)
            pixel = tuple(o * s - p + t * d for o, t, s, p, d in zipped)
            pixels.append(pixel if all(0 <= x < n for x, n in zip(pixel, size, strict=True)) else None)
        found[position] = pixels
    return found


def output_shape(positions: dict[Position, list[Position | None]]) -> list[int]:
    return [last + 1 for last in max(positions)]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_im2col_and_col2im(name: str) -> None:
    geometry = GEOMETRIES[name]
    input, positions = filled((2, 3, *geometry[0])), windows(geometry)
    taps = len(next(iter(positions.values())))
    expected = input.new_zeros(2, 3 * taps, len(positions))
    for n, c, (column, pixels) in product(range(2), range(3), enumerate(positions.values())):
        for tap, pixel in enumerate(pixels):
            expected[n, c * taps + tap, column] = 0 if pixel is None else input[(n, c, *pixel)]
    columns = reference.im2col(input, *geometry[1:])
    assert torch.equal(columns, expected)
    image = torch.zeros_like(input)
    for n, c, (column, pixels) in product(range(2), range(3), enumerate(positions.values())):
        for tap, pixel in enumerate(pixels):
            if pixel is not None:
                image[(n, c, *pixel)] += columns[n, c * taps + tap, column]
    assert_close(reference.col2im(columns, *geometry), image)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolution_and_its_adjoints(name: str, groups: int) -> None:
    geometry = GEOMETRIES[name]
    size, kernel = geometry[:2]
    positions = windows(geometry)
    input, weight, bias = filled((2, 4, *size)), filled((6, 4 // groups, *kernel), seed=1), filled((6,), seed=2)
    output = input.new_zeros(2, 6, *output_shape(positions))
    grad_output = filled(output.shape, seed=3)
    grad_input, grad_weight = torch.zeros_like(input), torch.zeros_like(weight)
    taps = list(product(*map(range, kernel)))
    for n, o, (position, pixels) in product(range(2), range(6), positions.items()):
        first = o // (6 // groups) * (4 // groups)  # of the group's input channels
        output[(n, o, *position)] = bias[o]
        for c, (tap, pixel) in product(range(4 // groups), zip(taps, pixels, strict=True)):
            if pixel is not None:
                output[(n, o, *position)] += weight[(o, c, *tap)] * input[(n, first + c, *pixel)]
                grad_input[(n, first + c, *pixel)] += weight[(o, c, *tap)] * grad_output[(n, o, *position)]
                grad_weight[(o, c, *tap)] += input[(n, first + c, *pixel)] * grad_output[(n, o, *position)]
    window = geometry[2:]
    assert_close(reference.conv(input, weight, bias, *window, groups), output)
    assert_close(reference.conv_input(grad_output, weight, size, *window, groups), grad_input)
    assert_close(reference.conv_weight(input, grad_output, kernel, *window, groups), grad_weight)


def values_for_pooling(kind: str, shape: tuple[int, ...]) -> Tensor:
    values = filled(shape)
    if kind == "ties":
        return values.round()
    if kind == "nan_and_infinities":
        values[values > 1] = inf
        values[values < -0.3] = -inf
        values[(values > 0) & (values < 0.4)] = torch.nan
    return values


@pytest.mark.parametrize("kind", ["distinct", "ties", "nan_and_infinities"])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_max_pooling_and_its_maps(name: str, ceil_mode: bool, kind: str) -> None:
    geometry = GEOMETRIES[name]
    input, positions = values_for_pooling(kind, (2, 3, *geometry[0])), windows(geometry, ceil_mode)
    shape = [2, 3, *output_shape(positions)]
    output, winners, indices = input.new_zeros(shape), torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape).long()
    grad_output, gathered, scattered = filled(shape, seed=3), input.new_zeros(shape), torch.zeros_like(input)
    other = filled(input.shape, seed=4)
    for n, c, (position, pixels) in product(range(2), range(3), positions.items()):
        inside = [(tap, pixel) for tap, pixel in enumerate(pixels) if pixel is not None]
        best, (winner, at) = -inf, inside[0]
        for tap, pixel in inside:
            value = float(input[(n, c, *pixel)])
            if value > best or isnan(value):
                best, winner, at = value, tap, pixel
        flat = 0
        for x, size in zip(at, geometry[0], strict=True):
            flat = flat * size + x
        here = (n, c, *position)
        output[here], winners[here], indices[here] = best, winner, flat
        gathered[here] = other[(n, c, *at)]
        scattered[(n, c, *at)] += grad_output[here]
    ours, places = reference.max_pool(input, *geometry[1:], ceil_mode)
    assert_close(ours, output, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(places, winners)
    assert torch.equal(reference.max_pool_indices(places, *geometry), indices)
    assert torch.equal(reference.max_pool_gather(other, places, *geometry[1:]), gathered)
    assert_close(reference.max_pool_scatter(grad_output, places, *geometry), scattered)


@pytest.mark.parametrize("divisor", [None, -3])
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_average_pooling_and_its_adjoint(
    name: str, ceil_mode: bool, count_include_pad: bool, divisor: int | None
) -> None:
    size, kernel, stride, padding, _ = GEOMETRIES[name]
    positions = windows((size, kernel, stride, padding, (1,) * len(size)), ceil_mode)
    input = filled((2, 3, *size))
    output = input.new_zeros(2, 3, *output_shape(positions))
    grad_output, grad_input = filled(output.shape, seed=3), torch.zeros_like(input)
    for n, c, (position, pixels) in product(range(2), range(3), positions.items()):
        inside = [pixel for pixel in pixels if pixel is not None]
        zipped = list(zip(position, stride, size, padding, strict=True))
        in_padding = [  # the taps that lie in the padded image
            tap
            for tap in product(*map(range, kernel))
            if all(o * s + t < x + 2 * p for t, (o, s, x, p) in zip(tap, zipped, strict=True))
        ]
        by = divisor or (len(in_padding) if count_include_pad else len(inside))
        output[(n, c, *position)] = sum(float(input[(n, c, *pixel)]) for pixel in inside) / by
        for pixel in inside:
            grad_input[(n, c, *pixel)] += grad_output[(n, c, *position)] / by
    counting = ceil_mode, count_include_pad, divisor
    assert_close(reference.avg_pool(input, kernel, stride, padding, *counting), output)
    assert_close(reference.avg_pool_input(grad_output, size, kernel, stride, padding, *counting), grad_input)


@pytest.mark.parametrize("kind", ["distinct", "ties", "nan_and_infinities"])
@pytest.mark.parametrize(
    ("size", "parts"), [((7,), (3,)), ((3,), (7,)), ((4, 5), (3, 7)), ((5, 4), (1, 2)), ((3, 4, 3), (2, 3, 5))], ids=str
)
def test_adaptive_pooling(size: Position, parts: Position, kind: str) -> None:
    input, average = values_for_pooling(kind, (2, 3, *size)), torch.zeros(2, 3, *parts).double()
    winners = torch.zeros(average.shape).long()
    grad_output, grad_input = filled(average.shape, seed=3), torch.zeros_like(input)
    for n, c, position in product(range(2), range(3), product(*map(range, parts))):
        zipped = zip(position, size, parts, strict=True)
        box = list(product(*(range(o * x // part, -(-(o + 1) * x // part)) for o, x, part in zipped)))
        values = [float(input[(n, c, *pixel)]) for pixel in box]
        average[(n, c, *position)] = sum(values) / len(box)
        nans = [i for i, value in enumerate(values) if isnan(value)]
        flat = 0
        for x, length in zip(box[nans[-1] if nans else values.index(max(values))], size, strict=True):
            flat = flat * length + x
        winners[(n, c, *position)] = flat
        for pixel in box:
            grad_input[(n, c, *pixel)] += grad_output[(n, c, *position)] / len(box)
    assert_close(reference.adaptive_avg_pool(input, parts), average, equal_nan=True)
    assert_close(reference.adaptive_avg_pool_input(grad_output, size), grad_input)
    maxima, indices = reference.adaptive_max_pool(input, parts)
    assert torch.equal(indices, winners)
    expected = input.flatten(2).gather(2, winners.flatten(2)).view_as(winners)
    assert_close(maxima, expected, rtol=0, atol=0, equal_nan=True)
