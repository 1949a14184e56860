"""Builds torchconv/_C.so, the compiled ops, against LibTorch's stable ABI.

TORCHCONV_BUILD=auto  (default) compile; when that can't be done, say why and install pure Python
TORCHCONV_BUILD=1     compile; a failure is an error
TORCHCONV_BUILD=0     do not compile
FORCE_CUDA=auto       (default) compile the CUDA kernels where torch finds a GPU and there is nvcc; else say why not
FORCE_CUDA=1          compile them, GPU or not; a failure is an error
FORCE_CUDA=0          leave them out
TORCH_CUDA_ARCH_LIST  what to compile them for, "7.5;8.0;8.6;8.9;9.0+PTX" by default
CUDA_HOME             where the CUDA toolkit is; without it: that of the nvcc on the PATH, then /usr/local/cuda
CXX                   the C++ compiler, nvcc's host compiler as well
MAX_JOBS=N            compile at most N files at a time
DEBUG=1               -O0 -g instead of -O3
TORCHCONV_SANITIZE=1  with AddressSanitizer and UndefinedBehaviorSanitizer; `make sanitize` knows how to load that

The library holds no Python symbol: one wheel serves every Python, and every torch from 2.10 on. With CUDA
kernels in it, it loads all the same where there is neither GPU nor driver, and beside a torch without CUDA.
"""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

TORCH_TARGET = "0x020a000000000000"  # torch 2.10: the oldest that the binary runs on
SOURCES = ["csrc/torchconv.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
CUDA_SOURCES = sorted(map(str, Path("csrc/cuda").glob("*.cu")))
HEADERS = sorted(map(str, Path("csrc").rglob("*.h")))
CUDA_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0+PTX"  # Turing to Hopper; what comes later compiles the PTX


def choice(variable: str, *values: str) -> str:
    """The value of an environment variable, the first of `values` when it is unset or empty."""
    value = os.environ.get(variable) or values[0]
    if value not in values:
        raise SystemExit(f"{variable}={value!r}: expected one of {', '.join(values)}")
    return value


MODE = choice("TORCHCONV_BUILD", "auto", "0", "1")
CUDA = choice("FORCE_CUDA", "auto", "0", "1")
DEBUG = choice("DEBUG", "0", "1") == "1"
SANITIZE = choice("TORCHCONV_SANITIZE", "0", "1") == "1"
KIND = " with sanitizers" if SANITIZE else " for debugging" if DEBUG else ""
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if SANITIZE else []
if (jobs := os.environ.get("MAX_JOBS") or "1").strip("0123456789") or int(jobs) < 1:
    raise SystemExit(f"MAX_JOBS={jobs!r}: expected a positive integer")
if CUDA == "1":
    if MODE == "0":
        raise SystemExit("FORCE_CUDA=1 with TORCHCONV_BUILD=0: expected one of them alone")
    MODE = "1"


class NoCuda(Exception):
    """Why the CUDA kernels are left out, in one line, and what to do about it."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass
class Toolkit:
    """A CUDA toolkit: where it is, its version, the folder of its runtime as a static library, what to compile for."""

    home: Path
    version: str
    libraries: str
    architectures: str

    def __str__(self) -> str:
        return f"CUDA {self.version}, for {self.architectures.replace(';', ' ')}"


def find_nvcc(major: str) -> Path:
    """The nvcc that torch's BuildExtension would take; `major` is what it should be of, where that is known."""
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        where, found = f"bin/nvcc in CUDA_HOME={home}", shutil.which("nvcc", path=f"{home}/bin")
    else:
        where = "nvcc on the PATH or in /usr/local/cuda/bin, and CUDA_HOME is not set"
        found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise NoCuda(
            f"there is no {where}",
            f"Install the toolkit of CUDA{major and f' {major}'}, or set CUDA_HOME to where it is.",
        )
    return Path(found)


def find_toolkit() -> Toolkit:
    """The toolkit to compile the CUDA kernels with; NoCuda where they are unwanted, or none fits torch."""
    import torch

    ours = f"torch {torch.__version__}"
    if CUDA == "0":
        raise NoCuda("FORCE_CUDA=0 when torchconv was built")
    if SANITIZE:
        raise NoCuda("the sanitizers are g++'s, not nvcc's", "Unset TORCHCONV_SANITIZE.")
    if torch.version.hip is not None:
        raise NoCuda(f"{ours} is for ROCm, and torchconv has no kernels for that", "Install a torch for CUDA.")
    if CUDA == "auto" and not torch.cuda.is_available():
        found = "is for the CPU alone" if torch.version.cuda is None else "found no GPU"
        raise NoCuda(f"built without FORCE_CUDA=1 beside {ours}, which {found}")

    major = torch.version.cuda.split(".")[0] if torch.version.cuda else ""
    nvcc = find_nvcc(major)
    about = subprocess.run([nvcc, "--version"], text=True, capture_output=True, check=False)
    release = re.search(r"release (\d+)\.(\d+)", about.stdout)
    if release is None:
        said = " ".join((about.stdout + about.stderr).split())
        raise NoCuda(f"{nvcc} --version says no release, but {said!r}", "Set CUDA_HOME to a CUDA toolkit that works.")
    version = f"{release[1]}.{release[2]}"
    if major not in ("", release[1]):
        raise NoCuda(
            f"{nvcc} is of CUDA {version}, and {ours} of CUDA {torch.version.cuda}: expected the same major version",
            f"Set CUDA_HOME to a toolkit of CUDA {major}, or install a torch for CUDA {release[1]}.",
        )
    # nvcc knows its folders, which every way of installing it puts elsewhere.
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], text=True, capture_output=True, check=False)
    folders = re.findall(r'"-L([^"]+)"', dry.stdout + dry.stderr)
    for folder in folders:
        if Path(folder, "libcudart_static.a").exists():
            architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
            return Toolkit(nvcc.parents[1], version, folder, architectures)
    raise NoCuda(
        f"there is no libcudart_static.a in nvcc's folders ({', '.join(folders) or 'none'})",
        "Install the development files of CUDA's runtime (cuda-cudart-dev).",
    )


