"""Look at a network from the shell.

python -m torchconv.inspect summary vgg19 --milliseconds
python -m torchconv.inspect receptive-field vgg19 relu4_2
python -m torchconv.inspect filters vgg19 --weights original -o filters.png
python -m torchconv.inspect feature-maps vgg19 relu3_1 photo.jpg --weights original -o maps.png
python -m torchconv.inspect grad-cam alexnet photo.jpg --weights IMAGENET1K_V1 -o where.png
python -m torchconv.inspect filter "vertical edges" photo.jpg -o edges.png
python -m torchconv.inspect output-size 13 --kernel 6 --stride 5 --padding same
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn

from torchconv import inspect
from torchconv.inspect.dry_run import dry_run, usual_input_size
from torchconv.inspect.models_by_name import make_model, model_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all"
RANDOM = "random"


class Parser(argparse.ArgumentParser):
    """One line for an error, as everywhere in this program."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def whole(least: int) -> Callable[[str], int]:
    """Reads whole numbers, of which `least` is the least."""

    def read(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, got {text!r}")
        return int(text)

    return read


def padding(text: str) -> str | int:
    """valid, same, or a number of pixels."""
    if text in ("valid", "same"):
        return text
    try:
        return whole(0)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected valid, same or a number of pixels, got {text!r}") from None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m torchconv.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    names = ", ".join(model_names())

    def command(name: str, help: str, run: Callable[[argparse.Namespace], None], of_model: bool = True) -> Parser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(run=run)
        if of_model:
            added.add_argument("model", metavar="MODEL", help=names)
            weights = "original, IMAGENET1K_V1, or a file: a state_dict or a checkpoint of examples/train.py (random)"
            added.add_argument("--weights", help=weights)
        return added

    def takes_input(added: Parser) -> None:
        shape = "shape of the input, as 1 3 224 224 (the first of 224, 32 and 28 pixels that the model takes)"
        added.add_argument("--input", type=whole(1), nargs="+", metavar="N", help=shape)

    def takes_picture(added: Parser) -> None:
        added.add_argument("picture", type=Path, metavar="PICTURE")

    def gives_picture(added: Parser, required: bool = True) -> None:
        added.add_argument("-o", "--output", type=Path, required=required, metavar="OUT", help="picture to write")

    def resizes(added: Parser) -> None:
        added.add_argument("--size", type=whole(1), metavar="N", help="shorter side of the picture (what models take)")

    added = command("summary", "the layers in a table: shapes, parameters, work, memory, receptive fields", summary)
    takes_input(added)
    added.add_argument("--milliseconds", action="store_true", help="also how long each layer takes")

    added = command(
        "receptive-field", "the pixels that outputs of a layer see, or those of all layers", receptive_field
    )
    added.add_argument("layer", nargs="?", metavar="LAYER", help="dotted name, or relu4_2 and the like in VGG (all)")
    takes_input(added)
    gives_picture(added, required=False)

    added = command("filters", "draw the weights of a convolution", filters)
    added.add_argument("--layer", help="dotted name (the first convolution)")
    added.add_argument("--before", metavar="WEIGHTS", help=f"as --weights, or {RANDOM}: draw these beside them")
    gives_picture(added)

    added = command("feature-maps", "draw what a layer makes of a picture, strongest maps first", feature_maps)
    added.add_argument("layer", metavar="LAYER", help="dotted name, or relu4_2 and the like in VGG")
    takes_picture(added)
    added.add_argument("--most", type=whole(1), default=16, help="maps to draw at most (%(default)s)")
    resizes(added)
    gives_picture(added)

    added = command("grad-cam", "draw which parts of a picture speak for a class", grad_cam)
    takes_picture(added)
    added.add_argument("--layer", help="dotted name (the last that gives maps)")
    added.add_argument("--target", type=whole(0), metavar="CLASS", help="(the one with the largest score)")
    added.add_argument("--sum", action="store_true", help="the plain sum of the layer's maps instead")
    resizes(added)
    gives_picture(added)

    added = command("filter", "apply a filter made by hand to a picture", hand_made, of_model=False)
    added.add_argument("name", metavar="NAME", help=", ".join([ALL, *inspect.HAND_MADE_FILTERS]))
    takes_picture(added)
    gives_picture(added)

    added = command("output-size", "the size of what a convolution or pooling gives", output_size, of_model=False)
    added.add_argument("input", type=whole(1), nargs="+", metavar="N", help="size of the input, in each dimension")
    added.add_argument("--kernel", type=whole(1), required=True, metavar="N")
    added.add_argument("--stride", type=whole(1), default=1, metavar="N", help="(%(default)s)")
    added.add_argument("--padding", type=padding, default="valid", help="valid, same or pixels (%(default)s)")
    added.add_argument("--dilation", type=whole(1), default=1, metavar="N", help="(%(default)s)")
    return parser.parse_args(arguments)


def summary(options: argparse.Namespace) -> None:
    """The command of this name."""
    model = shapes_of(options) if not options.milliseconds else make_model(options.model, options.weights)
    size = tuple(options.input or usual_input_size(model))
    print(inspect.summary(model, size, milliseconds=options.milliseconds))


def receptive_field(options: argparse.Namespace) -> None:
    """The command of this name."""
    model = shapes_of(options)
    size = tuple(options.input) if options.input else None
    if options.layer is None:
        fields = inspect.receptive_fields(model, size)
    else:
        fields = {options.layer: inspect.receptive_field(model, options.layer, size)}
    if options.output is not None:
        save(inspect.draw_receptive_field(model, options.layer, size), options.output)
    width = max(map(len, fields), default=0)
    for name, field in fields.items():
        print(f"{name:{width}}  {field}")


def shapes_of(options: argparse.Namespace) -> nn.Module:
    """The model, without data where that spares the time of drawing random weights."""
    with torch.device("cpu" if options.weights else "meta"):
        return make_model(options.model, options.weights)


def filters(options: argparse.Namespace) -> None:
    """The command of this name."""
    model = make_model(options.model, options.weights)
    before = None
    if options.before is not None:
        torch.manual_seed(0)
        before = make_model(options.model, None if options.before == RANDOM else options.before)
    earlier = None if before is None else convolution(before, options.layer)
    save(inspect.plot_filters(convolution(model, options.layer), earlier), options.output)


def convolution(model: nn.Module, name: str | None) -> nn.Module:
    """A layer by its name; by default the first convolution."""
    if name is not None:
        return inspect.find_layer(model, name)[1]
    return next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))


