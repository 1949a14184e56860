"""Which algorithm computes convolutions: the context manager and the environment variable."""

import os
import subprocess
import sys

import pytest

from torchconv import ops


def test_algorithm_holds_inside_of_its_block_and_is_restored() -> None:
    before = ops.current_algorithm()
    with ops.algorithm("reference"):
        with ops.algorithm("im2col"):
            assert ops.current_algorithm() == "im2col"
        assert ops.current_algorithm() == "reference"
    assert ops.current_algorithm() == before
    with pytest.raises(KeyError), ops.algorithm("reference"):
        raise KeyError
    assert ops.current_algorithm() == before


def test_unknown_algorithm_is_an_error_and_changes_nothing() -> None:
    before = ops.current_algorithm()
    with pytest.raises(ValueError, match=r"^algorithm is 'fft', expected one of auto, im2col, winograd, reference$"):
        ops.algorithm("fft").__enter__()
    assert ops.current_algorithm() == before


@pytest.mark.parametrize(("value", "expected"), [("im2col", "im2col"), ("reference", "reference"), ("", "auto")])
def test_environment_variable_chooses(value: str, expected: str) -> None:
    done = in_new_process(value)
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


def test_environment_variable_with_a_wrong_name_is_an_error() -> None:
    done = in_new_process("fft")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ValueError: TORCHCONV_ALGORITHM is 'fft', expected one of auto, im2col, winograd, reference"
    )


def in_new_process(value: str) -> subprocess.CompletedProcess[str]:
    code = "from torchconv import ops; print(ops.current_algorithm())"
    environment = {**os.environ, "TORCHCONV_ALGORITHM": value}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
