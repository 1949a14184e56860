"""Convolution and what follows it as one Function: a bit per element, and a byte per pooling window, are what it keeps.

ReLU's own derivative is a constant mask, so derivatives of every order are those of the convolution's three bilinear
maps, masked. Inside of torch.func's transforms, of forward mode and of torch.compile the pieces are composed instead
(torchconv.functional.fused).
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv import ops, reference
from torchconv.autograd import bands
from torchconv.autograd.conv import ConvGeometry, added, needed_grads
from torchconv.autograd.max_pool import max_pool_scatter
from torchconv.autograd.transforms import Window, differentiable
from torchconv.reference.rectify import passes

PICTURES = 32 << 20  # bytes of a convolution's output from which on its gradient is worth making picture by picture


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
    """relu(conv(x, w) + b)."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, save: bool
    ) -> tuple[Tensor, Tensor]:
        size = reference.output_size(input.shape[2:], weight.shape[2:], *geometry[:3])
        if ops.winograd_block_serves(input, ops.is_channels_last(input), size, weight, *geometry):
            return ops.winograd_block(input, weight, bias, geometry.padding, False, save)[:2]
        return ops.conv_relu(input, weight, bias, *geometry, save)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _keep(ctx, inputs, output[1])
        ctx.channels_last = ops.is_channels_last(output[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 5
        input, weight, signs = ctx.saved_tensors
        size = grad_output.shape
        if _only_input(ctx):
            if ops.winograd_block_serves(grad_output, ctx.channels_last, ctx.input_size, weight, *ctx.geometry):
                grad_input = ops.winograd_block_input(grad_output, signs, weight, ctx.input_size, ctx.geometry.padding)
                return grad_input, *(None,) * 4
            if _in_bands(ctx, size, grad_output) and bands.signs_serve(size):
                grad_input = bands.conv_relu_input(grad_output, signs, weight, ctx.input_size, size[2:], ctx.geometry)
                return grad_input, *(None,) * 4
        words = prod(size[1:]) // bands.WORD_BITS  # of a picture's signs

        def rectified(pictures: slice) -> Tensor:
            part = signs[pictures.start * words : pictures.stop * words]
            return rectify_input(grad_output[pictures], part, ctx.channels_last)

        if _by_picture(ctx, size, grad_output) and prod(size[1:]) % bands.WORD_BITS == 0:
            grads = _needed_grads_by_picture(ctx, input, weight, len(grad_output), rectified)
        else:
            grads = needed_grads(ctx, input, weight, rectify_input(grad_output, signs, ctx.channels_last))
        return *grads, None, None


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
            values, _ = ops.conv_relu(input, weight, bias, *geometry, False)
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
        input, weight, signs, positions = ctx.saved_tensors
        grad = rectify_input(grad_output, signs, ctx.channels_last)
        size = torch.Size((*grad.shape[:2], *ctx.conv_size))
        if _only_input(ctx):
            serves = ops.winograd_block_serves(grad, ctx.channels_last, ctx.input_size, weight, *ctx.geometry)
            if serves and _pools_tiles(ctx.pool, ctx.conv_size):
                grad_input = ops.winograd_block_input(grad, positions, weight, ctx.input_size, ctx.geometry.padding)
                return grad_input, *(None,) * 6
            if _in_bands(ctx, size, grad) and bands.are_apart(ctx.pool):
                args = (grad, positions, weight, ctx.input_size, size[2:], ctx.geometry, ctx.pool)
                return bands.conv_pool_input(*args), *(None,) * 6

        def scattered(pictures: slice) -> Tensor:
            return max_pool_scatter(grad[pictures], positions[pictures], ctx.conv_size, ctx.pool, ctx.channels_last)

        if _by_picture(ctx, size, grad):
            grads = _needed_grads_by_picture(ctx, input, weight, len(grad), scattered)
        else:
            grads = needed_grads(ctx, input, weight, scattered(slice(None)))
        return *grads, None, None, None, None


def _pools_tiles(pool: Window, size: Sequence[int]) -> bool:
    """Whether windows of 2x2 side by side cover the convolution's output, as they do Winograd's tiles."""
    covers = len(size) == 2 and not any(count % 2 for count in size)
    return covers and bands.are_apart(pool) and set(pool.kernel_size) == {2}


def _only_input(ctx: Any) -> bool:
    """Whether nothing but the input's gradient is asked for, of which nothing else can be kept then."""
    return ctx.needs_input_grad[:3] == (True, False, False) and not torch.is_grad_enabled()


def _in_bands(ctx: Any, output: torch.Size, grad: Tensor) -> bool:
    """Whether it is made in bands."""
    serves = bands.serves(output, ctx.weight_count, grad.element_size(), ctx.geometry)
    return serves and grad.is_cpu and ctx.channels_last


def _by_picture(ctx: Any, output: torch.Size, grad: Tensor) -> bool:
    """Whether the convolution's output is large, and a picture's part of it no less than the gradient of the weight."""
    large = len(grad) > 1 and output.numel() * grad.element_size() >= PICTURES
    serves = large and output[1:].numel() >= ctx.weight_count and not torch.is_grad_enabled()
    return serves and grad.is_cpu


def _needed_grads_by_picture(
    ctx: Any, input: Tensor | None, weight: Tensor | None, count: int, grad_output: Callable[[slice], Tensor]
) -> tuple[Tensor | None, ...]:
    """`needed_grads`, where the gradient of the convolution's output is there for one of `count` pictures at a time."""
    grad_input = grad_weight = grad_bias = None
    for n in range(count):
        picture = slice(n, n + 1)
        part = None if input is None else input[picture]
        of_input, of_weight, of_bias = needed_grads(ctx, part, weight, grad_output(picture))
        if of_input is not None:
            if grad_input is None:
                grad_input = ops.empty(of_input, (count, *of_input.shape[1:]), ctx.channels_last)
            grad_input[picture] = of_input
        grad_weight, grad_bias = added(grad_weight, of_weight), added(grad_bias, of_bias)
    return grad_input, grad_weight, grad_bias


def _keep(ctx: Any, inputs: tuple[Any, ...], *masks: Tensor) -> None:
    """What the gradients need: of input and weight each only what the other's does."""
    ctx.set_materialize_grads(False)
    input, weight, _, ctx.geometry = inputs[:4]
    ctx.input_size, ctx.kernel_size, ctx.weight_count = input.shape[2:], weight.shape[2:], weight.numel()
    ctx.mark_non_differentiable(*masks)
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None, *masks)


rectify_input = differentiable(RectifyInput)
conv_relu = differentiable(ConvReLU)
conv_relu_pool = differentiable(ConvReLUPool)
