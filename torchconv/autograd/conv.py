"""Convolution as three bilinear maps, each the derivative of the others."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops
from torchconv.autograd.transforms import differentiable, into_batch, into_channels, out_of_batch, out_of_channels


class ConvGeometry(NamedTuple):
    """How a convolution's window moves (its size is the weight's), its groups, and the algorithm that computes it."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    algorithm: str


def added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two tangents or gradients, None standing for zero."""
    if first is None or second is None:
        return first if second is None else second
    return first + second


def _sum_of_positions(grad_output: Tensor) -> Tensor:
    """The gradient of a bias. torch adds up no complex numbers of 16 bits."""
    dims = (0, *range(2, grad_output.dim()))
    if grad_output.dtype == torch.complex32:
        return grad_output.to(torch.complex64).sum(dims).to(torch.complex32)
    return grad_output.sum(dims)


def _at_all_positions(bias: Tensor, output_size: torch.Size) -> Tensor:
    """The adjoint of `_sum_of_positions`."""
    return bias.reshape(-1, *[1] * (len(output_size) - 2)).expand(output_size)


def _conj(tensor: Tensor) -> Tensor:
    """The conjugate: of real numbers themselves, without an op at each level of torch.func."""
    return tensor.conj() if tensor.is_complex() else tensor


def needed_grads(
    ctx: Any, input: Tensor | None, weight: Tensor | None, grad_output: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of a convolution, which `ctx` is of, in its input, weight and bias: those that are needed."""
    args = (None if input is None else _conj(input), None if weight is None else _conj(weight), grad_output)
    return _spread(conv_grads(*args, ctx.input_size, ctx.kernel_size, ctx.geometry, needs), needs)


