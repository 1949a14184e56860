"""What the compiled convolutions work in: memory that no tensor shows.

It follows csrc/cpu: what channels_last.h transposes, what the Winograd and the gather kernels pack, and what blocks.h
keeps.
Kernels that read activations as they lie work in less than a megabyte, which is left out.
"""

import os
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchconv import _extension, ops
from torchconv.inspect.winograd_pictures import WinogradPictures
from torchconv.reference import output_size

# csrc/cpu/gemm.h, winograd_kernel.h, winograd_weight_kernel.h, weight_grad_kernel.h
DEPTH, PANEL_DEPTH = 128, 64
WINOGRAD_CHANNELS, LINE_CHANNELS = 32, 64
POSITIONS, WEIGHT_POSITIONS = 48, 128
DEPTHWISE_POSITIONS, PANEL_CHANNELS = 32 * 32, 32  # plane_kernel.h, conv.cpp
CHUNK, LINE_CHUNK = 1 << 20, 1 << 19
LARGE_WEIGHT = 1 << 19
IN_BLOCK = 64
SHORTEST_SUM, SUMS = 8 * DEPTH, 32

# csrc/cpu/blocks.h
PAGE = 1 << 16
SMALLEST = 2 << 20
KEPT = 512 << 20


class Blocks:
    """How much is kept of large blocks of memory, to be lent again: the class of this name in csrc/cpu/blocks.h."""

    def __init__(self) -> None:
        self.kept = 0

    def take(self, size: int) -> int:
        """The size of the block that so many bytes come in; as much less is kept, whether it is lent or given back."""
        if size < SMALLEST:
            return size
        size = -(-size // PAGE) * PAGE
        self.kept = max(self.kept - size, 0)
        return size

    def give(self, size: int) -> None:
        """Take a block back."""
        if size >= SMALLEST:
            self.kept = min(self.kept + size, KEPT)


def scratch(op: Any, args: Sequence[Any]) -> list[int]:
    """The sizes in bytes of the blocks that an op works in at a time; an estimate."""
    formula = _FORMULAS.get(op)
    if formula is None:
        return []
    return [_wide(args[0].dtype).itemsize * count for count in formula(*args) if count]


class _Conv(NamedTuple):
    """One convolution: of `inputs` channels to `outputs` channels per group, at `positions` of all pictures."""

    groups: int
    inputs: int
    outputs: int
    kernel: Sequence[int]
    plane: Sequence[int]  # the spatial size that the kernel gives
    batch: int
    dtype: torch.dtype
    dilation: Sequence[int]

    @property
    def positions(self) -> int:
        return self.batch * prod(self.plane)

    @property
    def lanes(self) -> int:
        return ops.vector_bytes() // self.dtype.itemsize

    @property
    def columns(self) -> int:  # TILE_COLUMNS
        return 2 * self.lanes

    @property
    def rows(self) -> int:  # TILE_ROWS
        return 14 if ops.vector_bytes() == 64 else 6

    @property
    def line(self) -> int:  # LINE
        return 64 // self.dtype.itemsize

    @property
    def is_depthwise(self) -> bool:
        return self.inputs == self.outputs == 1 and self.groups >= self.lanes

    @property
    def pictures(self) -> WinogradPictures | None:
        return WinogradPictures.of(self.batch, self.plane, self.kernel, self.dilation)

    def by_winograd(self, algorithm: str, stride: Sequence[int], padding: Sequence[int], least: int) -> bool:
        """use_winograd in winograd.h."""
        if algorithm != "auto":
            return algorithm == "winograd"
        pictures = self.pictures
        through = len(padding) == 3 and self.kernel[0] > 1 and prod(self.kernel[1:]) == 1 and any(padding[1:])
        if pictures is None or through or {self.groups, *stride} != {1} or self.dtype != torch.float32:
            return False
        enough = min(self.inputs, self.outputs) >= (LINE_CHANNELS if pictures.line else WINOGRAD_CHANNELS)
        usual = not pictures.line and pictures.side == 3 and pictures.dilation == (1, 1)
        return enough and self.positions >= least and (usual or pictures.saves)

    def in_place(self, channels_last: bool) -> bool:
        """Whether a kernel takes activations as they lie: pointwise_conv_serves, or about plane_conv_serves."""
        if self.is_depthwise and (channels_last or prod(self.plane) < DEPTHWISE_POSITIONS):
            return False
        if prod(self.kernel) == 1:
            return not channels_last
        vectors = 2 * _ceil_div(self.outputs, self.columns)
        few = self.outputs < self.columns or self.inputs < self.lanes
        return few and self.outputs / self.lanes * (1 + (self.kernel[-1] - 1) / self.plane[-1]) <= vectors

    def winograd(self) -> list[int]:
        """winograd_kernel.h: the transformed weights and, for each thread, a block of tiles; or the other way round."""
        threads, pictures = torch.get_num_threads(), self.pictures
        assert pictures is not None
        points, tiles = pictures.points(pictures.small), pictures.tiles(pictures.small)
        of_large, large_tiles = pictures.points(pictures.large), pictures.tiles(pictures.large)
        if min(self.inputs, self.outputs) >= 32 and 16 * of_large * large_tiles <= 15 * points * tiles:
            points, tiles = of_large, large_tiles
        large = points * self.inputs * self.outputs >= LARGE_WEIGHT
        if tiles < (2 if large else 1) * self.outputs:
            most = _l2_cache() * 3 // 4 // (points * self.columns * self.dtype.itemsize)
            block = _ceil_div(tiles, _ceil_div(tiles, max(self.rows, most)))
            inputs = pictures.taps * _ceil_div(self.inputs, PANEL_DEPTH) * PANEL_DEPTH * tiles
            return [points * inputs, *[points * self.columns * size for size in (PANEL_DEPTH, block)] * threads]
        width = self._whole(self.outputs)
        room = 1_000_000 // (points * self.dtype.itemsize * (min(self.inputs, DEPTH) + width))
        block = min(max(room // self.rows * self.rows, 14 // self.rows * self.rows), 4 * self.rows)
        weight = pictures.taps * _ceil_div(self.inputs, DEPTH) * DEPTH * width
        return [points * weight, *[points * block * size for size in (self._apart(DEPTH), width)] * threads]

    def winograd_weight(self) -> list[int]:
        """winograd_weight_kernel.h: both operands of a chunk of tiles, and the sums."""
        pictures = self.pictures
        assert pictures is not None
        points, all_tiles = pictures.points(pictures.small), pictures.tiles(pictures.small)
        room = (LINE_CHUNK if pictures.line else CHUNK) // points // (self.inputs + self.outputs)
        chunks = max(1, _ceil_div(all_tiles, max(room, 64)))
        tiles = _ceil_div(all_tiles, chunks)
        operands = [points * tiles * self._apart(self._whole(count)) for count in (self.inputs, self.outputs)]
        if chunks == 1 or points * self.inputs * self.outputs > 4 * CHUNK:
            threads = torch.get_num_threads()
            most = max(self.rows, _l2_cache() // 2 // (points * IN_BLOCK * self.dtype.itemsize))
            blocks = max(_ceil_div(self.outputs, most), _ceil_div(threads, _ceil_div(self.inputs or 1, IN_BLOCK)))
            return operands + [points * _ceil_div(self.outputs, blocks) * IN_BLOCK] * threads
        return [*operands, points * self.outputs * self._whole(self.inputs)]

    def gather(self) -> list[int]:
        """conv_kernel.h: the packed weights; depthwise_kernel.h: they as they are."""
        if self.is_depthwise:
            return [self.groups * prod(self.kernel)]
        depth = _ceil_div(prod(self.kernel) * self.inputs, DEPTH) * DEPTH
        return [self.groups * depth * self._whole(self.outputs)]

    def gather_weight(self) -> list[int]:
        """weight_grad_kernel.h: the partial sums."""
        depth = prod(self.kernel) * self.inputs
        most = max(1, self.positions // SHORTEST_SUM)
        sums = min(max(_ceil_div(SUMS, self.groups * _ceil_div(depth, DEPTH)), 1), most)
        sums += sums > 1 and sums % 2
        return [sums * self.groups * self.outputs * depth]

    def _apart(self, size: int) -> int:
        """An odd number of cache lines: `apart` in gemm.h."""
        return (_ceil_div(size, self.line) | 1) * self.line

    def _whole(self, channels: int) -> int:
        return _ceil_div(channels, self.columns) * self.columns


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def _widened(input: Tensor, *counts: int) -> list[int]:
    """narrow_conv.cpp: 16-bit numbers are copied as float. Where a kernel takes bfloat16, it is too much."""
    return list(counts) if input.dtype.itemsize == 2 else []


def _l2_cache() -> int:
    """l2_cache in isa.cpp: bytes."""
    usual = 1 << 20
    size = os.sysconf("SC_LEVEL2_CACHE_SIZE") if "SC_LEVEL2_CACHE_SIZE" in getattr(os, "sysconf_names", {}) else 0
    return min(max(size, usual // 4), 4 * usual) if size > 0 else usual


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.movedim(1, -1).is_contiguous()


def _transposed(tensor: Tensor) -> int:
    """ChannelsLast in channels_last.h: what is not channels-last is copied; what is not contiguous either, twice."""
    return 0 if _is_channels_last(tensor) else tensor.numel() * (1 if tensor.is_contiguous() else 2)


def _conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str,
    channels_last: bool,
    *_: Any,
) -> list[int]:
    kernel = weight.shape[2:]
    plane = output_size(input.shape[2:], kernel, stride, padding, dilation)
    dims = weight.shape[1], weight.shape[0] // groups, kernel, plane, input.shape[0]
    conv = _Conv(groups, *dims, _wide(input.dtype), dilation)
    winograd = conv.by_winograd(algorithm, stride, padding, POSITIONS)
    by_rows = groups == 1 and conv.inputs <= 4 and conv.outputs >= 8 and dilation[-1] == 1  # row_conv_serves
    output = conv.positions * weight.shape[0]
    copies = _widened(input, weight.numel(), *(() if winograd else (input.numel(), output)))
    if not winograd and (by_rows or conv.in_place(_is_channels_last(input))):
        return copies
    result = 0 if channels_last else output
    return [*copies, _transposed(input), result, *(conv.winograd() if winograd else conv.gather())]


def _conv_input(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str,
    channels_last: bool,
) -> list[int]:
    batch = grad_output.shape[0]
    kernel = weight.shape[2:]
    dims = weight.shape[0] // groups, weight.shape[1], kernel
    conv = _Conv(groups, *dims, input_size, batch, _wide(grad_output.dtype), dilation)
    winograd = conv.by_winograd(algorithm, stride, padding, POSITIONS)
    grad_input = conv.positions * conv.outputs * groups
    copies = _widened(grad_output, weight.numel(), *(() if winograd else (grad_output.numel(), grad_input)))
    # phases.h's with_taps_in_channels, about: windows that tile the input, which has few channels.
    tiled = (
        groups == 1 and conv.outputs < PANEL_CHANNELS and kernel[-1] > 1 and [*kernel] == [*stride] and not any(padding)
    )
    if not winograd and not tiled and conv.in_place(_is_channels_last(grad_output)):
        return copies
    result = 0 if channels_last else grad_input
    return [*copies, _transposed(grad_output), result, *(conv.winograd() if winograd else conv.gather())]


def _conv_weight(
    input: Tensor,
    grad_output: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algorithm: str,
    channels_last: bool,
) -> list[int]:
    dims = input.shape[1] // groups, grad_output.shape[1] // groups, kernel_size
    conv = _Conv(groups, *dims, grad_output.shape[2:], input.shape[0], _wide(input.dtype), dilation)
    winograd = conv.by_winograd(algorithm, stride, padding, WEIGHT_POSITIONS)
    pointwise = prod(kernel_size) == 1  # which only the other two have a kernel for
    grad_weight = groups * conv.inputs * conv.outputs * prod(kernel_size)
    copies = _widened(input, grad_weight, *(() if winograd else (input.numel(), grad_output.numel())))
    if not winograd and not pointwise and conv.in_place(_is_channels_last(input)):
        return copies
    copies += [_transposed(input), _transposed(grad_output)]
    return [*copies, *(conv.winograd_weight() if winograd else conv.gather_weight())]


def _block(input: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], *_: bool) -> list[int]:
    plane = output_size(input.shape[2:], (3, 3), (1, 1), padding, (1, 1))
    return _Conv(1, weight.shape[1], weight.shape[0], (3, 3), plane, input.shape[0], input.dtype, (1, 1)).winograd()


def _block_input(grad_output: Tensor, kept: Tensor, weight: Tensor, input_size: Sequence[int], *_: Any) -> list[int]:
    batch = grad_output.shape[0]
    return _Conv(1, weight.shape[0], weight.shape[1], (3, 3), input_size, batch, grad_output.dtype, (1, 1)).winograd()


_FORMULAS: dict[Any, Callable[..., list[int]]] = {}
if _extension.LOADED:
    _FORMULAS = {
        torch.ops.torchconv.conv.default: _conv,
        torch.ops.torchconv.conv_input.default: _conv_input,
        torch.ops.torchconv.conv_weight.default: _conv_weight,
        torch.ops.torchconv.winograd_block.default: _block,
        torch.ops.torchconv.winograd_block_input.default: _block_input,
    }
