"""Paint a photo in the manner of a painting: neural style transfer on torchconv's layers.

    python examples/neural_style.py PHOTO PAINTING -o OUT.png

Several paintings share in the style. The best picture so far is written at the end, on Ctrl-C and on an error.
"""

import argparse
import contextlib
import ctypes
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then asks for huge pages, which large pictures are faster in

import torch
from PIL import Image
from tqdm import tqdm

from torchconv.models import VGGFeatures, vgg_features
from torchconv.style import LAYERS, Evaluation, StyleTransfer, estimate, load_picture, save_picture
from torchconv.style.estimate import peak_memory
from torchconv.style.pictures import FORMATS, picture_format, to_tensor


class Refused(Exception):
    """Input that can't be worked with; the message says what and why."""


def positive_int(text: str) -> int:
    """An integer of 1 or more."""
    if not text.lstrip("+").isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def weight(text: str) -> float:
    """A finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected 0 or a positive number, got {text!r}")
    return value


def seed(text: str) -> int:
    """What a random generator takes."""
    if not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2**63 - 1, got {text!r}")
    return int(text)


class Parser(argparse.ArgumentParser):
    """One line for an error, as everywhere in this program."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="neural_style.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("content", type=Path, metavar="CONTENT", help="the photo to paint")
    parser.add_argument(
        "styles", type=Path, nargs="+", metavar="STYLE", help="the painting, or several, to paint it like"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help=f"file to write: {', '.join(FORMATS)}"
    )
    parser.add_argument(
        "--size", type=positive_int, default=512, help="longer side of the result, in pixels (%(default)s)"
    )
    parser.add_argument(
        "--iterations", type=positive_int, default=150, help="evaluations of the objective (%(default)s)"
    )
    parser.add_argument("--optimizer", choices=["lbfgs", "adam"], default="lbfgs", help="(%(default)s)")
    parser.add_argument("--content-weight", type=weight, default=1.0, help="more keeps more of the photo (%(default)s)")
    parser.add_argument(
        "--style-weight",
        type=weight,
        nargs="+",
        default=[1.0],
        help="one for all paintings or one for each (%(default)s)",
    )
    parser.add_argument("--init", choices=["content", "noise"], default="content", help="start from (%(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (%(default)s)")
    parser.add_argument(
        "--weights",
        default="original",
        help="VGG-19's: original, a .pth file or a torchvision weight name (%(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--save-every", type=positive_int, metavar="N", help="also write OUT every N evaluations")
    options = parser.parse_args(arguments)
    styles, weights = len(options.styles), len(options.style_weight)
    if weights not in (1, styles):
        parser.error(f"argument --style-weight: expected 1 or {styles} numbers, one for each style, got {weights}")
    if weights == 1:
        options.style_weight = [options.style_weight[0] / styles] * styles
    return options


def check_output(path: Path, inputs: list[Path]) -> None:
    """Refuse now what could not be written after the work."""
    picture_format(path)
    if path.is_dir():
        raise Refused(f"{path}: expected a file to write, got a folder")
    if any(path.exists() and other.exists() and path.samefile(other) for other in inputs):
        raise Refused(f"{path}: is one of the pictures to read, expected another file")
    probe = path.parent / f".{path.name}.{os.getpid()}.probe"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise Refused(f"{path}: can't be written: {error.strerror} ({path.parent})") from None


def checked_device(name: str) -> torch.device:
    """The device, once a tensor was put on it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise Refused(f"--device {name}: can't be used: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise Refused(f"--device {name}: can't be used: it holds no data")
    return device


def resized(path: Path, image: Image.Image, network: VGGFeatures, scale: float) -> tuple[int, int]:
    """Height and width of a picture when scaled, large enough for the network."""
    width, height = (max(1, round(side * scale)) for side in image.size)
    least, deepest = network.minimum_size, network.layers[-1]
    for what, (x, y) in (("is", image.size), ("becomes", (width, height))):
        if min(x, y) < least:
            raise Refused(f"{path}: {what} {x}x{y} pixels, expected at least {least}x{least} for the layer {deepest}")
    return height, width


def check_memory(option: str, expected: int) -> None:
    """Refuse what this machine has no room for."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if expected > memory:
        raise Refused(f"{option}: needs about {gigabytes(expected)} of memory, this machine has {gigabytes(memory)}")


def return_freed_memory() -> None:
    """Have glibc give freed activations back at once: its heap keeps them in pieces, for a peak a third higher."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD, of 1 MiB


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """A time span for people."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def paint(options: argparse.Namespace) -> None:
    """The whole job."""
    check_output(options.output, [options.content, *options.styles])
    device = checked_device(options.device)
    network = vgg_features("vgg19", layers=LAYERS, weights=options.weights)
    photo, paintings = load_picture(options.content), [load_picture(path) for path in options.styles]
    height, width = resized(options.content, photo, network, options.size / max(photo.size))
    style_sizes = [
        resized(path, image, network, math.sqrt(height * width / (image.height * image.width)))
        for path, image in zip(options.styles, paintings, strict=True)
    ]
    network = network.to(device)
    expected = estimate(network, height, width, device)
    if device.type == "cpu":
        check_memory(f"--size {options.size}", expected.bytes)
    content = to_tensor(photo, (height, width)).to(device)
    styles = [to_tensor(image, size).to(device) for image, size in zip(paintings, style_sizes, strict=True)]
    print(
        f"{width}x{height} pixels on {device}, {torch.get_num_threads()} threads: "
        f"expect {gigabytes(expected.bytes)} of memory and {duration(expected.seconds * options.iterations)} "
        f"({options.iterations} evaluations of {expected.seconds:.2f} s)",
        flush=True,
    )
    transfer = StyleTransfer(
        network,
        content,
        styles,
        content_weight=options.content_weight,
        style_weights=options.style_weight,
        optimizer=options.optimizer,
        init=options.init,
        seed=options.seed,
    )
    painting = None
    with tqdm(total=options.iterations, unit="eval") as bar:

        def report(evaluation: Evaluation) -> None:
            bar.set_postfix(
                content=f"{evaluation.content_loss:.4g}", style=f"{evaluation.style_loss:.4g}", refresh=False
            )
            bar.update()
            if options.save_every and evaluation.number % options.save_every == 0 and transfer.best_picture is not None:
                save_picture(transfer.best_picture, options.output)

        try:
            painting = transfer.run(options.iterations, report)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"; the best picture so far is in {options.output.resolve()}") from None
        finally:
            if transfer.best_picture is not None:
                save_picture(transfer.best_picture, options.output)
    first, last = painting.first, painting.last
    if painting.fell_back:
        print("L-BFGS diverged: Adam went on from the best picture.")
    print(f"content loss {first.content_loss:.6g} at the start, {last.content_loss:.6g} at the end")
    fall = first.style_loss / last.style_loss if last.style_loss else math.inf
    print(f"style loss   {first.style_loss:.6g} at the start, {last.style_loss:.6g} at the end: {fall:.1f} times less")
    print(f"{painting.seconds / painting.evaluations:.2f} s per evaluation, peak memory {gigabytes(peak_memory())}")
    print(f"wrote {options.output.resolve()}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 2 for bad input and 130 after Ctrl-C."""
    options = parse(arguments)
    return_freed_memory()
    try:
        paint(options)
    except (Refused, ValueError, OSError, ImportError) as error:
        print(f"neural_style.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"neural_style.py: stopped{interrupt}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