def extension(toolkit: Toolkit | None) -> Extension:
    """What to compile, with the CUDA kernels where there is a toolkit."""
    from torch.utils.cpp_extension import include_paths, library_paths

    # Loops that copy short runs would become calls of memmove.
    fast = (
        ["-O1", "-g1", "-fno-omit-frame-pointer"] if SANITIZE else ["-O3", "-g0", "-fno-tree-loop-distribute-patterns"]
    )
    optimize = SANITIZERS + (["-O0", "-g"] if DEBUG else [*fast, "-fno-math-errno", "-ffp-contract=fast"])
    system = [f"-isystem{path}" for path in include_paths()]  # warnings are about our files, not torch's
    nvcc = ["-std=c++17", *(["-O0", "-g", "-G"] if DEBUG else ["-O3"]), "-DUSE_CUDA"]
    nvcc += ["-Xcompiler", "-fvisibility=hidden,-Wall,-Wextra", *(f"-isystem={path}" for path in include_paths())]
    if host := shutil.which(os.environ.get("CXX") or ""):
        nvcc += ["-ccbin", host]
    # The runtime is linked statically: nothing of CUDA has to be there when the library is loaded.
    runtime = ["cudart_static", "dl", "rt", "pthread"] if toolkit else []
    return Extension(
        "torchconv._C",
        SOURCES + (CUDA_SOURCES if toolkit else []),
        depends=HEADERS,
        include_dirs=[os.path.abspath("csrc")],
        library_dirs=library_paths() + ([toolkit.libraries] if toolkit else []),
        libraries=["torch_cpu", *runtime],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        extra_compile_args={
            "cxx": ["-std=c++17", *optimize, "-fvisibility=hidden", "-Wall", "-Wextra", *system],
            "nvcc": nvcc,
        },
        # -z defs: a symbol that torch doesn't have fails here, not on the user's machine
        extra_link_args=["-Wl,-z,defs", *SANITIZERS] + ([] if DEBUG or SANITIZE else ["-Wl,--strip-all"]),
        language="c++",
    )


