"""Neural style transfer: the loop that paints."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torchconv.style.objective import Network, StyleObjective

OPTIMIZERS = ("lbfgs", "adam")
INITS = ("content", "noise")

HISTORY = 10  # steps that L-BFGS remembers, of two pictures each; more did no better
EXPLODED = 100.0  # times the best loss so far: the optimiser has lost its way
ADAM_STEP = 1.5 / 255  # how far Adam moves a pixel at first


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the objective and its gradient.

    Attributes:
        number: from 1 on.
        content_loss, style_loss: weighted, as they enter the sum.
        improved: this evaluation is the best so far.
        optimizer: "lbfgs", or "adam" (also after L-BFGS has failed).
        seconds: since the start.
    """

    number: int
    content_loss: float
    style_loss: float
    improved: bool
    optimizer: str
    seconds: float

    @property
    def loss(self) -> float:
        return self.content_loss + self.style_loss


@dataclass(frozen=True)
class Painting:
    """What a run gave.

    Attributes:
        picture: the best picture, (1, 3, H, W), RGB in [0, 1].
        first: the evaluation at the start.
        last: the evaluation of `picture`.
        evaluations: how many there were.
        seconds: how long they took.
        fell_back: L-BFGS failed, and Adam went on.
    """

    picture: Tensor
    first: Evaluation
    last: Evaluation
    evaluations: int
    seconds: float
    fell_back: bool


class _IntoRange(Function):
    """Cuts a picture off at [0, 1]. A gradient at the bounds passes where descending it leads back inside."""

    @staticmethod
    def forward(ctx: Any, picture: Tensor) -> Tensor:
        ctx.save_for_backward(picture)
        return picture.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (picture,) = ctx.saved_tensors
        return grad_output * (((picture >= 0) | (grad_output < 0)) & ((picture <= 1) | (grad_output > 0)))


class _Stop(Exception):
    """The run is over."""


class _Diverged(Exception):
    """The loss is not finite, or far above the best."""


class StyleTransfer:
    """Paints the content of one picture in the style of others (Gatys, Ecker & Bethge 2016, arXiv:1508.06576).

    Args:
        network: from a picture (1, 3, H, W), RGB in [0, 1], to a mapping of layer name to activation.
        content: the content picture, (1, 3, H, W); the result has its size.
        styles: the style pictures, each (1, 3, h, w).
        content_weight, style_weights: see `StyleObjective`.
        optimizer: "lbfgs", which needs fewer evaluations, or "adam".
        init: start from the "content" picture or from "noise".
        seed: of the noise.
        tile: see `StyleObjective`.

    Attributes:
        best_picture: (1, 3, H, W), RGB in [0, 1]; None until the start was evaluated.

    Raises:
        ValueError: an argument that is none of these.
    """

    def __init__(
        self,
        network: Network,
        content: Tensor,
        styles: Sequence[Tensor],
        *,
        content_weight: float = 1.0,
        style_weights: Sequence[float] | None = None,
        optimizer: str = "lbfgs",
        init: str = "content",
        seed: int = 0,
        tile: int | None = None,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected {' or '.join(OPTIMIZERS)}, got {optimizer!r}")
        if init not in INITS:
            raise ValueError(f"init: expected {' or '.join(INITS)}, got {init!r}")
        self.objective = StyleObjective(
            network, content, styles, content_weight=content_weight, style_weights=style_weights, tile=tile
        )
        self.optimizer = optimizer
        self.start = content.detach().clone()
        if init == "noise":
            generator = torch.Generator(content.device).manual_seed(seed)
            self.start = torch.rand(content.shape, generator=generator, dtype=content.dtype, device=content.device)
        self.best_picture: Tensor | None = None

    def run(self, evaluations: int, callback: Callable[[Evaluation], bool | None] | None = None) -> Painting:
        """Paint.

        Args:
            evaluations: of the objective and its gradient, at most.
            callback: called after each; the run ends when it returns True. `best_picture` is up to date in it.

        Returns:
            The best picture, and how it came to be. When an exception (Ctrl-C among them) ends the run, `best_picture`
            keeps the best one.

        Raises:
            ValueError: less than 1 evaluation, or a loss that is not finite at the very start.
        """
        if evaluations < 1:
            raise ValueError(f"evaluations: expected 1 or more, got {evaluations}")
        run = _Run(self, evaluations, callback)
        fell_back = False
        try:
            if self.optimizer == "lbfgs":
                try:
                    run.lbfgs()
                except _Diverged:
                    fell_back = True
            run.adam()
        except _Stop:
            pass
        return Painting(run.picture, run.first, run.best, run.latest.number, run.latest.seconds, fell_back)


class _Run:
    """One run's state: the variable that the optimisers move, and the best so far."""

    def __init__(
        self, transfer: StyleTransfer, evaluations: int, callback: Callable[[Evaluation], bool | None] | None
    ) -> None:
        self.transfer = transfer
        self.evaluations = self.left = evaluations
        self.callback = callback
        self.began = time.perf_counter()
        self.picture = transfer.start  # the best so far
        self.first: Evaluation  # these three are there once the start was evaluated
        self.best: Evaluation
        self.latest: Evaluation

    def evaluate(self, variable: Tensor, scale: float, optimizer: str) -> Tensor:
        """The loss of the picture `variable * scale`, cut off at [0, 1]; its gradient in `variable.grad`."""
        if self.left == 0:
            raise _Stop
        self.left -= 1
        number = self.evaluations - self.left
        picture = _IntoRange.apply(variable * scale)
        losses = self.transfer.objective(picture)
        (gradient,) = torch.autograd.grad(losses.total, variable)
        variable.grad = gradient.contiguous()  # L-BFGS flattens it
        value = losses.total.item()
        finite = math.isfinite(value) and bool(gradient.isfinite().all())
        at_start = number == 1
        if at_start and not finite:
            raise ValueError(f"the loss at the start is {value}, expected a finite one: are the weights damaged?")
        improved = finite and (at_start or value < self.best.loss)
        self.latest = Evaluation(
            number, losses.content.item(), losses.style.item(), improved, optimizer, time.perf_counter() - self.began
        )
        if at_start:
            self.first = self.latest
        if improved:
            self.best = self.latest
            self.picture = self.transfer.best_picture = picture.detach().clone()
        if self.callback is not None and self.callback(self.latest):
            raise _Stop
        if not finite or value > EXPLODED * self.best.loss:
            raise _Diverged
        return losses.total.detach()

    def lbfgs(self) -> None:
        """L-BFGS in units in which its first step, of length 1, changes a pixel by 1/255 on average.

        Once it has the scale, the line search accepts nearly every step at once: it costs no evaluations, and guards
        the first few steps, which otherwise can overshoot by orders of magnitude.
        """
        scale = self.transfer.start.numel() / 255
        variable = (self.transfer.start / scale).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [variable],
            max_iter=self.left,
            max_eval=2 * self.left,
            history_size=HISTORY,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(partial(self.evaluate, variable, scale, "lbfgs"))

    def adam(self) -> None:
        """Adam from the best picture so far; where it diverges too, from there again with half the step."""
        step = ADAM_STEP
        while True:
            variable = self.picture.clone().requires_grad_()
            optimizer = torch.optim.Adam([variable], lr=step, betas=(0.9, 0.99))
            try:
                while True:
                    optimizer.step(partial(self.evaluate, variable, 1.0, "adam"))
            except _Diverged:
                step /= 2
