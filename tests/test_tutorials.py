"""The tutorials run as scripts, in a short form, and what they say of their numbers holds."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

TUTORIALS = Path(__file__).parent.parent / "examples" / "tutorials"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a tutorial with other values for its constants, draws its figures, and gives its names."""

    def run(name: str, **constants: int) -> dict[str, Any]:
        path = TUTORIALS / f"{name}.py"
        source = path.read_text(encoding="utf-8")
        for constant, value in constants.items():
            source, count = re.subn(rf"^{constant} = \d+$", f"{constant} = {value}", source, flags=re.MULTILINE)
            assert count == 1, constant
        monkeypatch.setattr(sys, "argv", [str(path)])
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source, path, "exec"), names)
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        return names

    threads, backend = torch.get_num_threads(), plt.get_backend()
    torch.set_num_threads(1)
    plt.switch_backend("agg")
    yield run
    plt.close("all")
    plt.switch_backend(backend)
    torch.set_num_threads(threads)


def test_edges_by_hand(run: Run) -> None:
    names = run("plot_1_edges_by_hand")
    assert names["response"].tolist() == [[0, 30, 30, 0]] * 4
    assert names["mirrored"].tolist() == [[0, -30, -30, 0]] * 4
    assert not names["horizontal"].any()
    assert names["strength"].shape == (427, 640)


def test_im2col(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("plot_2_im2col")
    printed = capsys.readouterr().out
    assert "(1, 3, 7, 7) -> (1, 75, 9), as rows (9, 75)\n" in printed
    assert "(10, 3, 7, 7) -> (10, 75, 9), as rows (90, 75)\n" in printed
    assert names["seen"][0].tolist() == [1, 2, 3, 3, 3, 2, 1]
    assert names["seen"].max() == 9


def test_pooling_padding_stride(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("plot_3_pooling_padding_stride")
    printed = capsys.readouterr().out
    assert "stride 5, valid: 2 positions" in printed
    assert "stride 5, same: 3 positions" in printed
    assert "(1, 1, 2) (1, 1, 3)\n" in printed
    assert "equal to the pooled map moved by one: True\n" in printed
    for shift in (1, 4):
        changes = [names["change"][name][shift] for name in ("edges", *(f"max_pool2d({n})" for n in (2, 4, 8)))]
        assert changes == sorted(changes, reverse=True)


def test_small_filters(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("plot_4_small_filters", EDGE_STEPS=60, DIGIT_STEPS=40, PICTURE_STEPS=3, VIEWS=6)
    printed = capsys.readouterr().out
    for line in ("5×5 +25 C² weights, sees 5×5", r"3×3 \+ 3×3 +18 C² weights, sees 5×5", r"3×3 .* 27 .* sees 7×7"):
        assert re.search(line, printed), line
    assert "rows 2 to 8, columns 2 to 8\n" in printed  # 7×7
    assert "relu4_2 (84, 84)\n" in printed
    assert "relu5_1 (156, 156)\n" in printed
    unexplained = [int(percent) for percent in re.findall(r"leaves (\d+)% of the variance unexplained", printed)]
    assert unexplained[2] < min(unexplained[:2])
    (right,) = re.findall(r"(\S+)% of 297 unseen digits are right", printed)
    assert float(right) > 50
    china, flower = (int(percent) for percent in re.findall(r"(\d+)% of the map on the left half", printed))
    assert china > 70
    assert flower < 30
    assert not torch.equal(names["small_alexnet"][0].weight, names["untrained"][0].weight)


def test_gram_matrix(run: Run) -> None:
    names = run("plot_5_gram_matrix", EVALUATIONS=4)
    distances = names["distances"]
    layer = names["STYLE_LAYERS"].index("relu4_1")
    by_gram = {name: distances["Gram matrices", name][layer] for name in names["others"]}
    assert min(by_gram, key=lambda name: by_gram[name]) == "other cobbles"
    assert names["painted"].last.loss < names["painted"].first.loss / 2


def test_tutorial_runs_as_a_script_from_any_folder(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, TUTORIALS / "plot_3_pooling_padding_stride.py"],
        env=os.environ | {"MPLBACKEND": "agg"}, cwd=tmp_path, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "stride 5, same: 3 positions" in result.stdout
