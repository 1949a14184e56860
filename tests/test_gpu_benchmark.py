"""benchmarks/gpu.py and gpu_page.py, tried on the CPU: every part is measured, and finds its place on the page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def filled(page: Path, figures: Path) -> str:
    page.write_text((ROOT / "docs" / "gpu.md").read_text())
    done = run("gpu_page.py", "--figures", figures, "--page", page)
    assert done.returncode == 0, done.stderr
    return page.read_text()


@pytest.mark.slow
def test_a_trial_measures_every_part_and_fills_the_page(tmp_path: Path) -> None:
    figures = tmp_path / "gpu.json"
    done = run("gpu.py", "--device", "cpu", "--json", figures)
    assert done.returncode == 0, done.stderr
    file = json.loads(figures.read_text())
    assert {e["part"] for e in file["entries"]} == {"copy", "layers", "poolings", "style", "training"}
    for entry in file["entries"][1:]:
        assert {"torch nhwc", "torchconv nhwc"} <= set(entry["seconds"])
        assert entry["differs"] < (0.05 if entry["precision"] == "bfloat16" else 1e-3)
        assert bool(entry["bandwidth"]) == (entry["part"] == "poolings")
    text = filled(tmp_path / "gpu.md", figures)
    assert text.count("| max_pool2d 2 |") > 0
    assert "| resnet18 | 2×3×64×64 | bfloat16 |" in text
    resumed = run("gpu.py", "--device", "cpu", "--json", figures, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads(figures.read_text())["entries"]) == len(file["entries"])


def test_the_page_of_no_figures_says_so(tmp_path: Path) -> None:
    text = filled(tmp_path / "gpu.md", tmp_path / "none.json")
    assert "No GPU could be had yet" in text
    assert text.count("Not measured yet.") == 4
    assert "| **no** |" not in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_found() -> None:
    done = run("gpu.py")
    assert done.returncode == 1
    assert f"torch {torch.__version__} sees no GPU" in done.stdout
