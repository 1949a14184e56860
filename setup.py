"""Builds torchconv/_C.so, the compiled ops, against LibTorch's stable ABI.

TORCHCONV_BUILD=auto  (default) compile; when that can't be done, say why and install pure Python
TORCHCONV_BUILD=1     compile; a failure is an error
TORCHCONV_BUILD=0     do not compile
MAX_JOBS=N            compile at most N files at a time
DEBUG=1               -O0 -g instead of -O3
TORCHCONV_SANITIZE=1  with AddressSanitizer and UndefinedBehaviorSanitizer; `make sanitize` knows how to load that

The library holds no Python symbol: one wheel serves every Python, and every torch from 2.10 on.
"""

import os
import shlex
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

TORCH_TARGET = "0x020a000000000000"  # torch 2.10: the oldest that the binary runs on
SOURCES = ["csrc/torchconv.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
HEADERS = sorted(map(str, Path("csrc").rglob("*.h")))


def choice(variable: str, *values: str) -> str:
    """The value of an environment variable, the first of `values` when it is unset or empty."""
    value = os.environ.get(variable) or values[0]
    if value not in values:
        raise SystemExit(f"{variable}={value!r}: expected one of {', '.join(values)}")
    return value


MODE = choice("TORCHCONV_BUILD", "auto", "0", "1")
DEBUG = choice("DEBUG", "0", "1") == "1"
SANITIZE = choice("TORCHCONV_SANITIZE", "0", "1") == "1"
KIND = " with sanitizers" if SANITIZE else " for debugging" if DEBUG else ""
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if SANITIZE else []
if (jobs := os.environ.get("MAX_JOBS") or "1").strip("0123456789") or int(jobs) < 1:
    raise SystemExit(f"MAX_JOBS={jobs!r}: expected a positive integer")


class BuildOps(build_ext):
    """Compile the ops, or leave torchconv/_C.txt in their place with the reason why not."""

    def run(self) -> None:
        package = Path(self.build_lib, "torchconv")
        package.mkdir(parents=True, exist_ok=True)
        for folder in [package, "torchconv"] if self.inplace else [package]:
            for stale in ("_C.so", "_C.txt"):
                Path(folder, stale).unlink(missing_ok=True)

        reason = self.compile() if MODE != "0" else "TORCHCONV_BUILD=0 when torchconv was built"
        if reason is None:
            built = package / "_C.so"
            print(f"torchconv: compiled the ops{KIND}", flush=True)
        elif MODE == "1":
            raise SystemExit(f"torchconv: TORCHCONV_BUILD=1, but {reason}")
        else:
            built = package / "_C.txt"
            built.write_text(reason + "\n")
            self.distribution.ext_modules = []  # what follows sees a pure Python project
            print(f"torchconv: pure Python, without compiled ops: {reason}", flush=True)
        if self.inplace:
            shutil.copy2(built, "torchconv")

    def compile(self) -> str | None:
        """Compile into build_lib; the reason, in one line, when that failed."""
        compiler = shlex.split(os.environ.get("CXX") or "c++")[0]
        if shutil.which(compiler) is None:
            return f"no C++ compiler: {compiler!r} is not an executable (set CXX)"
        try:
            import torch
            from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
        except Exception as error:
            return f"no torch in the build environment ({error}); install torch, then pip with --no-build-isolation"

        fast = ["-O1", "-g", "-fno-omit-frame-pointer"] if SANITIZE else ["-O3", "-g0"]
        optimize = SANITIZERS + (["-O0", "-g"] if DEBUG else [*fast, "-fno-math-errno", "-ffp-contract=fast"])
        system = [f"-isystem{path}" for path in include_paths()]  # warnings are about our files, not torch's
        self.distribution.ext_modules = [
            Extension(
                "torchconv._C",
                SOURCES,
                depends=HEADERS,
                include_dirs=[os.path.abspath("csrc")],
                library_dirs=library_paths(),
                libraries=["torch_cpu"],
                define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
                extra_compile_args=["-std=c++17", *optimize, "-fvisibility=hidden", "-Wall", "-Wextra", *system],
                # -z defs: a symbol that torch doesn't have fails here, not on the user's machine
                extra_link_args=["-Wl,-z,defs", *SANITIZERS] + ([] if DEBUG or SANITIZE else ["-Wl,--strip-all"]),
                language="c++",
            )
        ]
        try:
            command = BuildExtension(self.distribution, no_python_abi_suffix=True)
            command.build_lib = self.build_lib
            # Kept between builds, so that ninja compiles again only what changed.
            command.build_temp = os.path.join("build", f"temp.torch-{torch.__version__}{'-sanitize' * SANITIZE}")
            command.ensure_finalized()
            command.run()
        except Exception as error:
            print(f"torchconv: {error}", flush=True)
            return "compiling failed; TORCHCONV_BUILD=1 makes pip show the compiler's messages"
        return None

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"


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
