"""torchconv beside torch.nn, that is cuDNN, on a GPU: time, memory, and how much of the memory's bandwidth is used.

python benchmarks/gpu.py                 # VGG-19's layers, poolings, style steps, training steps
python benchmarks/gpu.py --device cpu    # a trial on the CPU, of tiny sizes: its figures mean nothing

cuDNN tries its algorithms and takes the fastest (torch.backends.cudnn.benchmark). float32 is float32 on both sides:
TF32, which rounds factors to 11 bits, is an entry of its own. Layers and poolings are timed on the GPU alone, steps
with the time in which Python asks for their work.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import convolution
import pooling
import torch
from gpu_clock import Clock, copy_bandwidth
from memory_step import on
from models import MODELS, layers_of
from networks import CLASSES, both
from record import RESULTS, Record, machine
from side_by_side import FOUR, Table, difference, four
from style_step import CONTENT, STYLE, gradient, networks, picture
from torch import Tensor, nn
from torch.nn import functional as F

from torchconv import _extension
from torchconv.style import StyleObjective

# The dtype, and whether TF32 may stand for it.
PRECISIONS = {"float32": (torch.float32, False), "tf32": (torch.float32, True), "bfloat16": (torch.bfloat16, False)}
ON_GPU = {
    "batch": 16,
    "size": 224,
    "style_size": [512, 1024],
    "networks": ["vgg16", "resnet18"],
    "mebibytes": 1024,  # of the copy
    "cases": 99,  # of a kind, at most
}
# Of a resnet18 at 32² the last batch norms see two values, which bfloat16's rounding turns around.
ON_CPU = {"batch": 2, "size": 64, "style_size": [32], "networks": ["resnet18"], "mebibytes": 16, "cases": 2}

Calls = dict[str, Callable[[], Any]]


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Matrix products and cuDNN with or without TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


class Bench:
    """What is measured, entry by entry, and shown as it comes."""

    def __init__(self, options: argparse.Namespace, record: Record) -> None:
        self.options, self.record, self.device = options, record, torch.device(options.device)
        self.clock = Clock(self.device, options.budget_seconds)
        self.bandwidth = 0.0

    def table(self) -> Table:
        return Table(what=-26, input=-22, precision=-9, of=-9, **FOUR, memory=7, bandwidth=9)

    def entry(
        self,
        table: Table,
        facts: dict[str, Any],
        make: Callable[[], Calls],
        queued: bool,
        moved: int = 0,
    ) -> None:
        """Measure one thing unless an earlier run has; `moved` is how many bytes it reads and writes at least."""
        if self.record.has(facts):
            return
        label = [str(facts[key]) for key in ("what", "input", "precision", "pass")]
        try:
            with tf32(PRECISIONS[facts["precision"]][1]):
                torch.manual_seed(0)
                with torch.device(self.device):
                    calls = make()
                outputs = {}
                for side, call in calls.items():
                    torch.manual_seed(0)  # dropout draws the same on each side
                    outputs[side] = call().detach()
                theirs = outputs["torch nchw"]
                differs = max(difference(y, theirs) for side, y in outputs.items() if not side.startswith("torch "))
                del outputs, theirs
                timing = self.clock.alternate(calls, queued)
                memory = {side: self.clock.peak(call) for side, call in calls.items()}
        except torch.OutOfMemoryError:
            table.row(*label, *["–"] * len(FOUR), "–", "no room")
            return
        used = {side: moved / seconds / self.bandwidth for side, seconds in timing.median.items()} if moved else {}
        self.record.add(facts, timing, differs=differs, memory=memory, bytes=moved, bandwidth=used)
        theirs, ours = (least(memory, library) for library in ("torch", "torchconv"))
        ratio = f"{ours / theirs:.2f}x" if theirs else "–"
        shown = f"{best_of(used):.0%}" if used else "–"
        table.row(*label, *four(timing.median, differs), ratio, shown)


def least(values: dict[str, Any], library: str) -> Any:
    """Of a library's memory formats, fused or not, the best."""
    names = {"torch": ("torch",), "torchconv": ("torchconv", "fused")}[library]
    return min(value for side, value in values.items() if side.split()[0] in names)


def best_of(used: dict[str, float]) -> float:
    return max(value for side, value in used.items() if side.startswith("torchconv"))


def layers(bench: Bench) -> None:
    """Every distinct convolution of VGG-19: the forward pass and both gradients."""
    table, options = bench.table(), bench.options
    for layer, name in islice(layers_of("vgg19", options.size).items(), options.cases):
        for precision in options.precisions:
            for each in convolution.PASSES:

                def make(layer: Any = layer, each: str = each, precision: str = precision) -> Calls:
                    tensors = layer.tensors(options.batch, PRECISIONS[precision][0])
                    return convolution.sides(layer, each, tensors)

                facts = {"part": "layers", "what": f"vgg19 {name}", "input": str(layer), "precision": precision}
                facts |= {"pass": each, "batch": options.batch}
                with torch.no_grad():
                    bench.entry(table, facts, make, queued=True)


def poolings(bench: Bench) -> None:
    """Poolings, unfold and fold: `bytes` are those of the input and the output, each once."""
    table, options = bench.table(), bench.options
    for name, (function, _, pictures) in islice(pooling.CASES.items(), options.cases):
        passes = pooling.PASSES
        passes = passes if function == "max_pool2d" else passes[:1] if "fold" in function else passes[::2]
        for channels, side in pictures(options.size)[: options.cases]:
            for precision in [each for each in options.precisions if each != "tf32"]:
                shape, dtype = (options.batch, channels, side, side), PRECISIONS[precision][0]
                moved = _pooled_bytes(name, shape, dtype)
                for each in passes:
                    facts = {"part": "poolings", "what": name, "input": "×".join(map(str, shape))}
                    facts |= {"precision": precision, "pass": each, "batch": options.batch}
                    make = partial(_pooling_sides, name, each, shape, dtype)
                    bench.entry(table, facts, make, queued=True, moved=moved)