def feature_maps(options: argparse.Namespace) -> None:
    """The command of this name."""
    model = make_model(options.model, options.weights)
    picture = load(options.picture, model, options.size)
    save(inspect.plot_feature_maps(model, options.layer, picture, options.most), options.output)


def grad_cam(options: argparse.Namespace) -> None:
    """The command of this name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = make_model(options.model, options.weights)
    if not options.sum:
        for warning in caught:
            print(f"warning: {warning.message}", file=sys.stderr)
    picture = load(options.picture, model, options.size)
    layer = options.layer or inspect.last_maps(model, picture)
    if options.sum:
        seen = inspect.activation_map(model, layer, picture)
    else:
        seen = inspect.grad_cam(model, layer, picture, options.target)
    save(inspect.plot_overlay(picture, seen), options.output)


def hand_made(options: argparse.Namespace) -> None:
    """The command `filter`."""
    picture = load(options.picture)
    if options.name == ALL:
        save(inspect.plot_hand_made(picture), options.output)
        return
    from torchconv.style.pictures import save_picture

    response = inspect.response_picture(inspect.apply_filter(picture, options.name), options.name)
    save_picture(response.expand(1, 3, -1, -1), options.output)


def output_size(options: argparse.Namespace) -> None:
    """The command of this name."""
    size = inspect.output_size(options.input, options.kernel, options.stride, options.padding, options.dilation)
    print(*size)


def load(path: Path, model: nn.Module | None = None, size: int | None = None) -> Tensor:
    """A picture, as large as it is; or as a model takes it, in its own proportions where the model takes these."""
    from torchconv.style.pictures import load_picture, to_tensor

    image = load_picture(path)
    shape = image.height, image.width
    if model is None:
        return to_tensor(image, shape)
    usual = usual_input_size(model)
    scale = (size or min(usual[2:])) / min(shape)
    shape = max(1, round(image.height * scale)), max(1, round(image.width * scale))
    try:
        dry_run(model, (1, usual[1], *shape))
    except (RuntimeError, ValueError):
        if size is not None:
            raise
        shape = usual[2], usual[3]
    return to_tensor(image, shape)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure."""
    inspect.save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0, or 2 after an error, which is told in one line.
    """
    options = parse(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if getattr(options, "output", None) is not None:
                from torchconv.style.pictures import picture_format

                picture_format(options.output)  # before the work
            options.run(options)
    except ModuleNotFoundError as error:
        hint = "" if "pip install" in str(error) else ": pip install 'torchconv[inspect]'"
        return _refuse(f"{error}{hint}")
    except (ValueError, RuntimeError, OSError) as error:
        return _refuse(str(error))
    return 0


def _refuse(message: str) -> int:
    print(f"python -m torchconv.inspect: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
