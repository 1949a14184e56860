"""One function a kernel: runs the compiled op where there is one for the device and dtype, else its reference.

Nothing here knows of gradients (torchconv.autograd) or checks arguments (torchconv.functional). The compiled ops are
also at `torch.ops.torchconv`, with fake kernels for tracing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchconv import _extension, packing, reference

Ints = Sequence[int]

ALGORITHMS = ("auto", "im2col", "winograd", "reference")


class Served(NamedTuple):
    """The dtypes that compiled kernels take on one kind of device."""

    convolutions: tuple[torch.dtype, ...] = ()
    columns: tuple[torch.dtype, ...] = ()
    pooling: tuple[torch.dtype, ...] = ()
    activations: tuple[torch.dtype, ...] = ()
    rectified: tuple[torch.dtype, ...] = ()  # of convolutions that rectify what they write


_REAL = (torch.float32, torch.float64)
_ALL_REAL = (*_REAL, torch.bfloat16, torch.float16)
_ALL = (*_ALL_REAL, torch.complex64, torch.complex128)
_CPU = Served(_ALL_REAL, _ALL_REAL, _ALL_REAL, _REAL, _ALL_REAL) if _extension.LOADED else Served()
_CUDA = Served(_ALL, _ALL, _ALL_REAL, _ALL_REAL) if _extension.CUDA else Served()
_NOWHERE = Served()
_kernels: Any = torch.ops.torchconv


def _checked_algorithm(name: str, source: str) -> str:
    if name not in ALGORITHMS:
        raise ValueError(f"{source} is {name!r}, expected one of {', '.join(ALGORITHMS)}")
    return name


_algorithm = _checked_algorithm(os.environ.get("TORCHCONV_ALGORITHM") or "auto", "TORCHCONV_ALGORITHM")


def current_algorithm() -> str:
    """The algorithm that convolutions use now: auto, im2col, winograd or reference."""
    return _algorithm


@contextmanager
def algorithm(name: str) -> Iterator[None]:
    """Choose how convolutions are computed inside a `with` block; a backward pass uses what its forward pass did.

    `auto` picks per call; `im2col` multiplies as often as the definition says, blocked; `winograd` (float32 and float64
    kernels of 3 or 5 taps along one dimension or two, any depth and dilation, of stride 1, without groups) multiplies
    half to a sixth as often, with a relative error of up to 5e-6 in float32; `reference` runs all, pooling too, on
    plain PyTorch (torchconv.reference). The environment variable TORCHCONV_ALGORITHM sets what applies outside of such
    blocks. It holds for the whole process.

    Raises:
        ValueError: `name` is none of these.
    """
    global _algorithm
    before = _algorithm
    _algorithm = _checked_algorithm(name, "algorithm")
    try:
        yield
    finally:
        _algorithm = before


def available_isas() -> list[str]:
    """The instruction sets that the kernels have for this processor, best first; empty without the extension."""
    return torch.ops.torchconv.available_isas().split(",") if _extension.LOADED else []


def isa() -> str | None:
    """The instruction set in use: amx, avx512, avx2 or baseline (TORCHCONV_ISA sets it); None without the extension.

    That of amx is avx512 but for convolutions of bfloat16.
    """
    return torch.ops.torchconv.isa() if _extension.LOADED else None


def vector_bytes() -> int:
    """The size of the vectors of the instruction set in use."""
    return {"amx": 64, "avx512": 64, "avx2": 32}.get(isa() or "", 16)


def set_isa(name: str) -> None:
    """Force an instruction set for the whole process.

    Raises:
        RuntimeError: there is no such instruction set here, or no compiled extension.
    """
    if not _extension.LOADED:
        raise RuntimeError(f"instruction set {name!r} can't be set: no compiled extension ({_extension.REASON})")
    torch.ops.torchconv.set_isa(name)
    packing.forget()


def empty(like: Tensor, size: Ints, channels_last: bool) -> Tensor:
    """An uninitialised tensor beside `like`; a large one in a block of our own, as the results of all ops."""
    if _extension.LOADED and like.is_cpu:
        return torch.ops.torchconv.empty.default(size, like.dtype, channels_last)
    format = memory_format_of(len(size), channels_last)
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=format)


def empty_cache() -> None:
    """Give the large blocks of memory that the kernels keep for reuse, at most 512 MiB, back to the system."""
    if _extension.LOADED:
        torch.ops.torchconv.empty_cache()


def _compiled(tensor: Tensor, algorithm: str, family: str) -> bool:
    served = _CPU if tensor.is_cpu else _CUDA if tensor.is_cuda else _NOWHERE
    return algorithm != "reference" and tensor.dtype in getattr(served, family)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a result computed from `tensor` should be channels-last, as torch decides it for unambiguous strides.

    Under vmap, where a tensor can't be asked for this format, it is read off the strides.
    """
    if tensor.dim() not in (4, 5) or tensor.is_contiguous():
        return False
    if not torch._C._are_functorch_transforms_active():
        return tensor.is_contiguous(memory_format=memory_format_of(tensor.dim(), True))
    shape, strides, expected = tensor.shape, tensor.stride(), 1
    for dim in (1, *range(len(shape) - 1, 1, -1), 0):
        size = shape[dim]
        if size != 1 and strides[dim] != expected:
            return False
        expected *= size
    return True


