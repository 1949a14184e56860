"""Paint a photo in the manner of a painting: neural style transfer on torchconv's layers.

    python examples/neural_style.py PHOTO PAINTING -o OUT.png --size auto

Several paintings share in the style. The best picture so far is written at the end, on Ctrl-C and on an error. A size
that there is no memory for is refused before the work begins.
"""

import argparse
import contextlib
import ctypes
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then asks for huge pages, which large pictures are faster in

import torch
from PIL import Image
from tqdm import tqdm

from torchconv.models import VGGFeatures, vgg_features
from torchconv.style import LAYERS, Evaluation, StyleTransfer, estimate, load_picture, save_picture
from torchconv.style.estimate import available_memory, largest_size, peak_bytes, peak_memory
from torchconv.style.pictures import FORMATS, picture_format, to_tensor


class Refused(Exception):
    """Input that can't be worked with; the message says what and why."""


def positive_int(text: str) -> int:
    """An integer of 1 or more."""
    if not text.lstrip("+").isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def size(text: str) -> int | None:
    """A number of pixels, or None for "auto"."""
    return None if text == "auto" else positive_int(text)


def byte_count(text: str) -> int:
    """A number of bytes such as 2GB, 1.5GiB or 800 MB."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?) ?([kmgt]?)(i?)b?", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"expected an amount of memory such as 2GB, got {text!r}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " "))


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
        "--size", type=size, default=512, metavar="N", help="longer side in pixels; auto: what fits (%(default)s)"
    )
    parser.add_argument("--memory", type=byte_count, metavar="LIMIT", help="most to use: 2GB, ... (what is available)")
    parser.add_argument(
        "--tile", type=positive_int, metavar="N", help="work in tiles of about N pixels a side: less memory, more time"
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


def resized(
    paths: Sequence[Path], images: Sequence[Image.Image], network: VGGFeatures, longer_side: int
) -> list[tuple[int, int]]:
    """Heights and widths: of the photo, scaled to its longer side, and of the paintings, each of as many pixels."""
    least, deepest = network.minimum_size, network.layers[-1]
    sizes: list[tuple[int, int]] = []
    for path, image in zip(paths, images, strict=True):
        scale = longer_side / max(image.size)
        if sizes:
            scale = math.sqrt(sizes[0][0] * sizes[0][1] / (image.height * image.width))
        width, height = (max(1, round(side * scale)) for side in image.size)
        for what, (x, y) in (("is", image.size), ("becomes", (width, height))):
            if min(x, y) < least:
                expected = f"expected at least {least}x{least} for the layer {deepest}"
                raise Refused(f"{path}: {what} {x}x{y} pixels, {expected}")
        sizes.append((height, width))
    return sizes


def chosen_size(
    options: argparse.Namespace, most: int, sizes_at: Callable[[int], list[tuple[int, int]]], network: VGGFeatures
) -> int:
    """The size asked for, if there is memory for it; for "auto" the largest up to `most` that there is memory for."""
    limit = options.memory or available_memory()

    def bytes_of(longer_side: int) -> int:
        return peak_bytes(network, *sizes_at(longer_side)[0], tile=options.tile)

    def possible(longer_side: int) -> bool:
        with contextlib.suppress(Refused):
            return bool(sizes_at(longer_side))
        return False

    asked = options.size or most
    sizes_at(asked)  # is refused for what it is too small for
    needed = bytes_of(asked)
    if needed <= limit:
        return asked
    least = next(filter(possible, range(1, asked + 1)))
    largest = largest_size(bytes_of, least, asked, limit)
    if options.size is None and largest is not None:
        return largest
    room = f"--memory allows {gigabytes(limit)}" if options.memory else f"{gigabytes(limit)} are available"
    too_much = f"no size fits: {least} needs {gigabytes(bytes_of(least))}"
    advice = f"the largest size that fits is {largest}" if largest else too_much
    raise Refused(f"--size {options.size or 'auto'}: needs about {gigabytes(needed)} of memory, {room}; {advice}")


def return_freed_memory() -> None:
    """Have glibc give freed activations back at once: its heap keeps them in pieces, for a peak a third higher."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(-3, 2**17)  # M_MMAP_THRESHOLD: fixed where it starts


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
    sizes_at = partial(resized, [options.content, *options.styles], [photo, *paintings], network)
    longer_side = options.size
    if device.type == "cpu":
        longer_side = chosen_size(options, max(photo.size), sizes_at, network)
    elif longer_side is None or options.memory:
        raise Refused(f"--device {device}: expected a --size in pixels and no --memory, which are for the cpu's")
    (height, width), *style_sizes = sizes_at(longer_side)
    network = network.to(device)
    expected = estimate(network, height, width, device, options.tile)
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
        tile=options.tile,
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
