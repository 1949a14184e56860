"""How long each layer of a model takes."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from torchconv.inspect.dry_run import Input, several_inputs
from torchconv.inspect.evaluation import evaluating

RUNS = 7  # after one that warms up


def layer_times(model: nn.Module, input: Input | tuple[Input, ...]) -> dict[str, list[float]]:
    """The milliseconds of each module's runs, one number for each run in a forward pass: the median of several passes.

    What a module spends in others counts as theirs. The model runs on grey, in evaluation mode.

    Raises:
        ValueError: the model is on the meta device.
    """
    parameter = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
    if parameter.is_meta:
        raise ValueError("milliseconds=True: expected a model with data, this one is on the meta device")
    inputs = [
        given.detach()
        if isinstance(given, Tensor)
        else torch.full(tuple(given), 0.5, dtype=parameter.dtype, device=parameter.device)
        for given in several_inputs(input)
    ]
    passes = []
    with torch.no_grad(), evaluating(model):
        for _ in range(RUNS + 1):
            passes.append(_timed(model, inputs))
    names = passes[0].keys()
    return {
        name: [1e3 * median(each) for each in zip(*(times[name] for times in passes[1:]), strict=True)]
        for name in names
    }


def _timed(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, list[float]]:
    """The seconds of each module's runs in one pass, those of modules inside left out."""
    times: dict[str, list[float]] = defaultdict(list)
    inside = [0.0]  # for each module that is running, the seconds of those in it
    begun: list[float] = []

    def now() -> float:
        if inputs[0].is_cuda:
            torch.cuda.synchronize(inputs[0].device)
        return perf_counter()

    def enter(*_: Any) -> None:
        inside.append(0.0)
        begun.append(now())

    def leave(name: str) -> None:
        elapsed = now() - begun.pop()
        times[name].append(elapsed - inside.pop())
        inside[-1] += elapsed

    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(lambda *_, name=name: leave(name)))
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return times
