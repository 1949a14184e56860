"""Giving a layer another class: the object stays, with its parameters, buffers, hooks and all else that it has."""

from torch.nn import Module
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations


def assign_class(layer: Module, classes: dict[type, type]) -> None:
    """Make `layer` what `classes` says for its class, if it says anything. Parametrizations stay."""
    new = classes.get(type_before_parametrizations(layer))
    if new is None:
        return
    if is_parametrized(layer):
        # torch gave the layer a class of its own, which holds its properties; but copies of the layer share that class.
        members = {
            name: member for name, member in vars(type(layer)).items() if name not in ("__dict__", "__weakref__")
        }
        new = type(type(layer).__name__, (new,), members)
    layer.__class__ = new
