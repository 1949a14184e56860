"""Train a classic network on real pictures, on torchconv's layers or, to compare, on torch.nn's.

    python examples/train.py                                         # modern LeNet-5 on scikit-learn's digits, offline
    python examples/train.py --model simple-convnet --data mnist --data-dir FOLDER
    python examples/train.py --model vgg-a --data fashion-mnist --layers torch
    python examples/train.py --model alexnet --data DIR              # your own: DIR/train/CLASS/*.png, DIR/test/CLASS/*
    python examples/train.py --resume                                # goes on where it was stopped, or killed
    python examples/train.py --evaluate runs/modern-lenet5-digits/best.pt
    torchrun --nproc-per-node 2 examples/train.py --model lenet5 --data mnist

MNIST and Fashion-MNIST are read from IDX files, plain or gzipped: in --data-dir, below it in the layout of torchvision,
or where a system package has them. Otherwise torchvision downloads them. Each model has a recipe, listed by --help,
whose numbers options replace. A run has a folder (runs/MODEL-DATA): metrics.jsonl, a line for each epoch; last.pt, from
which --resume goes on; best.pt, the best on the test pictures. A resumed run takes its settings from its checkpoint.

Whatever is random comes from --seed and the number of the epoch or step: in one process, with as many threads, a run
that was killed and resumed ends with the same bits as one that wasn't. Under torchrun, on one machine, --batch-size is
that of all processes together, and the weights become those of one process, up to rounding. Two layers differ: dropout
draws its masks in each process by itself, and batch normalization on a CPU goes by each process's part of a batch.
"""

import argparse
import sys
from argparse import RawDescriptionHelpFormatter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from training.checkpoint import compare, load, restore
from training.data import PUBLISHED, Data
from training.data import load as load_data
from training.loop import Trainer
from training.metrics import Metrics
from training.networks import ARCHITECTURES, build, recipe, recipes
from training.optimization import SCHEDULES, Settings
from training.parallel import Processes, processes
from training.stop import Stop

MODEL, DATA = "modern-lenet5", "digits"


def whole(least: int, most: int = 2**63 - 1) -> Any:
    """A type of option: a whole number."""

    def convert(text: str) -> int:
        if not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, got {text!r}")
        return int(text)

    return convert


def number(most: float = float("inf"), zero: bool = True) -> Any:
    """A type of option: a number from 0, which may be excluded, to less than `most`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not (value >= 0 if zero else value > 0) or not value < most:
            bounds = f"{'0 or more' if zero else 'more than 0'}{f' and less than {most:g}' if most < 1e300 else ''}"
            raise argparse.ArgumentTypeError(f"expected a number of {bounds}, got {text!r}")
        return value

    return convert


class Parser(argparse.ArgumentParser):
    """One line for an error, as everywhere in this program."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser() -> Parser:
    """The command line. What a checkpoint fixes has no default here: it comes from the recipe or the checkpoint."""
    names = ", ".join(ARCHITECTURES)
    made = Parser(prog="train.py", description=__doc__, epilog=recipes(), formatter_class=RawDescriptionHelpFormatter)
    what = made.add_argument_group("what to train")
    what.add_argument("--model", choices=ARCHITECTURES, metavar="NAME", help=f"{names} ({MODEL})")
    what.add_argument("--data", metavar="NAME", help=f"digits, {', '.join(PUBLISHED)} or a folder of pictures ({DATA})")
    what.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST's files are (%(default)s)")
    what.add_argument("--norm", choices=["batch", "none"], help="normalization, of VGGs (batch)")
    what.add_argument("--layers", choices=["torchconv", "torch"], help="whose (torchconv)")
    how = made.add_argument_group("how; without an option by the model's recipe")
    how.add_argument("--epochs", type=whole(1))
    how.add_argument(
        "--max-steps", type=whole(1), metavar="N", help="fewer than the epochs have; the schedule ends there"
    )
    how.add_argument("--batch-size", type=whole(1), metavar="N", help="of all processes together")
    how.add_argument("--optimizer", choices=["adamw", "sgd"])
    how.add_argument("--lr", type=number(zero=False), help="the highest learning rate")
    how.add_argument("--momentum", type=number(1), help="of sgd, which is Nesterov's")
    how.add_argument("--weight-decay", type=number(), help="of weights, not of biases and normalizations")
    how.add_argument("--schedule", choices=SCHEDULES)
    how.add_argument("--warmup", type=whole(0), metavar="STEPS", help="linear; one-cycle has its own")
    how.add_argument("--label-smoothing", type=number(1), metavar="SHARE")
    how.add_argument("--shift", type=whole(0), metavar="PIXELS", help="move each picture by up to so much")
    how.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None, help="mirror every other picture")
    how.add_argument("--seed", type=whole(0), help="(0)")
    how.add_argument("--autocast", choices=["none", "bfloat16"], help="(none)")
    how.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=None)
    run = made.add_argument_group("the run")
    run.add_argument("--output", type=Path, metavar="DIR", help="its folder (runs/MODEL-DATA)")
    run.add_argument("--overwrite", action="store_true", help="replace the run that the folder holds")
    run.add_argument("--resume", type=Path, nargs="?", const=Path(), metavar="PATH", help="go on from last.pt, or PATH")
    run.add_argument("--evaluate", type=Path, metavar="PATH", help="only test a checkpoint")
    run.add_argument("--checkpoint-every", type=whole(1), metavar="STEPS", help="and after each epoch")
    run.add_argument("--seconds", type=number(zero=False), help="stop after so long, to be resumed")
    run.add_argument("--tensorboard", action="store_true", help="curves in the folder tensorboard")
    run.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    run.add_argument("--threads", type=whole(1, 4096), metavar="N", help="of each process (as torch chooses)")
    return made


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as options."""
    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    return {name: value for name, value in given.items() if value is not None}


def new_settings(given: dict[str, Any]) -> Settings:
    """The recipe's settings, and in their place those that were given."""
    model, data = given.get("model", MODEL), given.get("data", DATA)
    fixed = {"layers": "torchconv", "seed": 0, "max_steps": None, "autocast": "none"}
    settings = Settings(**{**fixed, **recipe(model, data), "model": model, "data": data, **given})
    if settings.warmup and settings.schedule == "one-cycle":
        raise ValueError(f"--warmup {settings.warmup}: expected 0 with --schedule one-cycle, which has its own")
    return settings


