"""Random calls of convolutions and poolings, of any rank, size, type and layout, and ways to spoil them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

# Each gives a tensor of the same shape and dtype, with other strides; the expanded ones repeat what stands first.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1) if t.dim() > 1 else t,
    "last_dimension_first": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "first_dimension_last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "every_second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "border_cut_off": lambda t: torch.cat([t, t, t], -1)[..., t.shape[-1] : 2 * t.shape[-1]],
    "some_of_the_batch": lambda t: torch.cat([t, t], 0)[t.shape[0] :],
    "some_channels": lambda t: torch.cat([t, t], 1)[:, t.shape[1] :] if t.dim() > 1 else t,
    "expanded_batch": lambda t: t[:1].expand(t.shape),
    "expanded_channels": lambda t: t[:, :1].expand(t.shape) if t.dim() > 1 else t,
    "expanded_everything": lambda t: t[(slice(0, 1),) * t.dim()].expand(t.shape),
    "storage_offset": lambda t: torch.cat([t.new_ones(3), t.flatten()])[3:].view(t.shape),
    "lazily_conjugated": lambda t: t.conj().resolve_conj().conj(),
    "lazily_negated": lambda t: torch.complex(t, -t).conj().imag if t.dtype in (torch.float32, torch.float64) else t,
}
layouts = st.sampled_from(sorted(LAYOUTS))

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex64, torch.complex128)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Sketch:
    """A tensor to be: hypothesis prints this, not the elements."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    values: str = "normal"  # or rounded, so that there are ties, or positive
    seed: int = 0

    def tensor(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        kind = torch.complex128 if self.dtype.is_complex else torch.float64
        values = torch.randn(self.shape, generator=generator, dtype=kind)
        if self.values == "rounded" and not self.dtype.is_complex:
            values = values.round()
        elif self.values == "positive":
            values = values.abs() + 0.1
        if not self.dtype.is_floating_point and not self.dtype.is_complex:
            values = (
                values > 0
                if self.dtype == torch.bool
                else (3 * values).abs()
                if self.dtype == torch.uint8
                else 3 * values
            )
        return LAYOUTS[self.layout](values.to(self.dtype))


@dataclass(frozen=True)
class Places(Sketch):
    """Indices for unpooling, no two of a plane the same."""

    dtype: torch.dtype = torch.int64
    volume: int = 1
    rank: int = 1

    def tensor(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        planes, size = prod(self.shape[: -self.rank]), prod(self.shape[-self.rank :])
        indices = torch.arange(planes * size).reshape(planes, size)
        for plane in indices:
            plane.copy_(torch.randperm(max(self.volume, size), generator=generator)[:size])
        return LAYOUTS[self.layout](indices.reshape(self.shape).to(self.dtype))


@dataclass(frozen=True)
class Case:
    """One call: a function's name and its arguments, by name."""

    function: str
    arguments: dict[str, Any]

    @property
    def rank(self) -> int:
        return int(self.function[-2]) if self.function.endswith("d") and self.function[-2].isdigit() else 2

    def made(self) -> dict[str, Any]:
        """The arguments, with tensors in the place of sketches."""
        return {name: value.tensor() if isinstance(value, Sketch) else value for name, value in self.arguments.items()}


def spread(value: int | Sequence[int], rank: int) -> list[int]:
    """An argument for all dimensions as one for each."""
    return [value] * rank if isinstance(value, int) else list(value) * (rank if len(value) == 1 else 1)


def numbers(rank: int, low: int, high: int) -> st.SearchStrategy[Any]:
    """An int for all dimensions, or one for each."""
    number = st.integers(low, high)
    each = st.tuples(*[number] * rank)
    return st.one_of(number, each, each.map(list))


def image(
    draw: st.DrawFn, channels: int, sizes: Sequence[int], dtypes: Sequence[torch.dtype], values: str = "normal"
) -> Sketch:
    batch: tuple[int, ...] = draw(st.sampled_from(((), (0,), (1,), (2,), (3,))))
    return Sketch((*batch, channels, *sizes), draw(st.sampled_from(dtypes)), draw(layouts), values)


def fitting(
    draw: st.DrawFn, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], padded: bool = True
) -> list[int]:
    """Sizes of an image that a window fits into."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(1, span - 2 * p * padded) for span, p in zip(spans, padding, strict=True)]
    return [n + draw(st.integers(0, 4)) for n in least]


def kernels(rank: int) -> st.SearchStrategy[Any]:
    return numbers(rank, 1, 4 if rank < 3 else 3)


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    kernel = spread(draw(kernels(rank)), rank)
    stride, padding, dilation = (draw(numbers(rank, *bounds)) for bounds in ((1, 3), (0, 3), (1, 3)))
    if draw(st.integers(0, 5)) == 0:
        stride, padding = 1, draw(st.sampled_from(("same", "valid")))
    zeros = [0] * rank if isinstance(padding, str) else spread(padding, rank)
    sizes = fitting(draw, kernel, spread(dilation, rank), zeros)
    groups: int = draw(st.sampled_from((1, 1, 2, 3)))
    inputs, outputs = draw(st.sampled_from((1, 2, 5, 17))), draw(st.sampled_from((1, 3, 16, 18)))
    input = image(draw, groups * inputs, sizes, (*FLOATS, *COMPLEX, torch.int64))
    weight = Sketch((groups * outputs, inputs, *kernel), input.dtype, draw(layouts), seed=1)
    bias = Sketch((groups * outputs,), input.dtype, draw(layouts), seed=2) if draw(st.booleans()) else None
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Case(f"conv{rank}d", {"input": input, "weight": weight, "bias": bias, **window})


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    kernel = spread(draw(kernels(rank)), rank)
    window = {
        name: draw(numbers(rank, *b)) for name, b in (("stride", (1, 3)), ("padding", (0, 3)), ("dilation", (1, 3)))
    }
    s, p, d = (spread(value, rank) for value in window.values())
    extra = [draw(st.integers(0, max(a, b) - 1)) for a, b in zip(s, d, strict=True)]
    # The output has (n - 1) s - 2 p + d (k - 1) + extra + 1 pixels, at least 1.
    least = [max(1, -((d[i] * (kernel[i] - 1) + extra[i] - 2 * p[i]) // s[i]) + 1) for i in range(rank)]
    sizes = [n + draw(st.integers(0, 3)) for n in least]
    groups: int = draw(st.sampled_from((1, 1, 2, 3)))
    inputs, outputs = draw(st.sampled_from((1, 3, 16))), draw(st.sampled_from((1, 2, 5)))
    input = image(draw, groups * inputs, sizes, (*FLOATS, *COMPLEX, torch.int64))
    weight = Sketch((groups * inputs, outputs, *kernel), input.dtype, draw(layouts), seed=1)
    bias = Sketch((groups * outputs,), input.dtype, draw(layouts), seed=2) if draw(st.booleans()) else None
    tensors = {"input": input, "weight": weight, "bias": bias}
    return Case(f"conv_transpose{rank}d", {**tensors, **window, "output_padding": extra, "groups": groups})


def pooling(draw: st.DrawFn, rank: int) -> tuple[dict[str, Any], list[int], list[int], list[int]]:
    """A pooling's window as arguments, and its kernel, stride and padding in each dimension."""
    kernel_size = draw(kernels(rank))
    kernel = spread(kernel_size, rank)
    padding = draw(st.one_of(st.integers(0, min(kernel) // 2), st.tuples(*[st.integers(0, k // 2) for k in kernel])))
    stride = draw(st.one_of(st.none(), numbers(rank, 1, 3)))
    strides = kernel if stride is None else spread(stride, rank)
    return {"kernel_size": kernel_size, "stride": stride, "padding": padding}, kernel, strides, spread(padding, rank)


def some_window_is_empty(n: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether a dilated window falls between two edges of the image: torch's backward then writes out of bounds."""
    starts = range(-padding, 0, stride)
    return any(not any(0 <= start + dilation * i < n for i in range(kernel)) for start in starts)


@st.composite
def max_poolings(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    window, kernel, stride, padding = pooling(draw, rank)
    dilation = draw(numbers(rank, 1, 3))
    sizes = fitting(draw, kernel, spread(dilation, rank), padding)
    assume(not any(map(some_window_is_empty, sizes, kernel, stride, padding, spread(dilation, rank))))
    values = draw(st.sampled_from(("normal", "rounded")))
    input = image(draw, draw(st.sampled_from((1, 3, 17))), sizes, FLOATS if rank == 1 else (*FLOATS, *WHOLE), values)
    flags = {"ceil_mode": draw(st.booleans()), "return_indices": draw(st.booleans())}
    return Case(f"max_pool{rank}d", {"input": input, **window, "dilation": dilation, **flags})


@st.composite
def average_poolings(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    window, kernel, _, padding = pooling(draw, rank)
    sizes = fitting(
        draw, kernel, [1] * rank, padding, padded=rank < 3
    )  # torch's 3D one wants the image itself to hold it
    input = image(draw, draw(st.sampled_from((1, 3, 17))), sizes, (*FLOATS, torch.int64))
    arguments = {"input": input, **window, "ceil_mode": draw(st.booleans()), "count_include_pad": draw(st.booleans())}
    if rank > 1:
        arguments["divisor_override"] = draw(st.sampled_from((None, None, 1, 3, -2)))
    return Case(f"avg_pool{rank}d", arguments)


@st.composite
def power_poolings(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    window, kernel, _, _ = pooling(draw, rank)
    del window["padding"]
    if rank == 1:
        window["kernel_size"] = kernel[0]  # torch's knows no list here
    input = image(
        draw, draw(st.sampled_from((1, 3, 17))), fitting(draw, kernel, [1] * rank, [0] * rank), FLOATS, "positive"
    )
    norm_type = draw(st.sampled_from((1, 2, 3.0, 2.5, inf)))
    return Case(f"lp_pool{rank}d", {"input": input, "norm_type": norm_type, **window, "ceil_mode": draw(st.booleans())})


@st.composite
def adaptive_poolings(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    size = st.integers(0, 7) if rank == 1 else st.one_of(st.none(), st.integers(0, 7))
    arguments: dict[str, Any] = {"output_size": draw(st.one_of(st.integers(0, 7), st.tuples(*[size] * rank)))}
    kind = draw(st.sampled_from(("avg", "max")))
    if kind == "max":
        arguments["return_indices"] = draw(st.booleans())
    sizes, values = [draw(st.integers(1, 8)) for _ in range(rank)], draw(st.sampled_from(("normal", "rounded")))
    input = image(draw, draw(st.sampled_from((1, 3, 17))), sizes, FLOATS, values)
    return Case(f"adaptive_{kind}_pool{rank}d", {"input": input, **arguments})


@st.composite
def unpoolings(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))
    window, kernel, stride, padding = pooling(draw, rank)
    sizes = [draw(st.integers(1, 5)) for _ in range(rank)]
    full = [(n - 1) * s - 2 * p + k for n, s, p, k in zip(sizes, stride, padding, kernel, strict=True)]
    assume(min(full) >= 1)
    if draw(st.booleans()):
        full = [draw(st.integers(max(1, n - s + 1), n + s - 1)) for n, s in zip(full, stride, strict=True)]
        window["output_size"] = full
    assume(prod(full) >= prod(sizes))
    input = image(draw, draw(st.sampled_from((1, 3))), sizes, FLOATS)
    layout = draw(layouts.filter(lambda name: "expanded" not in name))
    indices = Places(input.shape, layout=layout, volume=prod(full), rank=rank)
    return Case(f"max_unpool{rank}d", {"input": input, "indices": indices, **window})


@st.composite
def column_matrices(draw: st.DrawFn) -> Case:
    names = {"kernel_size": (1, 4), "dilation": (1, 3), "padding": (0, 3), "stride": (1, 3)}
    window = {name: draw(numbers(2, *bounds)) for name, bounds in names.items()}
    k, d, p, s = (spread(value, 2) for value in window.values())
    sizes = fitting(draw, k, d, p)
    channels = draw(st.sampled_from((1, 3)))
    if draw(st.booleans()):
        return Case("unfold", {"input": image(draw, channels, sizes, (*FLOATS, *COMPLEX, torch.bool)), **window})
    positions = prod((sizes[i] + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i in (0, 1))
    columns = image(draw, channels * prod(k), [positions], (*FLOATS, *COMPLEX))
    return Case("fold", {"input": columns, "output_size": draw(st.sampled_from((tuple(sizes), sizes))), **window})


@st.composite
def normalisations(draw: st.DrawFn) -> Case:
    input = image(draw, draw(st.integers(1, 9)), draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)), FLOATS)
    assume(len(input.shape) >= 3)
    choices = {"size": range(1, 7), "alpha": (1e-4, 0.5, 1), "beta": (0.75, 0.5, 1), "k": (1.0, 2)}
    return Case("local_response_norm", {"input": input, **{n: draw(st.sampled_from(v)) for n, v in choices.items()}})


FAMILIES: dict[str, st.SearchStrategy[Case]] = {
    "conv": convolutions(),
    "conv_transpose": transposed_convolutions(),
    "max_pool": max_poolings(),
    "avg_pool": average_poolings(),
    "lp_pool": power_poolings(),
    "adaptive_pool": adaptive_poolings(),
    "max_unpool": unpoolings(),
    "unfold_and_fold": column_matrices(),
    "local_response_norm": normalisations(),
}