def _pooling_sides(name: str, each: str, shape: tuple[int, ...], dtype: torch.dtype) -> Calls:
    return pooling.sides(name, each, torch.randn(shape).to(dtype))


def _pooled_bytes(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    function, arguments, _ = pooling.CASES[name]
    picture = torch.empty(shape, dtype=dtype, device="meta")
    if function == "fold":  # of the columns that `unfold` makes of such a picture
        function = "unfold"
    return picture.nbytes + getattr(F, function)(picture, **arguments).nbytes


def style(bench: Bench) -> None:
    """A step of style transfer: VGG-19 to relu5_1, the losses, and their gradient in the picture."""
    table, options = bench.table(), bench.options
    for size in options.style_size:
        for precision in [each for each in options.precisions if each != "bfloat16"]:
            facts = {"part": "style", "what": "style step", "input": f"1×3×{size}×{size}", "precision": precision}
            facts |= {"pass": "step", "batch": 1, "size": size}
            bench.entry(table, facts, partial(_style_sides, size, bench.device), queued=False)


def _style_sides(size: int, device: torch.device) -> Calls:
    with torch.device("cpu"):
        made = networks()
        made["fused nhwc"] = on("fused nhwc", networks()["torchconv nhwc"])
        content, painting = picture(CONTENT, size).to(device), picture(STYLE, size).to(device)
        noise = torch.randn(content.shape, generator=torch.Generator().manual_seed(0)).to(device)
    calls: Calls = {}
    for side, network in made.items():
        objective = StyleObjective(network.to(device), content, [painting])
        calls[side] = lambda objective=objective: gradient(objective, content + 0.08 * noise)[1]
    return calls


def training(bench: Bench) -> None:
    """A step of training; bfloat16 is autocast's. `differs` compares losses."""
    table, options = bench.table(), bench.options
    for name in options.networks:
        for precision in options.precisions:
            shape = (options.batch, 3, options.size, options.size)
            facts = {"part": "training", "what": name, "input": "×".join(map(str, shape)), "precision": precision}
            facts |= {"pass": "step", "batch": options.batch, "size": options.size}
            make = partial(_training_sides, name, shape, precision == "bfloat16", bench.device.type)
            bench.entry(table, facts, make, queued=False)


def _training_sides(name: str, shape: tuple[int, ...], lowered: bool, device: str) -> Calls:
    sides = both(MODELS[name]().train(), torch.rand(shape))
    labels = torch.randint(CLASSES, shape[:1])
    return {
        side: partial(train, torch.optim.SGD(network.parameters(), lr=1e-3), network, inputs, labels, lowered, device)
        for side, (network, inputs) in sides.items()
    }


def train(
    optimizer: torch.optim.Optimizer, network: nn.Module, inputs: Tensor, labels: Tensor, lowered: bool, device: str
) -> Tensor:
    """A step that leaves no gradients behind, so that the next one's memory has them."""
    with torch.autocast(device, torch.bfloat16, enabled=lowered):
        loss = F.cross_entropy(network(inputs), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


PARTS = {"layers": layers, "poolings": poolings, "style": style, "training": training}


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def gpu(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    found: dict[str, Any] = {"gpu": "none: a trial on the CPU", "cuda kernels": _extension.CUDA}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"gpu": about.name, "capability": f"{about.major}.{about.minor}", "memory": about.total_memory}
        found |= {"driver": driver(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {**found, **machine("native")}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="%(default)s; cpu for a trial")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="%(default)s")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), metavar="PRECISION")
    for name, value in ON_GPU.items():
        several = {"nargs": "+"} if isinstance(value, list) else {}
        kind = type(value[0] if isinstance(value, list) else value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, **several, help=f"({value})")
    parser.add_argument("--budget-seconds", type=float, metavar="S", help="time for each entry (0.3; on the CPU 0)")
    parser.add_argument("--resume", action="store_true", help="keep what the JSON file has, measure what it lacks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go (benchmarks/results/gpu.json)")
    options = parser.parse_args()
    trial = options.device == "cpu"
    for name, value in {**(ON_CPU if trial else ON_GPU), "budget_seconds": 0.0 if trial else 0.3}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if trial and options.json is None:
        parser.error("--device cpu needs --json FILE: a trial's figures are none")
    return options


def main() -> int:
    options = arguments()
    if options.device == "cuda" and not (torch.cuda.is_available() and _extension.CUDA):
        kernels = "CUDA kernels are there" if _extension.CUDA else f"no CUDA kernels: {_extension.CUDA_REASON}"
        print(f"torch {torch.__version__} {'sees a' if torch.cuda.is_available() else 'sees no'} GPU; {kernels}")
        return 1
    torch.backends.cudnn.benchmark = True
    path = options.json or RESULTS / "gpu.json"
    record = Record(path, gpu(torch.device(options.device)), options.resume)
    print("  ".join(f"{name}: {value}" for name, value in record.machine.items()), f"figures: {path}", sep="\n")
    bench = Bench(options, record)
    bench.bandwidth = copy_bandwidth(bench.clock, bench.device, options.mebibytes)
    record.entries = [entry for entry in record.entries if entry["part"] != "copy"]
    record.add({"part": "copy"}, bytes_per_second=bench.bandwidth)
    print(f"a copy reads and writes {bench.bandwidth / 1e9:.0f} GB/s")
    try:
        for part in options.parts:
            print(f"\n{part}: {(PARTS[part].__doc__ or '').strip()}")
            PARTS[part](bench)
    finally:
        record.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
