"""The CUDA half, as far as a machine without a GPU can tell: the library that `make cuda` builds, finding a toolkit."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build" / "cuda"  # the Makefile's CUDA_BUILD
LIBRARY = BUILT / "torchconv" / "_C.so"
SETTINGS = {
    "TORCHCONV_BUILD",
    "FORCE_CUDA",
    "TORCH_CUDA_ARCH_LIST",
    "CUDA_PATH",
    "NVCC_APPEND_FLAGS",
    "CXX",
    "CC",
    "DEBUG",
}
SETTINGS |= {"TORCHCONV_SANITIZE", "TORCHCONV_EXTENSION"}

needs_built = pytest.mark.skipif(
    not LIBRARY.exists(),
    reason=f"no {LIBRARY.relative_to(ROOT)}: `make cuda` builds it"
    + ("" if shutil.which("nvcc") else ", but there is no nvcc on the PATH"),
)
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="no nm (binutils)")
needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf (binutils)")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


def output(*command: str | Path, fails: bool = False, cwd: Path = BUILT, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    result = subprocess.run(
        command,
        env=inherited | {"PYTHONPATH": str(cwd)} | environment,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert (result.returncode != 0) is fails, result.stdout
    assert result.returncode >= 0, f"killed by signal {-result.returncode}"
    return result.stdout


def in_built(code: str) -> str:
    """What a program prints that finds the library of `make cuda`."""
    start = "import torch, torchconv\nfrom torchconv import _extension\nassert _extension.LOADED, _extension.REASON\n"
    return output(sys.executable, "-c", start + textwrap.dedent(code))


# The library


@needs_built
def test_library_serves_the_cpu() -> None:
    printed = in_built("""
        layer, image = torchconv.Conv2d(3, 4, 3, padding=1), torch.rand(2, 3, 9, 8)
        expected = torch.nn.functional.conv2d(image, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(image), expected)
        print(_extension.LIBRARY, _extension.CUDA, _extension.CUDA_REASON)
    """)
    assert printed == f"{LIBRARY} True None\n"


@needs_built
def test_info_says_what_the_kernels_are_for() -> None:
    printed = output(sys.executable, "-m", "torchconv.info")
    assert re.search(r"^CUDA kernels: +CUDA \d+\.\d+, for \d+\.\d+[ .+0-9PTX]*$", printed, re.MULTILINE)
    if torch.version.cuda is None:
        assert re.search(rf"^GPU: +none: torch {re.escape(torch.__version__)} has no CUDA$", printed, re.MULTILINE)


@needs_built
def test_every_op_on_tensors_has_a_cuda_kernel_but_those_of_the_cpu_s_own_kernels() -> None:
    printed = in_built("""
        for name in torch._C._dispatch_get_all_op_names():
            if name.startswith("torchconv::"):
                arguments = getattr(torch.ops.torchconv, name.removeprefix("torchconv::")).default._schema.arguments
                if any(argument.type.kind() == "TensorType" for argument in arguments):
                    print(name, torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"))
    """)
    ops = dict(line.split() for line in printed.splitlines())
    assert "torchconv::conv" in ops
    of_the_cpu = {f"torchconv::{name}" for name in ("winograd_block", "winograd_block_input", "pack_weight")}
    assert {name for name, has_kernel in ops.items() if has_kernel != "True"} == of_the_cpu


@needs_built
@needs_nm
def test_cuda_half_needs_the_stable_abi_only() -> None:
    # The newest: other versions of torch and of CUDA leave theirs beside it.
    newest = max(ROOT.glob("build/temp.torch-*-cuda-*/csrc/cuda"), key=lambda folder: folder.stat().st_mtime)
    objects = sorted(newest.glob("*.o"))
    assert [each.stem for each in objects] == sorted(source.stem for source in ROOT.glob("csrc/cuda/*.cu"))
    for each in objects:
        assert unstable(output("nm", "-C", "--undefined-only", each)) == [], each
    needed = output("nm", "-D", "-C", "--undefined-only", LIBRARY)
    assert unstable(needed) == []
    # The runtime of CUDA is inside, and nobody else's calls end up there.
    assert re.findall(r"\b_*cuda[A-Z]\w*", needed + output("nm", "-D", "-C", "--defined-only", LIBRARY)) == []


def unstable(symbols: str) -> list[str]:
    """Torch's C++ among them."""
    return [line for line in symbols.splitlines() if re.search(r"\b(at|c10|torch)::", line)]


@needs_built
@needs_readelf
def test_library_links_to_nothing_of_cuda() -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", LIBRARY))
    assert "libtorch_cpu.so" in needed
    assert [name for name in needed if "cuda" in name] == []


@needs_built
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_tensors_beside_a_torch_without_cuda_are_torchs_own_error() -> None:
    printed = in_built("""
        for make in (lambda: torch.rand(1, 3, 8, 8, device="cuda"), lambda: torchconv.Conv2d(3, 4, 3).to("cuda")):
            try:
                make()
            except AssertionError as error:
                print(error)
    """)
    assert printed == "Torch not compiled with CUDA enabled\n" * 2


@needs_built
def test_cuda_kernels_turn_tensors_on_the_cpu_away() -> None:
    printed = in_built("""
        cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        calls = {
            "im2col": (torch.rand(1, 3, 8, 8), [3, 3], [1, 1], [0, 0], [1, 1]),
            "avg_pool": (torch.rand(1, 3, 8, 8), [2, 2], [2, 2], [0, 0], False, True, None, False),
        }
        for name, arguments in calls.items():
            try:
                getattr(torch.ops.torchconv, name).default.redispatch(cuda, *arguments)
            except RuntimeError as error:
                print(str(error).splitlines()[0])
    """)
    lines = printed.splitlines()
    assert len(lines) == 2
    assert all("input is not on a GPU" in line for line in lines), printed


# Finding a toolkit: with a small project in the place of torchconv's sources, a script in that of nvcc, and a torch
# that says what it would on other machines


NVCC = """#!/bin/sh
echo "$@" >> {home}/called
case "$*" in
  *--version*) echo "Cuda compilation tools, {release}"; exit ;;
  *--dryrun*) echo '#$ LIBRARIES=  "-L{home}/stubs" "-L{home}/lib"' >&2; exit ;;
esac
while [ "$1" != -o ]; do shift; done
echo 'int kernels;' | {compile} -fPIC -x c++ -c - -o "$2"
"""
STUB = """import torch
torch.version.cuda, torch.version.hip = {cuda!r}, None
torch.cuda.is_available = lambda: {gpu}
"""
SOURCES = ("csrc/common.h", "csrc/torchconv.cpp", "csrc/cuda/kernels.cu")
VERSION = torch.__version__


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What setup.py reads, which takes no time to compile."""
    folder = tmp_path / "project"
    for name in ("README.md", "LICENSE", "torchconv/__init__.py", *SOURCES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def toolkit(project: Path, release: str = "release 13.0, V13.0.88", compile: str = "c++") -> str:
    home = project.parent / "toolkit"
    for folder in ("bin", "lib"):
        (home / folder).mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(home=home, release=release, compile=compile))
    nvcc.chmod(0o755)
    (home / "lib" / "libcudart_static.a").write_bytes(b"!<arch>\n")
    return str(home)


def build(project: Path, cuda: str | None, gpu: bool, fails: bool = False, **environment: str) -> str:
    """What setup.py prints beside a torch for this version of CUDA."""
    (project / "sitecustomize.py").write_text(STUB.format(cuda=cuda, gpu=gpu))
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "built"]
    return output(*command, fails=fails, cwd=project, TORCH_DONT_CHECK_COMPILER_ABI="1", **environment)


def note(project: Path) -> str:
    """What the build leaves for CUDA_REASON, beside the compiled ops."""
    assert (project / "built" / "torchconv" / "_C.so").exists()
    return (project / "built" / "torchconv" / "_C.txt").read_text().rstrip("\n")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("cuda", "gpu", "reason"),
    [
        (None, False, f"built without FORCE_CUDA=1 beside torch {VERSION}, which is for the CPU alone"),
        ("13.0", False, f"built without FORCE_CUDA=1 beside torch {VERSION}, which found no GPU"),
        ("13.0", True, "there is no bin/nvcc in CUDA_HOME=/nonexistent"),
    ],
    ids=["torch without CUDA", "no GPU", "no nvcc"],
)
def test_what_is_missing_leaves_the_cuda_half_out(project: Path, cuda: str | None, gpu: bool, reason: str) -> None:
    printed = build(project, cuda, gpu, CUDA_HOME="/nonexistent", TORCHCONV_BUILD="1")
    assert f"torchconv: compiled the ops\ntorchconv: without CUDA kernels: {reason}\n" in printed
    assert note(project) == reason


@needs_compiler
@pytest.mark.slow
def test_toolkit_of_another_major_version_than_torch(project: Path) -> None:
    home = toolkit(project)
    reason = f"{home}/bin/nvcc is of CUDA 13.0, and torch {VERSION} of CUDA 12.8: expected the same major version"
    assert f"torchconv: without CUDA kernels: {reason}\n" in build(project, "12.8", gpu=True, CUDA_HOME=home)
    assert note(project) == reason
    printed = build(project, "12.8", gpu=True, fails=True, CUDA_HOME=home, FORCE_CUDA="1")
    remedy = "Set CUDA_HOME to a toolkit of CUDA 12, or install a torch for CUDA 13."
    assert printed.splitlines()[-1] == f"torchconv: FORCE_CUDA=1, but {reason}. {remedy}"


@pytest.mark.slow
def test_forced_without_a_toolkit_is_an_error_that_says_what_to_do(project: Path) -> None:
    printed = build(project, None, gpu=False, fails=True, CUDA_HOME="/nonexistent", FORCE_CUDA="1")
    assert printed.splitlines()[-1] == (
        "torchconv: FORCE_CUDA=1, but there is no bin/nvcc in CUDA_HOME=/nonexistent. "
        "Install the toolkit of CUDA, or set CUDA_HOME to where it is."
    )
    printed = build(project, "12.8", gpu=True, fails=True, CUDA_HOME="/nonexistent", FORCE_CUDA="1")
    assert "Install the toolkit of CUDA 12, or" in printed
    home = toolkit(project, release="nothing")
    printed = build(project, None, gpu=False, fails=True, CUDA_HOME=home, FORCE_CUDA="1")
    assert f"FORCE_CUDA=1, but {home}/bin/nvcc --version says no release, but 'Cuda compilation tools" in printed


@pytest.mark.slow
def test_toolkit_without_its_static_runtime(project: Path) -> None:
    home = toolkit(project)
    Path(home, "lib", "libcudart_static.a").unlink()
    printed = build(project, "13.0", gpu=True, fails=True, CUDA_HOME=home, FORCE_CUDA="1")
    assert f"there is no libcudart_static.a in nvcc's folders ({home}/stubs, {home}/lib)." in printed


@needs_compiler
@pytest.mark.slow
def test_a_gpu_and_its_toolkit_are_enough(project: Path) -> None:
    home = toolkit(project)
    printed = build(project, "13.1", gpu=True, CUDA_HOME=home)
    assert "torchconv: with CUDA kernels: CUDA 13.0, for 7.5 8.0 8.6 8.9 9.0+PTX\n" in printed
    assert note(project) == "CUDA 13.0, for 7.5 8.0 8.6 8.9 9.0+PTX"
    called = Path(home, "called").read_text()
    for architecture in ("75,code=sm_75", "80,code=sm_80", "90,code=sm_90", "90,code=compute_90"):
        assert f"-gencode=arch=compute_{architecture}" in called

    # The same tree for the CPU alone: neither these objects nor what was said of them.
    assert "without CUDA kernels: FORCE_CUDA=0 when" in build(project, "13.1", gpu=True, CUDA_HOME=home, FORCE_CUDA="0")
    assert note(project) == "FORCE_CUDA=0 when torchconv was built"
    with_cuda, without = sorted((project / "build").glob("temp.*"), key=lambda folder: "cuda" not in folder.name)
    assert {each.name for each in with_cuda.rglob("*.o")} == {"torchconv.o", "kernels.o"}
    assert {each.name for each in without.rglob("*.o")} == {"torchconv.o"}


@needs_compiler
@pytest.mark.slow
def test_cuda_sources_that_do_not_compile(project: Path) -> None:
    home = toolkit(project, compile="false")
    printed = build(project, "13.0", gpu=True, CUDA_HOME=home)
    assert "without CUDA kernels: compiling them failed; FORCE_CUDA=1 makes that an error" in printed
    assert note(project).startswith("compiling them failed")
    printed = build(project, "13.0", gpu=True, fails=True, CUDA_HOME=home, FORCE_CUDA="1")
    assert "torchconv: FORCE_CUDA=1, but compiling failed" in printed
