"""The command line: it learns, it goes on where it was stopped, two processes are one, and nothing is lost."""

import errno
import importlib.util
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

sys.path.append(str(Path(__file__).parent.parent / "examples"))

from training import checkpoint, metrics, networks, optimization

SCRIPT = Path(__file__).parent.parent / "examples" / "train.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def run(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that succeeds: what it printed."""

    def run(*arguments: object) -> str:
        status = script.main(list(map(str, arguments)))
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def refusal(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that has to be refused: its one line."""

    def refusal(*arguments: object) -> str:
        try:
            status = script.main(list(map(str, arguments)))
        except SystemExit as exit:  # argparse's way
            status = exit.code
        errors = capsys.readouterr().err
        assert status == 2
        assert re.search(r"(^|\r)train\.py: error: [^\n]+\n\Z", errors), (
            errors
        )  # after the progress bar, if there was one
        return errors.strip().rsplit("\r")[-1]

    return refusal


def weights(path: Path) -> dict[str, Tensor]:
    return checkpoint.load(path)["model"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines(folder)]


def assert_same_bits(found: Path, expected: Path) -> None:
    ours, theirs = checkpoint.load(found), checkpoint.load(expected)
    for state in (ours, theirs):
        state["progress"].pop("seconds")
    for part in ("model", "optimizer"):
        assert_close(ours.pop(part), theirs.pop(part), rtol=0, atol=0)
    assert ours == theirs


# What it learns


def test_learns_digits(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("--epochs", 4, "--output", tmp_path)
    assert "modern-lenet5 of 61,706 parameters on torchconv's layers" in printed
    found = lines(tmp_path)
    assert [line["epoch"] for line in found] == [1, 2, 3, 4]
    assert [line["step"] for line in found] == [45, 90, 135, 180]
    assert found[-1]["test_accuracy"] >= 0.95
    assert found[-1]["train_loss"] < found[0]["train_loss"] / 3
    best = max(line["test_accuracy"] for line in found)
    assert f"best test accuracy {best:.2%}" in printed
    evaluated = run("--evaluate", tmp_path / "best.pt")
    assert f"accuracy {best:.2%} of 360 test pictures of digits" in evaluated
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "last.pt", "metrics.jsonl"]


@pytest.mark.parametrize("model", ["lenet5", "simple-convnet", "modern-lenet5"])
def test_torchs_layers_train_alike(run: Callable[..., str], tmp_path: Path, model: str) -> None:
    for layers in ("torchconv", "torch"):
        arguments = ("--model", model, "--optimizer", "sgd", "--lr", 1e-3, "--max-steps", 6)
        run(*arguments, "--layers", layers, "--output", tmp_path / layers)
    ours, theirs = (weights(tmp_path / layers / "last.pt") for layers in ("torchconv", "torch"))
    for name, tensor in ours.items():
        assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)
    kinds = {type(layer).__module__ for layer in networks.build("vgg-a", 10, "batch", "torch").modules()}
    assert not any(kind.startswith("torchconv") for kind in kinds)


def test_options_reach_the_training(run: Callable[..., str], tmp_path: Path) -> None:
    options = ["--autocast", "bfloat16", "--channels-last", "--schedule", "cosine", "--warmup", "3", "--flip"]
    options += ["--label-smoothing", "0.1", "--optimizer", "sgd", "--momentum", "0", "--seed", "3", "--norm", "none"]
    run("--model", "vgg-a", "--max-steps", 2, *options, "--output", tmp_path)
    settings = checkpoint.load(tmp_path / "last.pt")["settings"]
    expected = {"autocast": "bfloat16", "channels_last": True, "schedule": "cosine", "warmup": 3, "flip": True}
    expected |= {"label_smoothing": 0.1, "optimizer": "sgd", "momentum": 0.0, "seed": 3, "norm": "none"}
    assert expected.items() <= settings.items()
    assert lines(tmp_path)[0]["learning_rate"] == pytest.approx(settings["lr"] * 2 / 3)


def test_schedules(script: ModuleType) -> None:
    def rates(schedule: str, warmup: int = 0) -> list[float]:
        settings = script.new_settings({"schedule": schedule, "warmup": warmup, "lr": 1.0})
        return [optimization.rate(settings, step, 100) for step in range(100)]

    assert set(rates("constant")) == {1.0}
    assert rates("constant", 4)[:5] == [0.25, 0.5, 0.75, 1, 1]
    cosine = rates("cosine", 10)
    assert cosine[10] == 1
    assert cosine[55] == pytest.approx(0.5)
    assert 0 < cosine[99] < 1e-3
    one_cycle = rates("one-cycle")
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([torch.zeros(1)], 1.0), 1.0, total_steps=100, cycle_momentum=False
    )
    assert one_cycle[0] == pytest.approx(theirs.get_last_lr()[0])
    assert max(one_cycle) == one_cycle[30] == 1
    assert one_cycle[99] < 2e-3


def test_curves_in_tensorboard(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: Path, purge_step: int | None) -> None:
            assert folder == tmp_path / "tensorboard"

        def add_scalar(self, name: str, value: float, step: int) -> None:
            added.append((name, value, step))

        def flush(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type("module", (), {"SummaryWriter": Writer}))
    run("--max-steps", 3, "--tensorboard", "--output", tmp_path)
    assert ("accuracy/test", lines(tmp_path)[0]["test_accuracy"], 3) in added
    assert len(added) == 5


# How it goes on


VGG = ["--model", "vgg-a", "--batch-size", "64", "--max-steps", "30", "--threads", "1"]


@pytest.fixture(scope="module")
def undisturbed(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that could differ afterwards: dropout, batch normalization, augmentation, a schedule, moments."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert script.main([*VGG, "--checkpoint-every", "5", "--output", str(folder)]) == 0
    return folder


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_run_that_was_killed_ends_with_the_same_bits(
    run: Callable[..., str], undisturbed: Path, tmp_path: Path
) -> None:
    with start(*VGG, "--checkpoint-every", 5, "--output", tmp_path) as process:
        wait_for(tmp_path / "last.pt", process)
        process.kill()
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    step = checkpoint.load(tmp_path / "last.pt")["progress"]["step"]
    assert 0 < step < 23  # in the middle of the first epoch
    run("--resume", tmp_path / "last.pt", "--checkpoint-every", 5)
    assert_same_bits(tmp_path / "last.pt", undisturbed / "last.pt")
    assert_same_bits(tmp_path / "best.pt", undisturbed / "best.pt")
    assert without_seconds(tmp_path) == without_seconds(undisturbed)


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    with start("--epochs", 500, "--checkpoint-every", 3, "--output", tmp_path) as process:
        wait_for(tmp_path / "last.pt", process)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    step = checkpoint.load(tmp_path / "last.pt")["progress"]["step"]
    assert printed.splitlines()[-1] == f"stopped after {step} of 22500 steps; to go on: --resume {tmp_path / 'last.pt'}"
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_ran_out_of_time_goes_on(run: Callable[..., str], tmp_path: Path) -> None:
    short = ("--max-steps", 60, "--output", tmp_path)
    assert "stopped after 1 of 60 steps" in run(*short, "--seconds", 1e-9)
    assert "stopped after 2 of 60 steps" in run("--resume", "--output", tmp_path, "--seconds", 1e-9)
    assert "best test accuracy" in run("--resume", *short)
    assert [line["step"] for line in lines(tmp_path)] == [45, 60]
    assert "best test accuracy" in run("--resume", *short)  # there is nothing left to do
    assert [line["step"] for line in lines(tmp_path)] == [45, 60]
    run("--max-steps", 60, "--output", tmp_path / "other")
    for name, tensor in weights(tmp_path / "last.pt").items():
        assert torch.equal(tensor, weights(tmp_path / "other" / "last.pt")[name])


def test_metrics_after_the_checkpoint_are_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1, "step": 5}\n{"epoch": 2, "step": 10}\n{"epoch": 3, "st')
    metrics.Metrics(tmp_path, 5, tensorboard=False).add({"epoch": 2, "step": 10, "again": True})
    assert lines(tmp_path) == [{"epoch": 1, "step": 5}, {"epoch": 2, "step": 10, "again": True}]


# Two processes


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_reach_the_weights_of_one_with_the_joined_batch(run: Callable[..., str], tmp_path: Path) -> None:
    # 359 is odd, and leaves a last batch of one picture, of which one process has none.
    how = ["--optimizer", "sgd", "--lr", "0.1", "--batch-size", "359", "--max-steps", "10", "--shift", "1"]
    # Threads of the process group that live until Python is torn down can abort it; a process that hangs says where.
    script = tmp_path / "train_and_look.py"
    script.write_text(
        "import faulthandler, pathlib, sys\nfaulthandler.dump_traceback_later(180, exit=True)\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\nimport train\nassert train.main() == 0\n"
        "threads = [path.read_text() for path in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "assert not [name for name in threads if 'gloo' in name], threads\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    two, one = tmp_path / "two", tmp_path / "one"
    done = subprocess.run(
        [*torchrun, *how, "--output", str(two)], env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best test accuracy") == 1
    assert sorted(os.listdir(two)) == ["best.pt", "last.pt", "metrics.jsonl"]
    run(*how, "--output", one)
    initial = networks.build("modern-lenet5", 10, "none", "torchconv").state_dict()
    expected = weights(one / "last.pt")
    for name, tensor in weights(two / "last.pt").items():
        assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
        assert (tensor - initial[name]).abs().max() > 1e-2
    for ours, theirs in zip(lines(two), lines(one), strict=True):
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


# What is refused, and what stays


@pytest.fixture(scope="module")
def short_run(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    assert script.main(["--max-steps", "2", "--output", str(folder)]) == 0
    return folder


def test_a_checkpoint_of_another_run_is_refused(refusal: Callable[..., str], short_run: Path) -> None:
    last = short_run / "last.pt"
    assert "last.pt: was trained with --lr 0.005, not 0.1" in refusal("--resume", last, "--lr", 0.1)
    line = refusal("--resume", last, "--model", "vgg-a", "--seed", 4)
    assert "--model modern-lenet5, not vgg-a" in line
    assert "--seed 0, not 4" in line
    assert "--model modern-lenet5, not lenet5" in refusal("--evaluate", last, "--model", "lenet5")
    assert "none.pt: no such checkpoint" in refusal("--resume", short_run / "none.pt")
    assert "holds a run; expected --resume" in refusal("--output", short_run)


def test_a_checkpoint_of_other_pictures_is_refused(
    refusal: Callable[..., str], short_run: Path, tmp_path: Path
) -> None:
    state = checkpoint.load(short_run / "last.pt")
    state["data"]["checksum"] += 1
    checkpoint.save(tmp_path / "a.pt", state)
    assert "when it had other pictures or labels" in refusal("--resume", tmp_path / "a.pt")
    state["settings"]["data"] = "mnist"
    checkpoint.save(tmp_path / "a.pt", state)
    assert "was trained with --data mnist, not digits" in refusal("--resume", tmp_path / "a.pt", "--data", "digits")
    state["data"]["classes"].append("eleven")
    checkpoint.save(tmp_path / "a.pt", state)
    assert "tells 11 classes apart, --data digits has 10" in refusal(
        "--evaluate", tmp_path / "a.pt", "--data", "digits"
    )


def test_damaged_checkpoints_are_refused(refusal: Callable[..., str], short_run: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "a.pt", bytearray((short_run / "last.pt").read_bytes())
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert "a.pt: damaged, or not a checkpoint" in refusal("--resume", path)
    content[len(content) // 2] ^= 1  # in the weights
    path.write_bytes(content)
    assert "a.pt: damaged" in refusal("--resume", path)
    torch.save({"weight": torch.zeros(2)}, path)
    assert "expected a checkpoint of train.py" in refusal("--evaluate", path)
    assert "Is a directory" in refusal("--evaluate", tmp_path)


def test_a_full_disk_leaves_the_former_checkpoint(
    refusal: Callable[..., str], short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state = checkpoint.load(short_run / "last.pt")
    path = tmp_path / "last.pt"
    checkpoint.save(path, state)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        state["progress"]["step"] = 1
        with pytest.raises(
            OSError, match=r"last\.pt: can't be written: No space left on device; the file .* unchanged"
        ):
            checkpoint.save(path, state)
        line = refusal("--max-steps", 2, "--output", tmp_path / "other")
        assert "can't be written: No space left on device" in line
    assert path.read_bytes() == before
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_write_that_is_cut_off_leaves_the_former_files(
    refusal: Callable[..., str], short_run: Path, tmp_path: Path
) -> None:
    checkpoint.save(tmp_path / "last.pt", checkpoint.load(short_run / "last.pt"))
    written = metrics.Metrics(tmp_path, 2, tensorboard=False)
    written.add({"epoch": 1, "step": 2})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))
    try:
        with pytest.raises(OSError, match=r"last\.pt: can't be written: File too large"):
            checkpoint.save(tmp_path / "last.pt", checkpoint.load(short_run / "last.pt"))
        with pytest.raises(OSError, match=r"metrics\.jsonl: can't be written: File too large"):
            written.add({"epoch": 2, "step": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_loss_that_is_no_number_ends_the_run(refusal: Callable[..., str], tmp_path: Path) -> None:
    line = refusal("--optimizer", "sgd", "--lr", 1e30, "--max-steps", 20, "--output", tmp_path)
    assert re.search(r"the loss is (nan|inf) at step \d+: try a lower --lr", line)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "resnet"), "--model: invalid choice: 'resnet'"),
        (("--data", "nothing"), "--data nothing: expected digits, mnist"),
        (("--lr", "0"), "--lr: expected a number of more than 0, got '0'"),
        (("--lr", "nan"), "--lr: expected a number of more than 0, got 'nan'"),
        (("--momentum", "1"), "--momentum: expected a number of 0 or more and less than 1, got '1'"),
        (("--epochs", "0"), "--epochs: expected a whole number of 1 or more, got '0'"),
        (("--norm", "batch"), "--norm batch: expected none for modern-lenet5"),
        (("--warmup", "5"), "--warmup 5: expected 0 with --schedule one-cycle"),
        (("--model", "lenet5", "--label-smoothing", "0.1"), "--label-smoothing: expected 0 for lenet5"),
        (("--device", "gpu"), "--device gpu: can't be used"),
        (("--device", "meta"), "--device meta: expected cpu or cuda"),
        (("--resume", "--evaluate", "x.pt"), "--evaluate: expected without --resume"),
    ],
)
def test_options_that_cannot_be(
    refusal: Callable[..., str], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in refusal(*arguments, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_that_is_not_installed(
    refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install tensorboard" in refusal("--tensorboard", "--max-steps", 1, "--output", tmp_path)
