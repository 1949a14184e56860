"""Receptive fields of a model's layers: which pixels an output sees."""

from torch import nn

from torchconv.inspect.dry_run import Input, dry_run, usual_input_size
from torchconv.inspect.field import ReceptiveField
from torchconv.inspect.field_rules import Fields
from torchconv.inspect.layers import find_layer


def receptive_field(model: nn.Module, layer: nn.Module | str, input_size: Input | None = None) -> ReceptiveField:
    """What an output of a layer sees of the model's input.

        >>> receptive_field(vgg19(), "features.22").size  # relu4_2
        (84, 84)

    Where branches meet, it is what any of them sees. Batch normalization and the like count as pointwise: what
    statistics over the picture see is left out.

    Args:
        model: built of layers of torchconv or torch.nn; it is not run on data, see `dry_run`.
        layer: a module or its dotted name; in VGG networks also a name such as "relu4_2". Of a module that runs several
            times the last run counts.
        input_size: the shape of the input, batch first. By default the first of (1, C, 224, 224), 32 × 32 and 28 × 28
            that the model takes.

    Raises:
        ValueError: there is no such layer, it doesn't run, or its outputs have no field of this form: they see the
            whole picture, or fields of different sizes or distances, as after a transposed convolution.
    """
    name, _ = find_layer(model, layer)
    field = _follow(model, input_size).layers.get(name)
    if field is None:
        raise ValueError(f"layer={name!r}: expected a layer that runs, this one doesn't")
    if isinstance(field, str):
        raise ValueError(f"layer={name!r}: has no receptive field, as {field}")
    return field


def receptive_fields(model: nn.Module, input_size: Input | None = None) -> dict[str, ReceptiveField]:
    """The receptive fields of all layers that have one, by dotted name, in the order of the run.

    Args:
        model, input_size: see `receptive_field`.
    """
    fields = _follow(model, input_size)
    return {
        name: field
        for name, field in fields.layers.items()
        if isinstance(field, ReceptiveField) and not any(model.get_submodule(name).children())
    }


def _follow(model: nn.Module, input_size: Input | None) -> Fields:
    fields = Fields()
    dry_run(model, usual_input_size(model) if input_size is None else input_size, fields)
    return fields
