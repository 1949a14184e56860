"""A network evaluated and differentiated tile by tile: the tile sets the memory that it takes, not the picture.

The network, a chain of layers, is cut into stages where an activation is small. A stage is evaluated tile by tile,
each from a crop of the stage's whole input that covers what the tile's part of every layer sees. A crop ends at the
border where the tile does, so zeros are padded exactly where they are in the whole picture; each position of a layer
counts in one tile only. To differentiate, the tiles are evaluated once more, from the last stage to the first.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product
from math import ceil, prod, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from torchconv.style.chain import Interval, Layer, Network, before, chain

# A stage may begin with an activation of as many elements as this many pictures: it is kept whole for backward.
PICTURES_KEPT = 3

Place = tuple[slice, slice]  # rows and columns


class Span(NamedTuple):
    """A tile along one dimension.

    Attributes:
        crop: what it needs of the stage's input.
        counted: by layer, the positions that are this tile's, in the layer's whole grid.
        inside: the same in the grid that the layer has on the crop.
    """

    crop: slice
    counted: dict[int, slice]
    inside: dict[int, slice]


Tile = tuple[Span, Span]


def spans(layers: Sequence[Layer], wanted: Collection[int], dim: int, length: int, side: int) -> list[Span]:
    """Tiles of about `side` of an input's `length` pixels that share out the positions of the layers wanted."""
    lengths, steps = [length], [1]
    for layer in layers:
        lengths.append(layer.length(dim, lengths[-1]))
        steps.append(steps[-1] * layer.stride(dim))
    step = steps[-1]  # tiles and crops begin at its multiples, where every layer has a position
    cells = ceil(length / step)
    count = min(cells, ceil(length / side))
    bounds = [cells * tile // count * step for tile in range(count)]
    tiles = []
    for begin, end in zip(bounds, [*bounds[1:], None], strict=True):
        counted: dict[int, slice] = {}
        need: Interval | None = None
        for index in reversed(range(len(layers))):
            if index in wanted:
                last = lengths[index + 1]
                first, stop = (last if at is None else min(at // steps[index + 1], last) for at in (begin, end))
                counted[index] = slice(first, stop)
                if first < stop:
                    need = (min(first, need[0]), max(stop, need[1])) if need else (first, stop)
            if need:
                need = layers[index].reads(dim, need, lengths[index])
        if need:
            start = need[0] // step * step
            shifts = {index: start // steps[index + 1] for index in counted}
            inside = {i: slice(part.start - shifts[i], part.stop - shifts[i]) for i, part in counted.items()}
            tiles.append(Span(slice(start, need[1]), counted, inside))
    return tiles


class Part(NamedTuple):
    """What of a layer's output is a tile's.

    Attributes:
        layer: its index in the stage.
        size: height and width of its whole output.
        place: where the part is in that.
        activation: the layer's output on the crop.
        inside: where the part is in that.
    """

    layer: int
    size: tuple[int, int]
    place: Place
    activation: Tensor
    inside: Place

    @property
    def values(self) -> Tensor:
        return self.activation.detach()[(..., *self.inside)]


class Stage(NamedTuple):
    """Consecutive layers, evaluated tile by tile.

    Attributes:
        index_of: the layer of each activation asked for.
        sides: of a tile, about, in pixels of the input: height and width.
    """

    layers: Sequence[Layer]
    index_of: Mapping[str, int]
    sides: tuple[int, int]

    def tiles(self, input: Tensor, wanted: Collection[int]) -> Iterator[Tile]:
        """Rows and columns of each tile."""
        rows, columns = (spans(self.layers, wanted, i, input.shape[i + 2], self.sides[i]) for i in range(2))
        return product(rows, columns)

    def size(self, index: int, input: Tensor) -> tuple[int, int]:
        """A layer's height and width."""
        height, width = input.shape[2:]
        for layer in self.layers[: index + 1]:
            height, width = layer.length(0, height), layer.length(1, width)
        return height, width

    def parts(self, input: Tensor, crop: Tensor, tile: Tile, wanted: Collection[int]) -> list[Part]:
        """What of the layers wanted is the tile's, from its crop of the input; empty parts are left out."""
        places = {index: (tile[0].counted[index], tile[1].counted[index]) for index in wanted}
        filled = {index for index, place in places.items() if all(along.start < along.stop for along in place)}
        parts, x = [], crop
        for index in range(max(filled, default=-1) + 1):
            x = self.layers[index].module(x)
            if index in filled:
                inside = tile[0].inside[index], tile[1].inside[index]
                parts.append(Part(index, self.size(index, input), places[index], x, inside))
        return parts


def stages(layers: Sequence[Layer], index_of: Mapping[str, int], side: int, most: int) -> list[Stage]:
    """Cut a chain where an activation has at most `most` elements for each pixel of the picture.

    The stage with the most elements has tiles of `side` pixels of the picture; another's are larger, to have as many.
    """
    cuts, costs = [0], [0.0]
    scales = [(1, 1)]  # pixels of the picture to one of each stage's input
    step = (1, 1)
    for index, layer in enumerate(layers):
        elements = layers[index - 1].channels / prod(step)
        if index and layer.windows and step != scales[-1] and elements <= most:
            cuts.append(index)
            costs.append(0.0)
            scales.append(step)
        step = step[0] * layer.stride(0), step[1] * layer.stride(1)
        costs[-1] += layer.channels / prod(step)
    made = []
    for begin, end, cost, scale in zip(cuts, [*cuts[1:], len(layers)], costs, scales, strict=True):
        larger = side * sqrt(max(costs) / cost)
        sides = max(1, round(larger / scale[0])), max(1, round(larger / scale[1]))
        here = {name: index - begin for name, index in index_of.items() if begin <= index < end}
        made.append(Stage(layers[begin:end], here, sides))
    return made


class Tiles:
    """A network's activations, evaluated and differentiated tile by tile.

    Args:
        network: a module whose layers form a chain from the first convolution or pooling on, with frozen parameters.
        names: of the activations.
        picture: one that the network takes; a corner of it shows the chain.
        side: of a tile, about, in pixels of the picture. A stage of fewer elements has larger ones of as many.

    Raises:
        TypeError: a layer that looks at neighbours in another way than convolution and pooling do.
        ValueError: no chain, parameters that need gradients, or a side of less than 1.
    """

    def __init__(self, network: Network, names: Sequence[str], picture: Tensor, side: int) -> None:
        if side < 1:
            raise ValueError(f"tile: expected 1 pixel or more, got {side}")
        layers, index_of = chain(network, names, picture)
        if any(parameter.requires_grad for layer in layers for parameter in layer.module.parameters()):
            raise ValueError("network: expected frozen parameters, since tiles give them no gradients")
        self.network = network
        self.stages = stages(layers, index_of, side, PICTURES_KEPT * picture.shape[1])

    def before(self, picture: Tensor) -> Tensor:
        """The first layer's input, of the whole picture."""
        return before(self.network, self.stages[0].layers[0], picture)

    def visit(self, input: Tensor, names: Collection[str], see: Callable[[str, Part], None]) -> list[Tensor]:
        """Show each tile's part of these activations to `see`; returns the stages' inputs, to differentiate with."""
        inputs = []
        used = self._used(names)
        for stage, wanted in used:
            inputs.append(input)
            last = len(stage.layers) - 1
            output: dict[str, Tensor] = {}
            for tile in stage.tiles(input, wanted):
                for part in stage.parts(input, _crop(input, tile), tile, wanted):
                    for name in wanted[part.layer]:
                        see(name, part)
                    if part.layer == last and len(inputs) < len(used):
                        put(output, "", part)
            input = output.get("", input)
        return inputs

    def differentiate(
        self, inputs: Sequence[Tensor], names: Collection[str], cotangent: Callable[[str, Part], Tensor]
    ) -> Tensor:
        """The gradient in the first layer's input, from the cotangents of the parts of these activations."""
        gradient: Tensor | None = None  # in the output of the stage
        used = self._used(names)
        for input, (stage, wanted) in reversed(list(zip(inputs[: len(used)], used, strict=True))):
            total = torch.zeros_like(input)
            for tile in stage.tiles(input, wanted):
                _differentiate(stage, tile, wanted, input, total, gradient, cotangent)
            gradient = total
        assert gradient is not None
        return gradient

    def _used(self, names: Collection[str]) -> list[tuple[Stage, dict[int, list[str]]]]:
        """The stages that these activations take, and their names by layer: none for a last layer that only goes on."""
        count = 1 + max(
            number for number, stage in enumerate(self.stages) if any(name in stage.index_of for name in names)
        )
        used = []
        for number, stage in enumerate(self.stages[:count], 1):
            wanted: dict[int, list[str]] = {len(stage.layers) - 1: []} if number < count else {}
            for name in names:
                if name in stage.index_of:
                    wanted.setdefault(stage.index_of[name], []).append(name)
            used.append((stage, wanted))
        return used


def _crop(input: Tensor, tile: Tile) -> Tensor:
    """A copy, in the input's memory format: a layer may work in place."""
    return input[:, :, tile[0].crop, tile[1].crop].detach().clone()


def put(whole: dict[str, Tensor], name: str, part: Part) -> None:
    """A part into the whole activation, which begins with its first part."""
    values = part.values
    if name not in whole:
        nhwc = part.activation.is_contiguous(memory_format=torch.channels_last)
        whole[name] = torch.empty(
            (*values.shape[:2], *part.size),
            dtype=values.dtype,
            device=values.device,
            memory_format=torch.channels_last if nhwc else torch.contiguous_format,
        )
    whole[name][(..., *part.place)] = values


def _differentiate(
    stage: Stage,
    tile: Tile,
    wanted: Mapping[int, list[str]],
    input: Tensor,
    total: Tensor,
    gradient: Tensor | None,
    cotangent: Callable[[str, Part], Tensor],
) -> None:
    """Add a tile's gradient in the stage's input; in a function of its own, so that nothing outlives the tile."""
    crop = _crop(input, tile).requires_grad_()
    with torch.enable_grad():
        parts = stage.parts(input, crop, tile, wanted)
    grads = []
    for part in parts:
        grad = torch.zeros_like(part.activation)  # in its memory format, which the gradient of a slice would not have
        values = grad[(..., *part.inside)]
        for name in wanted[part.layer]:
            values += cotangent(name, part)
        if gradient is not None and part.layer == len(stage.layers) - 1:
            values += gradient[(..., *part.place)]
        grads.append(grad)
    if parts:
        # Not torch.autograd.grad: in it FlopCounterMode and others can't follow modules.
        torch.autograd.backward([part.activation for part in parts], grads, inputs=[crop])
        assert crop.grad is not None
        total[:, :, tile[0].crop, tile[1].crop] += crop.grad