def memory_format_of(dim: int, channels_last: bool) -> torch.memory_format:
    """The memory format of a tensor of `dim` dimensions."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last if dim == 4 else torch.channels_last_3d


def _in_format(tensor: Tensor, channels_last: bool) -> Tensor:
    return tensor.contiguous(memory_format=memory_format_of(tensor.dim(), channels_last))


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What autocast lowers a convolution on this tensor's device to; None where it is off or there is none."""
    if not torch._C._is_any_autocast_enabled():
        return None
    device = tensor.device.type
    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if active else None


def _full_precision(function: Callable[..., Tensor], input: Tensor, *args: Any) -> Tensor:
    """A reference in the dtype that it is given: autocast, which has had its say, would lower its matrix products."""
    if autocast_dtype(input) is None:
        return function(input, *args)
    with torch.autocast(input.device.type, enabled=False):
        return function(input, *args)


# What convolutions of 16-bit numbers are computed in, to be rounded once, where no kernel takes them.
_WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.complex32: torch.complex64}


def _wide(first: Tensor, second: Tensor, algorithm: str) -> torch.dtype | None:
    if first.dtype not in _WIDE or second.dtype != first.dtype or _compiled(first, algorithm, "convolutions"):
        return None
    return _WIDE[first.dtype]


def im2col(input: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """See `torchconv.reference.im2col`."""
    if _compiled(input, _algorithm, "columns"):
        return _kernels.im2col.default(input, kernel_size, stride, padding, dilation)
    return reference.im2col(input, kernel_size, stride, padding, dilation)


def col2im(
    columns: Tensor, output_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """See `torchconv.reference.col2im`."""
    if _compiled(columns, _algorithm, "columns"):
        return _kernels.col2im.default(columns, output_size, kernel_size, stride, padding, dilation)
    return reference.col2im(columns, output_size, kernel_size, stride, padding, dilation)


def conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    algorithm: str,
    max_value: float | None = None,
) -> Tensor:
    """See `torchconv.reference.conv`. Sums of 16-bit types are float32, rounded once.

    With a `max_value`, ReLU follows, and no output is more than that.
    """
    if max_value is not None and not _compiled(input, algorithm, "rectified"):
        return conv_relu(input, weight, bias, stride, padding, dilation, groups, algorithm, max_value, False)[0]
    if dtype := _wide(input, weight, algorithm):
        wide_bias = None if bias is None else bias.to(dtype)
        wide = conv(input.to(dtype), weight.to(dtype), wide_bias, stride, padding, dilation, groups, algorithm)
        return wide.to(input.dtype)
    channels_last = is_channels_last(input) or is_channels_last(weight)
    if _compiled(input, algorithm, "convolutions"):
        args = (stride, padding, dilation, groups, algorithm, channels_last)
        return _kernels.conv.default(input, weight, bias, *args, _packed(input, weight, groups), max_value)
    return _in_format(
        _full_precision(reference.conv, input, weight, bias, stride, padding, dilation, groups), channels_last
    )


def _packed(input: Tensor, weight: Tensor, groups: int) -> Tensor | None:
    """The weight's panels, if they are kept and there are kernels that multiply with them."""
    if not packing.in_use() or weight.dtype not in _REAL:
        return None
    outputs, inputs, *kernel = weight.shape
    depthwise = groups == outputs and inputs == 1
    in_place = prod(kernel) == 1 and not is_channels_last(input)
    return None if depthwise or in_place else packing.panels(weight, groups)


def conv_input(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    algorithm: str,
) -> Tensor:
    """See `torchconv.reference.conv_input`. Sums of 16-bit types are float32, rounded once."""
    if dtype := _wide(grad_output, weight, algorithm):
        args = (input_size, stride, padding, dilation, groups, algorithm)
        return conv_input(grad_output.to(dtype), weight.to(dtype), *args).to(grad_output.dtype)
    channels_last = is_channels_last(grad_output) or is_channels_last(weight)
    if _compiled(grad_output, algorithm, "convolutions"):
        return _kernels.conv_input.default(
            grad_output, weight, input_size, stride, padding, dilation, groups, algorithm, channels_last
        )
    grad_input = _full_precision(
        reference.conv_input, grad_output, weight, input_size, stride, padding, dilation, groups
    )
    return _in_format(grad_input, channels_last)


def conv_weight(
    input: Tensor,
    grad_output: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    algorithm: str,
) -> Tensor:
    """See `torchconv.reference.conv_weight`. Sums of 16-bit types are float32, rounded once."""
    if dtype := _wide(input, grad_output, algorithm):
        args = (kernel_size, stride, padding, dilation, groups, algorithm)
        return conv_weight(input.to(dtype), grad_output.to(dtype), *args).to(input.dtype)
    channels_last = is_channels_last(input) or is_channels_last(grad_output)
    if _compiled(input, algorithm, "convolutions"):
        return _kernels.conv_weight.default(
            input, grad_output, kernel_size, stride, padding, dilation, groups, algorithm, channels_last
        )
    grad_weight = _full_precision(
        reference.conv_weight, input, grad_output, kernel_size, stride, padding, dilation, groups
    )
    return _in_format(grad_weight, channels_last)


def linear_serves(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a matrix product of `input`'s rows with a weight (O, C) is best computed as a convolution of one pixel.

    So it is, by measurement, where the weight is more than the caches hold, and rows are so few that reading it takes
    longer than multiplying. One row alone is read as fast by torch, but for the weight's gradient.
    """
    if torch.compiler.is_compiling() or not (isinstance(input, Tensor) and isinstance(weight, Tensor)):
        return False
    if weight.dim() != 2 or weight.numel() < 1 << 20 or input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        return False
    least = 1 if weight.requires_grad and torch.is_grad_enabled() else 2
    if not least <= input.numel() // weight.shape[1] <= 32 or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    alike = all(t.is_cpu and t.dtype == torch.float32 for t in (input, weight, bias) if t is not None)
    return alike and autocast_dtype(input) is None and _compiled(input, _algorithm, "convolutions")


def gram(features: Tensor) -> Tensor:
    """The products features @ features^T of (N, C, P), one for each of N.

    Channels-last, that is the gradient of a 1x1 convolution's weight, for which there is a kernel.
    """
    if not (features.is_cpu and _compiled(features, _algorithm, "convolutions")) or features.is_contiguous():
        return features @ features.mT
    pictures = features.unsqueeze(2).split(1)
    products = [conv_weight(x, x, (1, 1), (1, 1), (0, 0), (1, 1), 1, "auto") for x in pictures]
    return torch.stack([product.flatten(1) for product in products])


def max_pool(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    save_positions: bool,
) -> tuple[Tensor, Tensor]:
    """See `torchconv.reference.max_pool`; the positions are empty unless `save_positions`."""
    channels_last = is_channels_last(input)
    if _compiled(input, _algorithm, "pooling"):
        return _kernels.max_pool.default(
            input, kernel_size, stride, padding, dilation, ceil_mode, save_positions, channels_last
        )
    output, positions = reference.max_pool(input, kernel_size, stride, padding, dilation, ceil_mode)
    positions = _in_format(positions, channels_last) if save_positions else positions.new_empty(0)
    return _in_format(output, channels_last), positions


def max_pool_gather(
    input: Tensor, positions: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """See `torchconv.reference.max_pool_gather`."""
    channels_last = is_channels_last(input)
    if _compiled(input, _algorithm, "pooling"):
        return _kernels.max_pool_gather.default(input, positions, kernel_size, stride, padding, dilation, channels_last)
    output = reference.max_pool_gather(input, positions, kernel_size, stride, padding, dilation)
    return _in_format(output, channels_last)


def max_pool_scatter(
    grad_output: Tensor,
    positions: Tensor,
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    channels_last: bool,
) -> Tensor:
    """See `torchconv.reference.max_pool_scatter`."""
    if _compiled(grad_output, _algorithm, "pooling"):
        return _kernels.max_pool_scatter.default(
            grad_output, positions, input_size, kernel_size, stride, padding, dilation, channels_last
        )
    grad_input = reference.max_pool_scatter(grad_output, positions, input_size, kernel_size, stride, padding, dilation)
    return _in_format(grad_input, channels_last)


def rectify_(values: Tensor, bias: Tensor | None, save_signs: bool, max_value: float = inf) -> Tensor:
    """See `torchconv.reference.rectify_`; the signs are empty unless `save_signs`."""
    if _compiled(values, _algorithm, "activations"):
        return _kernels.rectify_.default(values, bias, save_signs, max_value)
    signs = reference.rectify_(values, bias, max_value)
    return signs if save_signs else signs.new_empty(0)


def winograd_block_serves(
    activations: Tensor,
    channels_last: bool,
    size: Ints,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    algorithm: str,
) -> bool:
    """Whether `winograd_block` takes a convolution, or its gradient `winograd_block_input`, and is the best choice.

    The rule of csrc/cpu/winograd.h for Winograd, for channels-last activations of whole vectors of channels.

    Args:
        activations: the input, or the gradient of the output.
        channels_last: how they lie, or would.
        size: the spatial sizes of the convolution's output, or of the gradient of its input.
        weight, stride, padding, dilation, groups, algorithm: of the convolution.
    """
    outputs, inputs, *kernel = weight.shape
    whole = outputs % 16 == inputs % 16 == 0 and groups == 1 and activations.numel() > 0
    window = kernel == [3, 3] and {*stride, *dilation} == {1}
    if not (
        whole and window and channels_last and activations.is_cpu and _compiled(activations, algorithm, "activations")
    ):
        return False
    enough = min(outputs, inputs) >= 32 and len(activations) * prod(size) >= 48
    return algorithm == "winograd" or (algorithm == "auto" and enough and activations.dtype == torch.float32)


def winograd_block(
    input: Tensor, weight: Tensor, bias: Tensor | None, padding: Ints, pool: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`conv`, `max_pool` of 2x2 windows where `pool` says so, and `rectify_`, where `winograd_block_serves` says so.

    Nothing between them is ever written. To pool, the convolution's output has even sizes.

    Returns:
        the output, channels-last; its signs; the positions. The last two are empty unless `save`.
    """
    return _kernels.winograd_block.default(input, weight, bias, padding, pool, save, _packed(input, weight, 1))


def winograd_block_input(grad_output: Tensor, kept: Tensor, weight: Tensor, input_size: Ints, padding: Ints) -> Tensor:
    """The input's gradient, channels-last, from that of a `winograd_block` which doesn't pool, and its signs.

    Of one that does, from the gradient of its output, masked with the signs already, and the positions.
    """
    return _kernels.winograd_block_input.default(grad_output, kept, weight, input_size, padding)


def conv_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    algorithm: str,
    max_value: float,
    save_signs: bool,
) -> tuple[Tensor, Tensor]:
    """`conv`, then `rectify_`: in two steps, as the signs are those of a whole output."""
    # On a GPU the bias comes with the ReLU, in one pass over what the matrix product left.
    late = input.is_cuda
    output = conv(input, weight, None if late else bias, stride, padding, dilation, groups, algorithm)
    return output, rectify_(output, bias if late else None, save_signs, max_value)


def rectify_input(grad_output: Tensor, signs: Tensor, channels_last: bool) -> Tensor:
    """See `torchconv.reference.rectify_input`; `channels_last` is what the rectified values were."""
    if _compiled(grad_output, _algorithm, "activations"):
        return _kernels.rectify_input.default(grad_output, signs, channels_last)
    return reference.rectify_input(_in_format(grad_output, channels_last), signs)


def avg_pool(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    channels_last: bool,
) -> Tensor:
    """See `torchconv.reference.avg_pool`."""
    args = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if _compiled(input, _algorithm, "pooling"):
        return _kernels.avg_pool.default(input, *args, channels_last)
    return _in_format(reference.avg_pool(input, *args), channels_last)


def avg_pool_input(
    grad_output: Tensor,
    input_size: Ints,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    channels_last: bool,
) -> Tensor:
    """See `torchconv.reference.avg_pool_input`."""
    args = (input_size, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if _compiled(grad_output, _algorithm, "pooling"):
        return _kernels.avg_pool_input.default(grad_output, *args, channels_last)
    return _in_format(reference.avg_pool_input(grad_output, *args), channels_last)


def adaptive_avg_pool(input: Tensor, output_size: Ints, channels_last: bool) -> Tensor:
    """See `torchconv.reference.adaptive_avg_pool`."""
    if _compiled(input, _algorithm, "pooling"):
        return _kernels.adaptive_avg_pool.default(input, output_size, channels_last)
    return _in_format(reference.adaptive_avg_pool(input, output_size), channels_last)


def adaptive_avg_pool_input(grad_output: Tensor, input_size: Ints, output_size: Ints, channels_last: bool) -> Tensor:
    """See `torchconv.reference.adaptive_avg_pool_input`; `output_size` is grad_output's own."""
    if _compiled(grad_output, _algorithm, "pooling"):
        return _kernels.adaptive_avg_pool_input.default(grad_output, input_size, channels_last)
    return _in_format(reference.adaptive_avg_pool_input(grad_output, input_size), channels_last)


def adaptive_max_pool(input: Tensor, output_size: Ints) -> tuple[Tensor, Tensor]:
    """See `torchconv.reference.adaptive_max_pool`."""
    channels_last = is_channels_last(input)
    if _compiled(input, _algorithm, "pooling"):
        return _kernels.adaptive_max_pool.default(input, output_size, channels_last)
    output, indices = reference.adaptive_max_pool(input, output_size)
    return _in_format(output, channels_last), _in_format(indices, channels_last)


if _extension.LOADED:
    from torchconv import fake, flops  # noqa: F401  # which register themselves
