"""VGG-19's features and ResNet-18 for inference: torch.nn, torchconv, onnxruntime, OpenVINO and ncnn in one process.

Every runtime gets the same network with the same random weights in float32, as many threads, and chooses its own
instruction set. The runtimes see the whole network beforehand: they fuse layers and lay their weights out once, which
torch and torchconv, called layer by layer, don't. Outputs must agree to 1e-3 before anything is timed. Each has threads
of its own, which spin for a while after a call: so each rests before its turn, and makes one untimed call.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from command import parser, run
from models import MODELS
from networks import forward
from record import Record
from side_by_side import SIDES, Table, alternate, best, difference
from torch import Tensor, nn

Infer = Callable[[], Tensor]
TOLERANCE = 1e-3


def onnxruntime_on(network: nn.Module, picture: Tensor, threads: int) -> Infer:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(network, (picture,), path, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: picture.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino_on(network: nn.Module, picture: Tensor, threads: int) -> Infer:
    import openvino

    model = openvino.convert_model(network, example_input=picture, input=list(picture.shape))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.compile_model(model, "CPU", settings)
    return lambda: torch.from_numpy(compiled(picture.numpy(), share_inputs=True)[0])


def ncnn_on(network: nn.Module, picture: Tensor, threads: int) -> Infer:
    import ncnn
    import pnnx

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for kind in ("packed", "storage", "arithmetic"):
        setattr(net.opt, f"use_fp16_{kind}", False)
    with tempfile.TemporaryDirectory() as folder:
        torch.jit.trace(network, picture).save(f"{folder}/network.pt")
        shape = f"inputshape={list(picture.shape)}".replace(" ", "")
        subprocess.run([pnnx.EXEC_PATH, "network.pt", shape, "fp16=0"], cwd=folder, check=True, capture_output=True)
        net.load_param(f"{folder}/network.ncnn.param")
        net.load_model(f"{folder}/network.ncnn.bin")
    mat = ncnn.Mat(picture[0].numpy())

    def infer() -> Tensor:
        extractor = net.create_extractor()
        extractor.input("in0", mat)
        return torch.from_numpy(np.asarray(extractor.extract("out0")[1]))[None]

    return infer


PEERS = {"onnxruntime": onnxruntime_on, "openvino": openvino_on, "ncnn": ncnn_on}


def job(options: argparse.Namespace, record: Record) -> None:
    print("  ".join(f"{name} {version(name)}" for name in options.peers))
    sides = [*SIDES, *options.peers]
    table = Table(network=-10, size=5, **{side.replace(" ", "_"): len(side) + 2 for side in sides}, beats=9, differs=8)
    for model in options.models:
        for size in options.size:
            facts = {"threads": options.count, "network": model, "batch": 1, "size": size}
            if record.has(facts):
                continue
            torch.manual_seed(0)
            network = MODELS[model]().eval()
            torch.manual_seed(1)
            picture = torch.rand(1, 3, size, size)
            calls: dict[str, Infer] = dict(forward(network, picture))
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.export's own, about itself
                for name in options.peers:
                    calls[name] = PEERS[name](network, picture, options.count)
            expected = calls["torch nchw"]()
            differs = {side: difference(call().view(expected.shape), expected) for side, call in calls.items()}
            for side, value in differs.items():
                if not value <= TOLERANCE:
                    raise AssertionError(f"{side} on {model} differs by {value:.1e} from torch")
            timing = alternate(calls, options.budget_seconds, least=5, pause=options.pause)
            versions = {name: version(name) for name in options.peers}
            record.add(facts, timing, differs=differs, versions=versions)
            seconds = timing.median
            beaten = sum(best(seconds, "torchconv") < best(seconds, name) for name in options.peers)
            times = [f"{1e3 * seconds[side]:.2f}" for side in sides]
            worst = max(differs.values())
            table.row(model, str(size), *times, f"{beaten} of {len(options.peers)}", f"{worst:.0e}")


def main() -> int:
    options = parser(__doc__, budget=5.0)
    options.add_argument(
        "--models", nargs="+", default=["vgg19", "resnet18"], choices=MODELS, metavar="MODEL", help="%(default)s"
    )
    options.add_argument("--size", type=int, nargs="+", default=[224, 512], help="%(default)s")
    options.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, metavar="PEER", help="%(default)s")
    options.add_argument("--pause", type=float, default=0.1, metavar="S", help="rest before each turn (%(default)s)")
    return run(options, job)


if __name__ == "__main__":
    sys.exit(main())
