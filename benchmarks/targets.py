"""What the library set out to reach, beside what was measured."""

from collections.abc import Callable
from typing import Any

from side_by_side import best, geometric_mean, speedup

Entry = dict[str, Any]
Find = Callable[..., list[Entry]]  # of a result file's name and the facts of its entries
THREADS = 2


def _least(what: str, wanted: float, entries: list[Entry], of: Callable[[Entry], float]) -> list[str]:
    """A line whose every entry has to reach what is wanted."""
    if not entries:
        return [what, f"{wanted}x", "not measured", "–"]
    values = [of(entry) for entry in entries]
    mean = f"{geometric_mean(values):.2f}x in the mean, least " if len(values) > 1 else ""
    return [what, f"{wanted}x", f"{mean}{min(values):.2f}x", _holds(min(values) >= wanted)]


def _holds(condition: bool) -> str:
    return "yes" if condition else "**no**"


def _faster(entry: Entry) -> float:
    return speedup(entry["seconds"])


def _in(layout: str) -> Callable[[Entry], float]:
    return lambda entry: speedup(entry["seconds"], layout)


def _gain(entry: Entry) -> float:
    return best(entry["seconds"], "torchconv float32") / best(entry["seconds"], "torchconv bfloat16")


def targets(find: Find) -> list[list[str]]:
    """What, wanted, measured, holds: a row for each target."""
    rows = []
    for size in (512, 224):
        for each, wanted in (("forward", 2.3), ("input", 2.3), ("weight", 1.8)):
            vgg = find("vgg19", threads=THREADS, batch=1, of=size, **{"pass": each})
            vgg = [entry for entry in vgg if entry["in_channels"] >= 64]
            title = each if each == "forward" else f"{each} gradient"
            rows.append(_least(f"VGG-19's layers at {size}², {title}", wanted, vgg, _faster))
    for kind, network, batch, size, wanted in (
        ("forward", "vgg19", 1, 512, 3.0),
        ("forward", "vgg19", 1, 224, 3.0),
        ("style", "vgg19", 1, 512, 3.0),
        ("training", "vgg16", 8, 64, 2.0),
        ("training", "resnet18", 8, 128, 1.5),
        ("forward", "lenet", 1, 28, 0.87),
        ("backward", "lenet", 1, 28, 0.87),
        ("forward", "lenet", 64, 28, 1.0),
        ("backward", "lenet", 64, 28, 1.0),
        *(("per-sample", "lenet", batch, 28, 1.0) for batch in (1, 8, 32)),
    ):
        found = find("networks", threads=THREADS, kind=kind, network=network, batch=batch, size=size)
        rows.append(_least(f"{network}, {kind}, batch {batch}, {size}²", wanted, found, _faster))
    for size in (512, 224):
        found = find("networks-avx2", threads=THREADS, kind="forward", network="vgg19", batch=1, size=size)
        rows.append(_least(f"vgg19, forward, AVX2 on both sides, {size}²", 2.0, found, _faster))
    grid = find("layers", threads=THREADS)
    rows.append(_least("the grid, each layer, batch and pass", 0.9, grid, _faster))
    mean = geometric_mean([_faster(entry) for entry in grid])
    good = _holds(mean >= 1.5) if grid else "–"
    rows.append(["the grid, geometric mean", "1.5x", f"{mean:.2f}x" if grid else "not measured", good])
    for each, nchw, nhwc in (("forward", 10.0, 2.0), ("backward", 5.0, 2.0)):
        pool = find("pooling", threads=THREADS, what="max_pool2d 2", **{"pass": each})
        rows.append(_least(f"max_pool2d {each} on VGG's pictures, contiguous", nchw, pool, _in("nchw")))
        rows.append(_least(f"max_pool2d {each} on VGG's pictures, channels-last", nhwc, pool, _in("nhwc")))
    for what in ("unfold 3", "fold 3"):
        rows.append(_least(f"{what}×3", 5.0, find("pooling", threads=THREADS, what=what), _faster))
    for model in ("vgg19", "mobilenet_v2"):
        lowered = find("bfloat16", threads=THREADS, model=model)
        rows.append(_least(f"{model} in bfloat16 beside float32, layers and network", 1.0, lowered, _gain))
    rows += [_peers(e) for e in find("peers", threads=THREADS, network="vgg19")]
    rows += _memory(find)
    rows += _accuracy(find)
    return rows


def _peers(entry: Entry) -> list[str]:
    seconds = entry["seconds"]
    ours = best(seconds, "torchconv")
    others = {side: value / ours for side, value in seconds.items() if not side.startswith("torch")}
    measured = ", ".join(f"{side} takes {ratio:.2f}x" for side, ratio in others.items())
    return [f"vgg19 at {entry['size']}² faster than the runtimes", "> 1x", measured, _holds(min(others.values()) > 1)]


def _memory(find: Find) -> list[list[str]]:
    """The peak of a step, of torch's: of all formats the smallest, or the largest where none may be above it."""
    rows = []
    for kind, network, inputs, sides, of, wanted in (
        ("style", "vgg19", [(1, 512), (1, 1024)], ("torchconv", "fused"), min, 0.45),
        ("saliency", "vgg16", [(n, size) for n in (1, 8) for size in (224, 512)], ("torchconv", "fused"), min, 0.35),
        ("train", "vgg16 features", [(8, 64), (2, 224), (8, 224), (32, 224)], ("fused",), min, 0.75),
        ("train", "vgg16", [(8, 64), (2, 224), (8, 224), (32, 224)], ("fused",), min, 0.75),
        ("train", "resnet18", [(8, 128)], ("torchconv", "fused"), max, 1.0),
    ):
        for batch, size in inputs:
            found = find("memory", threads=THREADS, kind=kind, network=network, batch=batch, size=size, heap="fixed")
            ratios = [ratio for e in found for side, ratio in e["ratios"]["peak"].items() if side.split()[0] in sides]
            title = f"{network}, {kind}, batch {batch}, {size}², peak memory"
            rows.append(_at_most(title, wanted, "x", [of(ratios)] if ratios else []))
    for size, wanted in ((2048, 1.5), (4096, 4.0)):
        found = find("memory", threads=THREADS, kind="style", size=size)
        peaks = [e["peak"]["tiled nhwc"] / 1e9 for e in found]
        rows.append(_at_most(f"vgg19, style in tiles, {size}², peak memory", wanted, " GB", peaks))
    return rows


def _at_most(what: str, wanted: float, unit: str, values: list[float]) -> list[str]:
    if not values:
        return [what, f"≤ {wanted}{unit}", "not measured", "–"]
    return [what, f"≤ {wanted}{unit}", f"{max(values):.2f}{unit}", _holds(max(values) <= wanted)]


def _accuracy(find: Find) -> list[list[str]]:
    rows = []
    for algorithm in ("auto", "winograd"):
        errors = [e["errors"][algorithm] for e in find("accuracy", part="layers") if algorithm in e["errors"]]
        rows += _most(f"error of {algorithm} against float64", 5e-6, errors)
    apart = [e["errors"]["apart"] for e in find("accuracy", part="features")]
    return rows + _most("VGG-19's activations, converted beside original", 1e-4, apart)


def _most(what: str, wanted: float, values: list[float]) -> list[list[str]]:
    """A line none of whose values may exceed what is wanted."""
    return [[what, f"≤ {wanted:.0e}", f"{max(values):.1e}", _holds(max(values) <= wanted)]] if values else []
