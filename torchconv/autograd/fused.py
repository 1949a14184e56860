"""Convolution and what follows it as one Function: a bit per element, and a byte per pooling window, are what it keeps.

ReLU's own derivative is a constant mask, so derivatives of every order are those of the convolution's three bilinear
maps, masked. Inside of torch.func's transforms, of forward mode and of torch.compile the pieces are composed instead
(torchconv.functional.fused).
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops, reference
from torchconv.autograd import bands
from torchconv.autograd.conv import ConvGeometry, needed_grads
from torchconv.autograd.max_pool import max_pool_scatter
from torchconv.autograd.recompute import origin
from torchconv.autograd.transforms import Window, differentiable
from torchconv.reference.rectify import passes

# Bytes of the parts of a batch, at least, in which the gradient of a convolution's output is made.
PART = 8 << 20


class RectifyInput(Function):
    """ReLU's gradient, from the signs that its forward pass kept. It is its own adjoint, and linear."""

    @staticmethod
    def forward(grad_output: Tensor, signs: Tensor, channels_last: bool) -> Tensor:
        return ops.rectify_input(grad_output, signs, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, signs, ctx.channels_last = inputs
        ctx.save_for_backward(signs)
        ctx.save_for_forward(signs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return rectify_input(grad, *ctx.saved_tensors, ctx.channels_last), None, None

    @staticmethod
    def jvp(ctx: Any, d_output: Tensor, *_: None) -> Tensor:
        return rectify_input(d_output, *ctx.saved_tensors, ctx.channels_last)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], grad_output: Tensor, signs: Tensor, channels_last: bool
    ) -> tuple[Tensor, int]:
        # The signs are those of one pass forward; only gradients come in batches.
        grads = grad_output.movedim(in_dims[0] or 0, 0)
        one = torch.empty_like(grads[0], memory_format=ops.memory_format_of(grads.dim() - 1, channels_last))
        return grads.where(passes(signs, one), 0), 0


class ConvReLU(Function):
    """relu(conv(x, w) + b), and no more than a maximum; with no signs unless these are to be saved."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, save: bool, max_value: float
    ) -> tuple[Tensor, Tensor | None]:
        if not save:
            return ops.conv(input, weight, bias, *geometry, max_value), None
        size = reference.output_size(input.shape[2:], weight.shape[2:], *geometry[:3])
        serves = ops.winograd_block_serves(input, ops.is_channels_last(input), size, weight, *geometry)
        if serves and max_value == inf:
            return ops.winograd_block(input, weight, bias, geometry.padding, False, True)[:2]
        return ops.conv_relu(input, weight, bias, *geometry, max_value, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _keep(ctx, inputs, output[1])
        ctx.channels_last = ops.is_channels_last(output[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 6
        *operands, weight, signs = ctx.saved_tensors
        size = grad_output.shape
        direct = None
        if _may_be_direct(ctx):
            if ops.winograd_block_serves(grad_output, ctx.channels_last, ctx.input_size, weight, *ctx.geometry):
                args = (grad_output, signs, weight, ctx.input_size, ctx.geometry.padding)
                direct = partial(ops.winograd_block_input, *args)
            elif _in_bands(ctx, size, grad_output) and bands.signs_serve(size):
                of_rows = (grad_output, signs, weight, ctx.input_size, size[2:], ctx.geometry)
                direct = partial(bands.conv_relu_input, *of_rows)
        words, rest = divmod(prod(size[1:]), bands.WORD_BITS)  # of a picture's signs

        def rectified(pictures: slice) -> Tensor:
            if pictures == slice(0, len(grad_output)):
                return rectify_input(grad_output, signs, ctx.channels_last)
            part = signs[pictures.start * words : pictures.stop * words]
            return rectify_input(grad_output[pictures], part, ctx.channels_last)

        part = len(grad_output) if rest else _part(ctx, size, grad_output)
        return *_needed_grads(ctx, operands, weight, len(grad_output), part, rectified, direct), *(None,) * 3


class ConvReLUPool(Function):
    """max_pool(relu(conv(x, w) + b)). The convolution's own output is not kept."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        save: bool,
        pool: Window,
        ceil_mode: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        size = reference.output_size(input.shape[2:], weight.shape[2:], *geometry[:3])
        serves = ops.winograd_block_serves(input, ops.is_channels_last(input), size, weight, *geometry)
        if serves and _pools_tiles(pool, size):
            return ops.winograd_block(input, weight, bias, geometry.padding, True, save)
        shape = torch.Size((len(input), len(weight), *size))
        large = bands.serves(shape, weight.numel(), input.element_size(), geometry)
        if large and input.is_cpu and ops.is_channels_last(input) and bands.are_apart(pool):
            output, positions = bands.conv_relu_pool(input, weight, bias, geometry, pool, ceil_mode, save)
        else:
            values = ops.conv(input, weight, bias, *geometry, inf)
            output, positions = ops.max_pool(values, *pool, ceil_mode, save)
        return output, ops.rectify_(output, None, save), positions

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        pooled, signs, positions = output
        _keep(ctx, inputs, signs, positions)
        ctx.pool = inputs[5]
        ctx.conv_size = reference.output_size(ctx.input_size, ctx.kernel_size, *ctx.geometry[:3])
        ctx.channels_last = ops.is_channels_last(pooled)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 7
        *operands, weight, signs, positions = ctx.saved_tensors
        grad = rectify_input(grad_output, signs, ctx.channels_last)
        size = torch.Size((*grad.shape[:2], *ctx.conv_size))
        direct = None
        if _may_be_direct(ctx):
            serves = ops.winograd_block_serves(grad, ctx.channels_last, ctx.input_size, weight, *ctx.geometry)
            if serves and _pools_tiles(ctx.pool, ctx.conv_size):
                args = (grad, positions, weight, ctx.input_size, ctx.geometry.padding)
                direct = partial(ops.winograd_block_input, *args)
            elif _in_bands(ctx, size, grad) and bands.are_apart(ctx.pool):
                of_rows = (grad, positions, weight, ctx.input_size, size[2:], ctx.geometry, ctx.pool)
                direct = partial(bands.conv_pool_input, *of_rows)

        def scattered(pictures: slice) -> Tensor:
            return max_pool_scatter(grad[pictures], positions[pictures], ctx.conv_size, ctx.pool, ctx.channels_last)

        part = _part(ctx, size, grad)
        return *_needed_grads(ctx, operands, weight, len(grad), part, scattered, direct), *(None,) * 4


