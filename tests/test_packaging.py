"""Building and installing: the compiled wheel, the pure one, and what is said when there is no compiler."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from torchconv import _extension

ROOT = Path(__file__).parents[1]
needs_compiled = pytest.mark.skipif(not _extension.LOADED, reason=f"no compiled ops: {_extension.REASON}")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="no nm (binutils)")
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler")

USE = """
import torch, torchconv
layer, image = torchconv.Conv2d(3, 4, 3, padding=1), torch.rand(2, 3, 9, 8)
torch.testing.assert_close(layer(image), torch.nn.functional.conv2d(image, layer.weight, layer.bias, padding=1))
assert torchconv.__file__.startswith({prefix!r}), torchconv.__file__
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources, without anything that was built from them."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / file, copy)
    built = shutil.ignore_patterns("_C.*", "__pycache__")
    for folder in ("torchconv", "csrc"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=built)
    return copy


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A fresh environment that shares torch with this one, but not torchconv."""
    folder = tmp_path / "environment"
    venv.create(folder)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    for shared in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(shared).iterdir():
            if "torchconv" not in entry.name:
                (site / entry.name).symlink_to(entry)
    return python


def pip(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    unset = {"TORCHCONV_BUILD", "TORCHCONV_EXTENSION", "FORCE_CUDA", "DEBUG", "PYTHONPATH"}
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, env=inherited | environment, text=True, capture_output=True, check=False)


def wheel(tree: Path, **environment: str) -> tuple[Path, str]:
    """Build the wheel; it and what the build printed."""
    out = tree.parent / "wheels"
    shutil.rmtree(out, ignore_errors=True)
    result = pip("wheel", "-v", "--no-build-isolation", "--no-deps", "--no-index", "-w", out, tree, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = out.glob("*.whl")
    return built, result.stdout + result.stderr


def failed_wheel(tree: Path, **environment: str) -> str:
    """What the build printed, which must fail."""
    result = pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", tree, tree, **environment)
    assert result.returncode != 0
    return result.stdout + result.stderr


def run(python: Path, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [python, *arguments],
        env=os.environ | environment,
        cwd=python.parent,
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def install_and_use(python: Path, built: Path) -> str:
    """Install a wheel, use a layer, and return what `python -m torchconv.info` prints."""
    result = pip("--python", python, "install", "--no-deps", "--no-index", built)
    assert result.returncode == 0, result.stdout + result.stderr
    run(python, "-c", USE.format(prefix=str(python.parents[1])), PYTHONPATH="")
    return run(python, "-m", "torchconv.info", PYTHONPATH="")


def assert_stable_abi(library: Path) -> None:
    """No C++ symbol of torch and none of Python is needed: only torch's C interface, which stays."""
    symbols = subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", library], text=True, capture_output=True, check=True
    ).stdout.splitlines()
    assert [line for line in symbols if re.search(r"\b(at|c10|torch)::", line)] == []
    assert [line for line in symbols if re.search(r"\b_?Py", line)] == []
    assert any("aoti_torch_" in line for line in symbols)


# With a compiler


@needs_compiled
@needs_nm
def test_installed_library_needs_the_stable_abi_only() -> None:
    assert_stable_abi(_extension.LIBRARY)


@needs_compiled
@needs_compiler
@needs_nm
@pytest.mark.slow
def test_compiled_wheel(tree: Path, python: Path) -> None:
    built, output = wheel(tree, TORCHCONV_BUILD="1", FORCE_CUDA="0")
    assert re.fullmatch(r"torchconv-[0-9.]+-py3-none-linux_\w+\.whl", built.name)
    assert "torchconv: compiled the ops" in output
    with zipfile.ZipFile(built) as content:
        names = content.namelist()
        assert "torchconv/_C.so" in names
        assert "torchconv/_C.txt" in names  # about the CUDA kernels
        assert "torchconv/py.typed" in names
        assert {name.split("/")[0].split("-")[0] for name in names} == {"torchconv"}
        assert_stable_abi(Path(content.extract("torchconv/_C.so", tree.parent)))
    info = install_and_use(python, built)
    assert re.search(r"^compiled ops: +loaded from ", info, re.MULTILINE)
    assert re.search(r"^CUDA kernels: +no: FORCE_CUDA=0 when torchconv was built$", info, re.MULTILINE)

    # The same tree, with all that this build left in it, built as pure Python.
    built, _ = wheel(tree, TORCHCONV_BUILD="0")
    assert built.name.endswith("-py3-none-any.whl")
    assert "torchconv/_C.so" not in zipfile.ZipFile(built).namelist()


@needs_compiler
@pytest.mark.slow
def test_sources_that_do_not_compile(tree: Path) -> None:
    shutil.rmtree(tree / "csrc" / "cpu")
    (tree / "csrc" / "torchconv.cpp").write_text("#error broken on purpose\n")
    built, output = wheel(tree)
    assert built.name.endswith("-py3-none-any.whl")
    assert "broken on purpose" in output
    assert "pure Python, without compiled ops: compiling failed" in output
    output = failed_wheel(tree, TORCHCONV_BUILD="1")
    assert "broken on purpose" in output
    assert "TORCHCONV_BUILD=1, but compiling failed" in output