def _spread(values: Sequence[Tensor | None], needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Values of what is needed, as ones of everything: None for the rest."""
    rest = iter(values)
    return tuple([next(rest) if need else None for need in needs])


class Conv(Function):
    """y = conv(x, w) + b."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
        return ops.conv(input, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.geometry = inputs
        ctx.input_size, ctx.kernel_size, ctx.output_size = input.shape[2:], weight.shape[2:], output.shape
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        ctx.save_for_forward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        return *needed_grads(ctx, input, weight, grad_output, ctx.needs_input_grad[:3]), None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None, _: None) -> Tensor | None:
        input, weight = ctx.saved_tensors
        tangent = None if d_input is None else conv(d_input, weight, None, ctx.geometry)
        if d_weight is not None:
            tangent = added(tangent, conv(input, d_weight, None, ctx.geometry))
        if d_bias is not None:
            tangent = added(tangent, _at_all_positions(d_bias, ctx.output_size))
        return tangent

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        if in_dims[1] is None and in_dims[2] is None:
            return out_of_batch(conv(into_batch(input, in_dims[0], size), weight, bias, geometry), size), 0
        groups = geometry._replace(groups=size * geometry.groups)  # one example is one set of groups
        channels, filters = into_channels(input, in_dims[0], size), into_batch(weight, in_dims[1], size)
        biases = None if bias is None else into_batch(bias, in_dims[2], size)
        return out_of_channels(conv(channels, filters, biases, groups), size), 1


class ConvInput(Function):
    """The gradient of conv in its input, g -> x: transposed convolution."""

    @staticmethod
    def forward(grad_output: Tensor, weight: Tensor, input_size: torch.Size, geometry: ConvGeometry) -> Tensor:
        return ops.conv_input(grad_output, weight, input_size, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, weight, ctx.input_size, ctx.geometry = inputs
        ctx.kernel_size = weight.shape[2:]
        ctx.save_for_backward(
            grad_output if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None
        )
        ctx.save_for_forward(grad_output, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, weight = ctx.saved_tensors
        needs_output, needs_weight = ctx.needs_input_grad[:2]
        return (
            conv(grad, _conj(weight), None, ctx.geometry) if needs_output else None,
            conv_weight(grad, _conj(grad_output), ctx.kernel_size, ctx.geometry) if needs_weight else None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, d_output: Tensor | None, d_weight: Tensor | None, *_: None) -> Tensor | None:
        grad_output, weight = ctx.saved_tensors
        args = (ctx.input_size, ctx.geometry)
        by_output = None if d_output is None else conv_input(d_output, weight, *args)
        by_weight = None if d_weight is None else conv_input(grad_output, d_weight, *args)
        return added(by_output, by_weight)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad_output: Tensor,
        weight: Tensor,
        input_size: torch.Size,
        geometry: ConvGeometry,
    ) -> tuple[Tensor, int]:
        output_dim, weight_dim = in_dims[:2]
        size = info.batch_size
        if weight_dim is None:
            flat = conv_input(into_batch(grad_output, output_dim, size), weight, input_size, geometry)
            return out_of_batch(flat, size), 0
        groups = geometry._replace(groups=size * geometry.groups)
        channels = into_channels(grad_output, output_dim, size)
        flat = conv_input(channels, into_batch(weight, weight_dim, size), input_size, groups)
        return out_of_channels(flat, size), 1


class ConvWeight(Function):
    """The gradient of conv in its weight, (x, g) -> w."""

    @staticmethod
    def forward(input: Tensor, grad_output: Tensor, kernel_size: torch.Size, geometry: ConvGeometry) -> Tensor:
        return ops.conv_weight(input, grad_output, kernel_size, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, grad_output, ctx.kernel_size, ctx.geometry = inputs
        ctx.input_size = input.shape[2:]
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None, grad_output if ctx.needs_input_grad[0] else None
        )
        ctx.save_for_forward(input, grad_output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, grad_output = ctx.saved_tensors
        needs_input, needs_output = ctx.needs_input_grad[:2]
        return (
            conv_input(_conj(grad_output), grad, ctx.input_size, ctx.geometry) if needs_input else None,
            conv(_conj(input), grad, None, ctx.geometry) if needs_output else None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor | None, d_output: Tensor | None, *_: None) -> Tensor | None:
        input, grad_output = ctx.saved_tensors
        args = (ctx.kernel_size, ctx.geometry)
        by_input = None if d_input is None else conv_weight(d_input, grad_output, *args)
        by_output = None if d_output is None else conv_weight(input, d_output, *args)
        return added(by_input, by_output)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        grad_output: Tensor,
        kernel_size: torch.Size,
        geometry: ConvGeometry,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        groups = geometry._replace(groups=size * geometry.groups)
        channels = into_channels(input, in_dims[0], size), into_channels(grad_output, in_dims[1], size)
        return out_of_batch(conv_weight(*channels, kernel_size, groups), size), 0


class ConvGrads(Function):
    """All gradients of conv that are needed, (x, w, g) -> (x, w, b): three maps that go through torch.func as one."""

    @staticmethod
    def forward(
        input: Tensor | None,
        weight: Tensor | None,
        grad_output: Tensor,
        input_size: torch.Size,
        kernel_size: torch.Size,
        geometry: ConvGeometry,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor, ...]:
        # The weight's first: what it takes to compute is more, and the input's may be large.
        of_weight = conv_weight(input, grad_output, kernel_size, geometry) if needs[1] else None
        of_input = conv_input(grad_output, weight, input_size, geometry) if needs[0] else None
        of_bias = _sum_of_positions(grad_output) if needs[2] else None
        return tuple([grad for grad in (of_input, of_weight, of_bias) if grad is not None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, grad_output, ctx.input_size, ctx.kernel_size, ctx.geometry, ctx.needs = inputs
        ctx.output_size = grad_output.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, grad_output if any(ctx.needs_input_grad[:2]) else None)
        ctx.save_for_forward(input, weight, grad_output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        input, weight, grad_output = ctx.saved_tensors
        needs_input, needs_weight, needs_output = ctx.needs_input_grad[:3]
        by_input, by_weight, by_bias = _spread(grads, ctx.needs)
        d_input = d_weight = d_output = None
        if by_input is not None:
            if needs_output:
                d_output = conv(by_input, _conj(weight), None, ctx.geometry)
            if needs_weight:
                d_weight = conv_weight(by_input, _conj(grad_output), ctx.kernel_size, ctx.geometry)
        if by_weight is not None:
            if needs_output:
                d_output = added(d_output, conv(_conj(input), by_weight, None, ctx.geometry))
            if needs_input:
                d_input = conv_input(_conj(grad_output), by_weight, ctx.input_size, ctx.geometry)
        if by_bias is not None and needs_output:
            d_output = added(d_output, _at_all_positions(by_bias, ctx.output_size))
        return d_input, d_weight, d_output, *(None,) * 4

    @staticmethod
    def jvp(
        ctx: Any, d_input: Tensor | None, d_weight: Tensor | None, d_output: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        input, weight, grad_output = ctx.saved_tensors
        # Forward mode wants a tangent of every result.
        d_output = torch.zeros_like(grad_output) if d_output is None else d_output
        tangents = conv_grads(input, weight, d_output, ctx.input_size, ctx.kernel_size, ctx.geometry, ctx.needs)
        by_input, by_weight, by_bias = _spread(tangents, ctx.needs)
        if d_weight is not None:
            by_input = added(by_input, conv_input(grad_output, d_weight, ctx.input_size, ctx.geometry))
        if d_input is not None:
            by_weight = added(by_weight, conv_weight(d_input, grad_output, ctx.kernel_size, ctx.geometry))
        return tuple([tangent for tangent in (by_input, by_weight, by_bias) if tangent is not None])

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Any,
        weight: Any,
        grad_output: Tensor,
        input_size: torch.Size,
        kernel_size: torch.Size,
        geometry: ConvGeometry,
        needs: tuple[bool, bool, bool],
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        input_dim, weight_dim, output_dim = in_dims[:3]
        grads = []
        if needs[0]:
            grads.append(ConvInput.vmap(info, (output_dim, weight_dim), grad_output, weight, input_size, geometry))
        if needs[1]:
            grads.append(ConvWeight.vmap(info, (input_dim, output_dim), input, grad_output, kernel_size, geometry))
        if needs[2]:
            each = into_channels(grad_output, output_dim, info.batch_size)
            grads.append((_sum_of_positions(each).view(info.batch_size, -1), 0))
        values, dims = zip(*grads, strict=True)
        return values, dims


conv = differentiable(Conv)
conv_input = differentiable(ConvInput)
conv_weight = differentiable(ConvWeight)
conv_grads = differentiable(ConvGrads)
