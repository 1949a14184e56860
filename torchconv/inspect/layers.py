"""Layers by name."""

from torch import nn

from torchconv.models import VGG, VGGFeatures

KINDS: dict[str, type[nn.Module]] = {
    "conv": nn.Conv2d,
    "bn": nn.BatchNorm2d,
    "relu": nn.ReLU,
    "pool": nn.MaxPool2d,
}


def find_layer(model: nn.Module, layer: nn.Module | str) -> tuple[str, nn.Module]:
    """A layer of a model, and its dotted name.

    Args:
        model: any.
        layer: one of its modules, the dotted name of one, or, in VGG networks, a name such as "relu4_2".

    Raises:
        ValueError: the model has no such layer.
    """
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        name = next((name for name, module in modules.items() if module is layer), None)
        if name is None:
            raise ValueError(f"layer={type(layer).__name__}: expected a module of the model, this one is not")
        return name, layer
    name = _vgg_names(model).get(layer, layer)
    if name in modules:
        return name, modules[name]
    names = [*_vgg_names(model)] or [known for known, module in modules.items() if known and not any(module.children())]
    shown = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
    raise ValueError(f"layer={layer!r}: expected a module of the model or one of the names {shown}")


def known_name(model: nn.Module, name: str) -> str:
    """What literature calls the layer of a dotted name; else that name."""
    return next((known for known, dotted in _vgg_names(model).items() if dotted == name), name)


def _vgg_names(model: nn.Module) -> dict[str, str]:
    """The dotted names of the layers that literature calls conv1_1, relu1_1, ... pool5."""
    if not isinstance(model, VGG | VGGFeatures):
        return {}
    names: dict[str, str] = {}
    block, number = 1, 0
    for key, layer in model.features.named_children():
        kind = next(name for name, cls in KINDS.items() if isinstance(layer, cls))
        number += kind == "conv"
        names[f"{kind}{block}" if kind == "pool" else f"{kind}{block}_{number}"] = f"features.{key}"
        if kind == "pool":
            block, number = block + 1, 0
    return names