def stored_settings(path: Path, state: dict[str, Any], given: dict[str, Any], evaluate: bool) -> Settings:
    """A checkpoint's settings. A run goes on with no others; to evaluate, only the network must be the same.

    Raises:
        ValueError: names what differs.
    """
    stored = state["settings"]
    if stored.get("model") not in ARCHITECTURES or set(stored) != {field.name for field in fields(Settings)}:
        raise ValueError(f"{path}: expected the settings of this train.py, got another version's")
    fixed = [name for name in given if (name in ("model", "norm") if evaluate else name != "data")]
    compare(path, stored, {name: given[name] for name in fixed})
    return Settings(**{**stored, **given})


def check_data(path: Path, state: dict[str, Any], data: Data, evaluate: bool) -> None:
    """Data are compared by their content, wherever they are; to evaluate, by their number of classes.

    Raises:
        ValueError: they are others than the checkpoint's.
    """
    name, classes = state["settings"]["data"], state["data"]["classes"]
    if len(data.classes) != len(classes):
        raise ValueError(f"{path}: tells {len(classes)} classes apart, --data {data.name} has {len(data.classes)}")
    if not evaluate and data.checksum != state["data"]["checksum"]:
        what = f"not {data.name}" if name != data.name else "when it had other pictures or labels"
        raise ValueError(f"{path}: was trained with --data {name}, {what}")


def run_folder(settings: Settings) -> Path:
    """Where a run is kept unless told otherwise."""
    return Path("runs") / f"{settings.model}-{Path(settings.data).resolve().name or 'data'}"


def say(text: str, who: Processes) -> None:
    """Print it once."""
    if who.first:
        print(text, flush=True)


def train(options: argparse.Namespace, who: Processes) -> int:
    """The whole job; the exit status."""
    given = asked(options)
    path, state = options.evaluate or options.resume, None
    if path == Path():
        path = (options.output or run_folder(new_settings(given))) / "last.pt"
    if path:
        state = load(path)
        settings = stored_settings(path, state, given, options.evaluate)
    else:
        settings = new_settings(given)
    architecture = ARCHITECTURES[settings.model]
    folder = options.output or (path.parent if path else run_folder(settings))
    resumed = options.resume is not None and folder == path.parent
    if not (options.evaluate or resumed or options.overwrite) and (folder / "last.pt").exists():
        raise ValueError(f"{folder}: holds a run; expected --resume, --overwrite or another --output")
    with who.first_goes_first():
        data = load_data(settings.data, options.data_dir, architecture.shape, settings.seed)
    torch.manual_seed(settings.seed)
    network = build(settings.model, len(data.classes), settings.norm, settings.layers)
    if state:
        check_data(path, state, data, options.evaluate)
        restore(path, network, state["model"])
    trainer = Trainer(network, architecture.shape, data, settings, who, None if options.evaluate else state)
    if options.evaluate:
        loss, accuracy = trainer.test()
        say(f"{path}: loss {loss:.4f}, accuracy {accuracy:.2%} of {len(data.test)} test pictures of {data.name}", who)
        return 0
    parameters = sum(p.numel() for p in network.parameters())
    say(
        f"{settings.model} of {parameters:,} parameters on {settings.layers}'s layers, {who.device.type}, {who.world} "
        f"process{'es' * (who.world > 1)} of {torch.get_num_threads()} threads; {data.source}: "
        f"{len(data.train):,} pictures to train, {len(data.test):,} to test; into {folder}",
        who,
    )
    say(" ".join(f"{name}={value}" for name, value in asdict(settings).items()), who)
    if who.world > 1 and who.device.type == "cpu" and settings.norm == "batch":
        say("batch normalization goes by each process's own part of a batch: not quite one process's result", who)
    metrics = None
    if who.first:
        folder.mkdir(parents=True, exist_ok=True)
        for name in () if resumed else ("last.pt", "best.pt"):
            (folder / name).unlink(missing_ok=True)
        metrics = Metrics(folder, trainer.progress.step, options.tensorboard)
    with Stop(options.seconds, who.world == 1) as stop:
        try:
            finished = trainer.run(stop, folder, metrics, options.checkpoint_every)
        finally:
            if metrics:
                metrics.close()
    last, progress = folder / "last.pt", trainer.progress
    if not finished:
        say(f"stopped after {progress.step} of {trainer.total} steps; to go on: --resume {last}", who)
        return 128 + stop.signal if stop.signal else 0
    say(f"best test accuracy {progress.best_accuracy:.2%}, of epoch {progress.best_epoch}: {folder / 'best.pt'}", who)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 2 for bad input, 130 after Ctrl-C and 143 after SIGTERM."""
    options = parser().parse_args(arguments)
    if options.resume and options.evaluate:
        parser().error("argument --evaluate: expected without --resume")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        with processes(options.device) as who:
            return train(options, who)
    except (ValueError, OSError, ImportError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