def _pools_tiles(pool: Window, size: Sequence[int]) -> bool:
    """Whether windows of 2x2 side by side cover the convolution's output, as they do Winograd's tiles."""
    covers = len(size) == 2 and not any(count % 2 for count in size)
    return covers and bands.are_apart(pool) and set(pool.kernel_size) == {2}


def _may_be_direct(ctx: Any) -> bool:
    """Whether the input's gradient is asked for, and what it is made of needs no derivative."""
    return ctx.needs_input_grad[0] and not torch.is_grad_enabled()


def _in_bands(ctx: Any, output: torch.Size, grad: Tensor) -> bool:
    """Whether it is made in bands."""
    serves = bands.serves(output, ctx.weight_count, grad.element_size(), ctx.geometry)
    return serves and grad.is_cpu and ctx.channels_last


def _part(ctx: Any, output: torch.Size, grad: Tensor) -> int:
    """Of how many pictures the gradient of the convolution's output is made at a time: of all, or of parts of one size.

    A part of the output is no smaller than the weight, whose gradient is added up over the parts.
    """
    count = len(grad)
    if torch.is_grad_enabled() or not grad.is_cpu:
        return count
    parts = min(output.numel() // max(PART // grad.element_size(), ctx.weight_count), count)
    return -(-count // max(parts, 1))


def _needed_grads(
    ctx: Any,
    operands: Sequence[Any],
    weight: Tensor | None,
    count: int,
    part: int,
    grad_output: Callable[[slice], Tensor],
    direct: Callable[[], Tensor] | None,
) -> tuple[Tensor | None, ...]:
    """The gradients in input, weight and bias, where that of the convolution's output is never there as a whole.

    Args:
        operands, weight: what `_keep` has kept.
        count, part: of how many pictures there are it is made for how many at a time.
        grad_output: makes it.
        direct: makes the input's gradient without it.
    """
    needs = (ctx.needs_input_grad[0] and direct is None, *ctx.needs_input_grad[1:3])
    grad_input = grad_weight = grad_bias = None
    if any(needs) and part == count:
        all_of_it = grad_output(slice(0, count))
        grad_input, grad_weight, grad_bias = needed_grads(ctx, _input(ctx, operands), weight, all_of_it, needs)
    elif any(needs):
        for n in range(0, count, part):
            pictures = slice(n, min(n + part, count))
            kept = [None if operands[0] is None else operands[0][pictures], *operands[1:]]
            grads = needed_grads(ctx, _input(ctx, kept), weight, grad_output(pictures), needs)
            if grads[0] is not None:
                if grad_input is None:
                    grad_input = ops.empty(grads[0], (count, *grads[0].shape[1:]), ctx.channels_last)
                grad_input[pictures] = grads[0]
            grad_weight, grad_bias = _added_in_place(grad_weight, grads[1]), _added_in_place(grad_bias, grads[2])
    return grad_input if direct is None else direct(), grad_weight, grad_bias


def _added_in_place(sum: Tensor | None, part: Tensor | None) -> Tensor | None:
    return part if sum is None or part is None else sum.add_(part)


def _keep(ctx: Any, inputs: tuple[Any, ...], *masks: Tensor) -> None:
    """What the gradients need: of input and weight each only what the other's does."""
    ctx.set_materialize_grads(False)
    input, weight, _, ctx.geometry = inputs[:4]
    ctx.input_size, ctx.kernel_size, ctx.weight_count = input.shape[2:], weight.shape[2:], weight.numel()
    ctx.mark_non_differentiable(*masks)
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    again = origin(input) if needs_weight else None
    ctx.compute_input = None if again is None else again.compute
    operands = again.operands if again is not None else [input if needs_weight else None]
    ctx.save_for_backward(*operands, weight if needs_input else None, *masks)


def _input(ctx: Any, operands: Sequence[Any]) -> Tensor | None:
    """The input, if it was needed: what was kept, or computed again of that."""
    return operands[0] if ctx.compute_input is None else ctx.compute_input(*operands)


rectify_input = differentiable(RectifyInput)
conv_relu = differentiable(ConvReLU)
conv_relu_pool = differentiable(ConvReLUPool)
