"""The page that says what each operator can do says what a run finds."""

import subprocess
import sys
from pathlib import Path

import pytest
from grid import compiled_only

SCRIPT = Path(__file__).parents[1] / "docs" / "operator_table.py"


@pytest.mark.exhaustive
@pytest.mark.slow
@compiled_only  # the page is the compiled library's
def test_the_table_of_operators_is_what_a_run_fills_in() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
