"""The networks of torchconv.models by name, with weights."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchconv import models
from torchconv.models.weights import TORCHVISION_NAME, check

ORIGINAL_NAME = "original"


def model_names() -> dict[str, Callable[..., nn.Module]]:
    """What makes a network without being told anything, by name in lower case: functions and classes."""
    found: dict[str, Callable[..., nn.Module]] = {}
    made_by_functions = set()
    for name in models.__all__:
        make: Any = getattr(models, name)
        parameters = inspect.signature(make).parameters.values()
        result = make if inspect.isclass(make) else inspect.signature(make).return_annotation
        if not issubclass(result, nn.Module) or any(_is_required(parameter) for parameter in parameters):
            continue
        found[name] = make
        if make is not result:
            made_by_functions.add(result)
    return {name.lower(): make for name, make in found.items() if make not in made_by_functions}


def make_model(name: str, weights: str | None = None) -> nn.Module:
    """A network with weights.

    Args:
        name: one of `model_names`; case, hyphens and underscores don't matter.
        weights: None for random ones; "original" or "IMAGENET1K_V1" where the network has them; the path of a file with
            a state_dict or of a checkpoint of examples/train.py. The number of classes and batch normalization are the
            file's.

    Raises:
        ValueError: there is no such network, or it has no such weights, or the file is damaged or another network's.
        FileNotFoundError, ModuleNotFoundError, OSError: the weights are not there.
    """
    makers = model_names()
    make = next((make for known, make in makers.items() if _plain(known) == _plain(name)), None)
    if make is None:
        raise ValueError(f"model={name!r}: expected one of {', '.join(makers)}")
    if weights is None:
        return make()
    parameters = inspect.signature(make).parameters
    if weights in (ORIGINAL_NAME, TORCHVISION_NAME):
        if "weights" not in parameters:
            raise ValueError(f"weights={weights!r}: expected the path of a file, as {name} has no weights of its own")
        return make(weights=weights)
    state, is_checkpoint = _read(weights)
    given: dict[str, Any] = {}
    affine = [tensor for tensor in state.values() if tensor.dim() == 2]
    for parameter in ("num_classes", "output_size"):
        if parameter in parameters and affine:
            given[parameter] = len(affine[-1])
    if "batch_norm" in parameters:
        given["batch_norm"] = any(key.endswith("running_mean") for key in state)
    if "weights" in parameters and not is_checkpoint:
        return make(weights=weights, **given)  # which also says how the input must be normalized
    model = make(**given)
    check(state, model.state_dict(), weights)
    model.load_state_dict(state)
    return model


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _read(path: str) -> tuple[dict[str, Tensor], bool]:
    """The state_dict in a file, and whether it was that of a checkpoint."""
    argument = f"weights={path!r}"
    if not Path(path).exists():
        raise FileNotFoundError(f"{argument}: expected '{ORIGINAL_NAME}', '{TORCHVISION_NAME}' or the path of a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # a damaged file raises whatever the unpickler stumbles on, at length
        raise ValueError(f"{argument}: damaged, or not a file of tensors that torch.save wrote") from error
    is_checkpoint = isinstance(content, Mapping) and isinstance(content.get("model"), Mapping)
    state = content["model"] if is_checkpoint else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{argument}: expected a state_dict (names and tensors), or a checkpoint with one as 'model'")
    return dict(state), is_checkpoint
