"""Whole networks: inference, training steps and a style-transfer step, torch.nn beside torchconv.convert(the same).

Inference and the style step run on fused layers (`fuse=True`), inference with folded batch norms and packed weights
(`fold_batch_norm=True, pack_weights=True`), the steps of training on the same layers one by one.
A training step is the forward pass, cross-entropy, the backward pass and SGD's update; "backward" is that without the
update; "per-sample" is the gradient of each picture's own loss, by torch.func. The style step is VGG-19 to relu5_1,
content and Gram losses, and the backward pass to the picture, as torchconv.style computes them; the torch side is the
same objective on torch.nn's layers. `differs` compares outputs, losses, or per-sample gradients of the first weight.
"""

import argparse
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import chain

import torch
from command import parser, run
from models import GRID, MODELS, picture_shape
from record import Record
from side_by_side import FORMATS, FOUR, SIDES, Table, alternate, difference, four
from style_step import steps
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import torchconv

Calls = dict[str, Callable[[], Tensor]]
CLASSES = 10


def both(network: nn.Module, inputs: Tensor, **options: bool) -> dict[str, tuple[nn.Module, Tensor]]:
    """Copies of a network on both sides, and its input, in both memory formats."""
    copies = {}
    for side in SIDES:
        library, layout = side.split()
        copy = deepcopy(network).to(memory_format=FORMATS[layout])
        copy = torchconv.convert(copy, **options) if library == "torchconv" else torchconv.revert(copy)
        copies[side] = copy, inputs.contiguous(memory_format=FORMATS[layout])
    return copies


def infer(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(inputs)


def forward(network: nn.Module, inputs: Tensor) -> Calls:
    """The forward pass."""
    sides = both(network, inputs, fuse=True, fold_batch_norm=True, pack_weights=True)
    return {side: partial(infer, *copies) for side, copies in sides.items()}


def inference(model: str, batch: int, size: int) -> Calls:
    """The forward pass of a network that is evaluated."""
    return forward(MODELS[model]().eval(), torch.rand(batch, *picture_shape(model, size)))


def backward(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    for parameter in network.parameters():
        parameter.grad = None
    loss = F.cross_entropy(network(inputs), labels)
    loss.backward()
    return loss.detach()


def train(optimizer: torch.optim.Optimizer, network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    loss = backward(network, inputs, labels)
    optimizer.step()
    return loss


def training(model: str, batch: int, size: int, update: bool) -> Calls:
    """A step of training a network; it gives the loss before the update."""
    sides = both(MODELS[model]().train(), torch.rand(batch, *picture_shape(model, size)))
    labels = torch.randint(CLASSES, (batch,))
    calls: Calls = {}
    for side, copies in sides.items():
        optimizer = torch.optim.SGD(copies[0].parameters(), lr=1e-3)
        calls[side] = partial(train, optimizer, *copies, labels) if update else partial(backward, *copies, labels)
    return calls


def sample_gradients(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    def loss(parameters: dict[str, Tensor], picture: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, parameters, (picture[None],)), label[None])

    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    gradients = vmap(grad(loss), (None, 0, 0))(parameters, inputs, labels)
    return next(iter(gradients.values()))


def per_sample(model: str, batch: int, size: int) -> Calls:
    """The gradients of each picture's loss in all parameters; it gives those in the first."""
    sides = both(MODELS[model]().train(), torch.rand(batch, *picture_shape(model, size)))
    labels = torch.randint(CLASSES, (batch,))
    return {side: partial(sample_gradients, *copies, labels) for side, copies in sides.items()}


def style(_: str, __: int, size: int) -> Calls:
    """A step of style transfer; it gives the loss."""
    return {side: lambda step=step: step()[0] for side, step in steps(size).items()}


KINDS: dict[str, Callable[[str, int, int], Calls]] = {
    "forward": inference,
    "backward": partial(training, update=False),
    "training": partial(training, update=True),
    "per-sample": per_sample,
    "style": style,
}
# Kind, network, batch, size.
CASES = [
    ("forward", "vgg19", 1, 512),
    ("forward", "vgg19", 1, 224),
    *(("forward", model, 1, 224) for model in (*GRID[1:], "resnet18")),
    *(("forward", model, 8, 224) for model in ("resnet50", "mobilenet_v2")),
    *chain.from_iterable([("forward", "lenet", n, 28), ("backward", "lenet", n, 28)] for n in (1, 64)),
    *(("per-sample", "lenet", n, 28) for n in (1, 8, 32, 128)),
    *((kind, *case) for case in (("vgg16", 8, 64), ("resnet18", 8, 128)) for kind in ("training", "backward")),
    ("style", "vgg19", 1, 512),
]


def job(options: argparse.Namespace, record: Record) -> None:
    table = Table(network=-14, of=-10, batch=5, size=5, **FOUR)
    for kind, model, batch, size in CASES:
        if kind not in options.kinds or (options.models and model not in options.models):
            continue
        for pixels in options.size if options.size and model != "lenet" else [size]:
            facts = {"threads": options.count, "network": model, "kind": kind, "batch": batch, "size": pixels}
            if record.has(facts):
                continue
            calls = KINDS[kind](model, batch, pixels)
            outputs = {}
            for side, call in calls.items():
                torch.manual_seed(0)  # dropout draws the same on each side
                outputs[side] = call()
            reference = outputs["torch nchw"]
            differs = max(difference(y, reference) for side, y in outputs.items() if side.startswith("torchconv"))
            timing = alternate(calls, options.budget_seconds, least=5)
            losses = {side: y.item() for side, y in outputs.items() if y.dim() == 0}
            record.add(facts, timing, differs=differs, losses=losses)
            table.row(model, kind, str(batch), str(pixels), *four(timing.median, differs))


def main() -> int:
    options = parser(__doc__, budget=3.0)
    options.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND", help="%(default)s")
    options.add_argument("--models", nargs="+", choices=MODELS, metavar="MODEL", help="only these of the networks")
    options.add_argument("--size", type=int, nargs="+", help="other sizes than the cases' own, except for LeNet's")
    return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
