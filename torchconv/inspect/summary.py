"""A model as a table: of each layer its output, parameters, work, memory and receptive field."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from torchconv.inspect.dry_run import Input, dry_run
from torchconv.inspect.field import ReceptiveField, as_text
from torchconv.inspect.field_rules import Fields
from torchconv.inspect.layer_times import layer_times
from torchconv.inspect.memory import memory


@dataclass(frozen=True)
class Row:
    """One run of a layer.

    Attributes:
        name: dotted; "" is the model itself.
        type: the layer's class.
        output: the shape of what it gives, of the first tensor if there are several; None if there is none.
        kernel: of a convolution or pooling.
        parameters: that no row above counts.
        share: of the model's parameters, from 0 to 1.
        multiply_adds: of convolutions and matrix products, without the additions of biases.
        saved: bytes that it keeps for the backward pass, and no layer before it; see `torchconv.inspect.memory`.
        receptive_field: None where there is none; see `torchconv.inspect.receptive_field`.
        milliseconds: median of forward passes, if asked for.
    """

    name: str
    type: str
    output: tuple[int, ...] | None
    kernel: tuple[int, ...] | None
    parameters: int
    share: float
    multiply_adds: int
    saved: int
    receptive_field: ReceptiveField | None
    milliseconds: float | None


@dataclass(frozen=True)
class Summary:
    """What `summary` gives. As a string: a table.

    Attributes:
        rows: one for each run of a layer, in the order in which they end. A module that is made of layers has a row if
            it has parameters or does work itself.
        parameters: of the model, those of layers that don't run included; what is used several times counts once.
        trainable: parameters that require a gradient.
        multiply_adds, saved, milliseconds: sums of the rows.
    """

    rows: tuple[Row, ...]
    parameters: int
    trainable: int
    multiply_adds: int
    saved: int
    milliseconds: float | None

    def __str__(self) -> str:
        columns = {
            "Layer": [row.name or "(the model itself)" for row in self.rows],
            "Type": [row.type for row in self.rows],
            "Output": [str(row.output or "") for row in self.rows],
            "Kernel": [as_text(row.kernel or ()) for row in self.rows],
            "Parameters": [f"{row.parameters:,}" if row.parameters else "" for row in self.rows],
            "Share": [f"{row.share:.1%}" if row.parameters else "" for row in self.rows],
            "Multiply-adds": [f"{row.multiply_adds:,}" if row.multiply_adds else "" for row in self.rows],
            "Saved kB": [f"{row.saved / 1e3:,.1f}" if row.saved else "" for row in self.rows],
        }
        for name in ("size", "stride", "padding", "centre"):
            title = "Sees" if name == "size" else name.capitalize()
            columns[title] = [as_text(getattr(row.receptive_field, name, ())) for row in self.rows]
        columns["ms"] = ["" if row.milliseconds is None else f"{row.milliseconds:.2f}" for row in self.rows]
        shown = {title: cells for title, cells in columns.items() if any(cells)}
        widths = {title: max(map(len, [title, *cells])) for title, cells in shown.items()}
        left = ("Layer", "Type", "Output")

        def line(cells: Sequence[str]) -> str:
            padded = (
                cell.ljust(width) if title in left else cell.rjust(width)
                for cell, (title, width) in zip(cells, widths.items(), strict=True)
            )
            return "  ".join(padded).rstrip()

        rule = "─" * (sum(widths.values()) + 2 * (len(widths) - 1))
        totals = [
            f"Parameters:     {self.parameters:,}, of which {self.trainable:,} are trainable",
            f"Multiply-adds:  {self.multiply_adds:,}",
            f"Saved:          {self.saved / 1e6:,.2f} MB for the backward pass",
        ]
        if self.milliseconds is not None:
            totals.append(f"Forward pass:   {self.milliseconds:,.2f} ms")
        body = [line(cells) for cells in zip(*shown.values(), strict=True)]
        return "\n".join([line(list(shown)), rule, *body, rule, *totals])


def summary(model: nn.Module, input_size: Input | tuple[Input, ...], *, milliseconds: bool = False) -> Summary:
    """What each layer of a model gives, costs and sees.

    The model runs without data, in the mode it is in, unless milliseconds are asked for; nothing changes.

        >>> print(torchconv.inspect.summary(torchconv.models.vgg19(), (1, 3, 224, 224)))

    Args:
        model: any, of torchconv's layers, torch.nn's or others; also on the meta device.
        input_size: the shape of the input, batch first; a tensor; or a tuple of such, for several inputs.
        milliseconds: also run it forward on grey pictures, in evaluation mode, and take the time of each layer: the
            median of several runs.

    Raises:
        RuntimeError: the model depends on the values of tensors, or doesn't take such an input.
        ValueError: it has lazy layers that have not run yet.
    """
    calls = _Calls()
    dry_run(model, input_size, calls)
    saved = dict(memory(model, input_size).layers)
    times = layer_times(model, input_size) if milliseconds else {}
    total = _count(model.parameters())
    counted: set[int] = set()
    runs: Counter[str] = Counter()
    rows = []
    for call in calls.ended:
        run = runs[call.name]
        runs[call.name] += 1
        fresh = [
            parameter
            for parameter in call.module.parameters(recurse=not call.rows_inside)
            if id(parameter) not in counted
        ]
        if call.rows_inside and not (fresh or call.multiply_adds or saved.get(call.name)):
            continue
        counted |= {id(parameter) for parameter in fresh}
        rows.append(
            Row(
                name=call.name,
                type=type(call.module).__name__,
                output=call.output,
                kernel=_kernel(call.module, call.output),
                parameters=_count(fresh),
                share=_count(fresh) / total if total else 0.0,
                multiply_adds=call.multiply_adds,
                saved=saved.pop(call.name, 0),
                receptive_field=call.receptive_field,
                milliseconds=times[call.name][run] if milliseconds else None,
            )
        )
    return Summary(
        rows=tuple(rows),
        parameters=total,
        trainable=_count(parameter for parameter in model.parameters() if parameter.requires_grad),
        multiply_adds=sum(row.multiply_adds for row in rows),
        saved=sum(row.saved for row in rows),
        milliseconds=sum(row.milliseconds or 0.0 for row in rows) if milliseconds else None,
    )


@dataclass
class _Call:
    """A run of a module."""

    name: str
    module: nn.Module
    output: tuple[int, ...] | None = None
    multiply_adds: int = 0
    receptive_field: ReceptiveField | None = None
    rows_inside: bool = False


class _Calls(Fields):
    """Notes the runs of a model's modules, and counts the work of each, that of modules inside left out."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[_Call] = []
        self.ended: list[_Call] = []

    def enter(self, name: str, module: nn.Module) -> None:
        super().enter(name, module)
        if self.running:
            self.running[-1].rows_inside = True
        self.running.append(_Call(name, module))

    def leave(self, name: str, module: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        super().leave(name, module, inputs, outputs)
        call = self.running.pop()
        if outputs:
            field = self.layers.get(name)
            call.output = tuple(outputs[0].shape)
            call.receptive_field = field if isinstance(field, ReceptiveField) else None
        self.ended.append(call)

    def op(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
        super().op(func, args, kwargs, output)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None and self.running:
            self.running[-1].multiply_adds += formula(*args, **kwargs, out_val=output) // 2


def _kernel(module: Any, output: tuple[int, ...] | None) -> tuple[int, ...] | None:
    kernel = getattr(module, "kernel_size", None)
    if isinstance(kernel, int) and output is not None:
        kernel = (kernel,) * (len(output) - 2)
    return tuple(kernel) if isinstance(kernel, tuple) else None


def _count(parameters: Iterable[Tensor]) -> int:
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())