class BuildOps(build_ext):
    """Compile the ops, or leave the reason why not in torchconv/_C.txt. Beside _C.so that tells of its CUDA kernels."""

    def run(self) -> None:
        package = Path(self.build_lib, "torchconv")
        package.mkdir(parents=True, exist_ok=True)
        folders = [package, Path("torchconv")] if self.inplace else [package]
        for folder in folders:
            for stale in ("_C.so", "_C.txt"):
                Path(folder, stale).unlink(missing_ok=True)

        reason = self.compile() if MODE != "0" else "TORCHCONV_BUILD=0 when torchconv was built"
        if reason is None:
            print(f"torchconv: compiled the ops{KIND}", flush=True)
            print(f"torchconv: with{'' if self.cuda else 'out'} CUDA kernels: {self.cuda or self.no_cuda}", flush=True)
        elif MODE == "1":
            raise SystemExit(f"torchconv: {'FORCE_CUDA' if CUDA == '1' else 'TORCHCONV_BUILD'}=1, but {reason}")
        else:
            self.distribution.ext_modules = []  # what follows sees a pure Python project
            print(f"torchconv: pure Python, without compiled ops: {reason}", flush=True)
        Path(package, "_C.txt").write_text(f"{reason or self.cuda or self.no_cuda}\n")
        if self.inplace:
            for built in package.glob("_C.*"):
                shutil.copy2(built, "torchconv")

    def compile(self) -> str | None:
        """Compile into build_lib; the reason, in one line, when that failed."""
        compiler = shlex.split(os.environ.get("CXX") or "c++")[0]
        if shutil.which(compiler) is None:
            return f"no C++ compiler: {compiler!r} is not an executable (set CXX)"
        try:
            import torch.utils.cpp_extension  # noqa: F401
        except Exception as error:
            return f"no torch in the build environment ({error}); install torch, then pip with --no-build-isolation"

        self.cuda, self.no_cuda = None, ""
        try:
            self.cuda = find_toolkit()
        except NoCuda as no:
            if CUDA == "1":
                raise SystemExit(f"torchconv: FORCE_CUDA=1, but {no}. {no.remedy}") from None
            self.no_cuda = str(no)
        failed = self.build()
        if failed and self.cuda and MODE == "auto":
            self.cuda, self.no_cuda = None, "compiling them failed; FORCE_CUDA=1 makes that an error"
            failed = self.build()
        return failed

    def build(self) -> str | None:
        """Compile, with the CUDA kernels where `self.cuda` is a toolkit; the reason when that failed."""
        import torch
        from torch.utils import cpp_extension

        self.distribution.ext_modules = [extension(self.cuda)]
        # Kept between builds, so that ninja compiles again only what changed.
        temporary = f"temp.torch-{torch.__version__}{'-sanitize' * SANITIZE}"
        if self.cuda:
            temporary += f"-cuda-{self.cuda.version}"
            # BuildExtension looks for neither where torch is for the CPU alone.
            cpp_extension.CUDA_HOME = str(self.cuda.home)
            os.environ["TORCH_CUDA_ARCH_LIST"] = self.cuda.architectures
        try:
            command = cpp_extension.BuildExtension(self.distribution, no_python_abi_suffix=True)
            command.build_lib = self.build_lib
            command.build_temp = os.path.join("build", temporary)
            if torch.version.cuda is None:
                forget_old_objects(command.build_temp)
            command.ensure_finalized()
            command.run()
        except Exception as error:
            print(f"torchconv: {error}", flush=True)
            return "compiling failed; TORCHCONV_BUILD=1 makes pip show the compiler's messages"
        return None

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"


def forget_old_objects(folder: str) -> None:
    """Remove CUDA objects older than a header, of which BuildExtension tells ninja only in a torch with CUDA."""
    changed = max(Path(header).stat().st_mtime for header in HEADERS)
    for built in Path(folder, "csrc", "cuda").glob("*.o"):
        if built.stat().st_mtime < changed:
            built.unlink()


class Wheel(bdist_wheel):
    """Tag the wheel py3-none-PLATFORM with the compiled ops in it, py3-none-any without."""

    def run(self) -> None:
        # Nothing that an earlier build left behind goes into the wheel.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        # Only after the build is it known whether there are compiled ops.
        self.run_command("build")
        self.skip_build = True
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(ext_modules=[Extension("torchconv._C", SOURCES)], cmdclass={"build_ext": BuildOps, "bdist_wheel": Wheel})