# Without one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"TORCHCONV_BUILD": "0"}, "TORCHCONV_BUILD=0 when torchconv was built"),
        ({"CXX": "/nonexistent"}, "no C++ compiler: '/nonexistent' is not an executable (set CXX)"),
    ],
    ids=["switched off", "no compiler"],
)
def test_pure_wheel(tree: Path, python: Path, environment: dict[str, str], reason: str) -> None:
    for stale in (tree / "torchconv", *(tree / "build" / name / "torchconv" for name in ("lib", "lib.linux-x86_64"))):
        stale.mkdir(parents=True, exist_ok=True)
        (stale / "_C.so").write_bytes(b"from an earlier build")

    built, output = wheel(tree, **environment)
    assert built.name.endswith("-py3-none-any.whl")
    assert f"torchconv: pure Python, without compiled ops: {reason}" in output
    with zipfile.ZipFile(built) as content:
        assert "torchconv/_C.so" not in content.namelist()
        assert not any(".data/" in name for name in content.namelist())
    assert re.search(rf"^compiled ops: +no: {re.escape(reason)}$", install_and_use(python, built), re.MULTILINE)


@pytest.mark.slow
def test_build_without_torch_says_how_to_have_it(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    built, output = wheel(tree, PYTHONPATH=str(tmp_path / "hidden"), CXX=sys.executable)
    assert built.name.endswith("-py3-none-any.whl")
    assert "no torch in the build environment (No module named 'torch')" in output
    assert "--no-build-isolation" in output


@pytest.mark.slow
def test_failure_is_an_error_on_demand(tree: Path) -> None:
    output = failed_wheel(tree, TORCHCONV_BUILD="1", CXX="/nonexistent")
    assert "torchconv: TORCHCONV_BUILD=1, but no C++ compiler: '/nonexistent'" in output


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TORCHCONV_BUILD", "yes", "one of auto, 0, 1"),
        ("FORCE_CUDA", "yes", "one of auto, 0, 1"),
        ("DEBUG", "2", "one of 0, 1"),
        ("MAX_JOBS", "0", "a positive integer"),
        ("MAX_JOBS", "many", "a positive integer"),
    ],
)
def test_invalid_setting(variable: str, value: str, expected: str) -> None:
    assert refused(**{variable: value}) == f"{variable}={value!r}: expected {expected}\n"


def test_contradictory_settings() -> None:
    message = "FORCE_CUDA=1 with TORCHCONV_BUILD=0: expected one of them alone\n"
    assert refused(FORCE_CUDA="1", TORCHCONV_BUILD="0") == message


def refused(**environment: str) -> str:
    """What setup.py says, which must fail."""
    result = subprocess.run(
        [sys.executable, ROOT / "setup.py", "--version"],
        env=os.environ | environment,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.returncode != 0
    return result.stderr


# Loading


def test_reason_when_nothing_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "_C.so"
    monkeypatch.setattr(_extension, "LIBRARY", library)
    monkeypatch.delenv("TORCHCONV_EXTENSION", raising=False)
    assert _extension.load() == f"not built: no {library}"
    library.with_suffix(".txt").write_text("no C++ compiler\n")
    assert _extension.load() == "no C++ compiler"


def test_reason_when_the_library_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "_C.so"
    library.write_bytes(b"not a library")
    monkeypatch.setattr(_extension, "LIBRARY", library)
    monkeypatch.delenv("TORCHCONV_EXTENSION", raising=False)
    reason = _extension.load()
    assert reason is not None
    assert reason.startswith(f"{library} does not load: ")
    assert "\n" not in reason

    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert _extension.load() == "torch 2.9.1+cpu is too old: the compiled ops need 2.10 or later"


@needs_compiled
def test_reason_when_there_are_no_cuda_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: False)
    monkeypatch.setattr(_extension, "LIBRARY", tmp_path / "_C.so")
    assert _extension.no_cuda() == "built without"
    (tmp_path / "_C.txt").write_text("FORCE_CUDA=0 when torchconv was built\n")
    assert _extension.no_cuda() == "FORCE_CUDA=0 when torchconv was built"
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: key == "CUDA")
    assert _extension.no_cuda() is None
    monkeypatch.setattr(_extension, "REASON", "no C++ compiler")
    assert _extension.no_cuda() == "no C++ compiler"


def test_compiled_ops_can_be_switched_off() -> None:
    printed = run(Path(sys.executable), "-m", "torchconv.info", TORCHCONV_EXTENSION="0")
    for kernels in ("compiled ops", "CUDA kernels"):
        assert re.search(rf"^{kernels}: +no: switched off by TORCHCONV_EXTENSION=0$", printed, re.MULTILINE)
    assert f"torch:           {torch.__version__}\n" in printed


def test_import_prints_nothing() -> None:
    assert run(Path(sys.executable), "-W", "error", "-c", "import torchconv") == ""
