"""The memory of a training or inference step, predicted without computing or allocating it.

The step runs on torch's fake tensors, which have shapes and no data. What it would allocate, and until when, is counted
by storage; what the compiled kernels work in beside that is added (torchconv.inspect.scratch).
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from torchconv import _extension
from torchconv.inspect.scratch import Blocks, scratch

Input = Tensor | Sequence[int]
HEAPS_LARGEST = 1 << 17  # bytes; what is smaller comes from a heap, which keeps what it once had

Step = Callable[..., Any]


@dataclass(frozen=True)
class Memory:
    """The memory of a step, in bytes. As a string: a table in MB of 10^6 bytes.

    Attributes:
        saved: what the forward pass keeps for the backward pass, the input among it; not the model's own tensors.
        peak: most that is in use at a time above what there was before the step, gradients among it.
        parameters: of the model, with its buffers.
        gradients: of parameters and inputs, as the step leaves them.
        layers: of `saved`, what each module keeps, in the order of the step; what two of them keep is the first one's.
    """

    saved: int
    peak: int
    parameters: int
    gradients: int
    layers: Mapping[str, int]

    def __str__(self) -> str:
        totals = {
            "saved for backward": self.saved,
            "peak above the state before": self.peak,
            "parameters": self.parameters,
            "gradients": self.gradients,
        }
        layers = {name or "(the model itself)": count for name, count in self.layers.items() if count}
        width = max(map(len, [*totals, *layers]))
        lines = [f"{name:{width}} {count / 1e6:10.2f} MB" for name, count in totals.items()]
        if layers:
            lines += ["", "saved by", *(f"{name:{width}} {count / 1e6:10.2f} MB" for name, count in layers.items())]
        return "\n".join(lines)


def memory(
    model: nn.Module, input: Input | tuple[Input, ...], *, requires_grad: bool = False, step: Step | None = None
) -> Memory:
    """Predict the memory of a step of a model: forward, and backward to all that requires a gradient.

    Nothing is computed and nothing changes: not the model's gradients, nor its buffers. Inside `torch.no_grad()` the
    step is the forward pass alone.

    The peak is that of tensors and of torchconv's kernels. A process grows by it, within 15%, where
    MALLOC_MMAP_THRESHOLD_=131072 is in the environment; else what glibc's heap keeps of freed memory comes on top (a
    sixth for VGG-19, up to a half for resnet18). What oneDNN works in is not counted.

        >>> print(torchconv.inspect.memory(model, (1, 3, 512, 512)))

    Args:
        model: any module, of torch.nn's layers or torchconv's, in training or evaluation mode.
        input: what the model takes: a tensor, of which only shape, dtype and strides count, a shape, or a tuple of
            such. A shape stands for a contiguous tensor of the model's dtype.
        requires_grad: whether inputs given as shapes need a gradient; tensors say so themselves.
        step: called with the inputs in the place of `model(*inputs)`, the sum of the outputs and its backward pass. It
            may use the model and constants, but no other tensor that requires a gradient.

    Raises:
        RuntimeError: the step depends on the values of tensors (`item`), which fake ones don't have; or it uses a
            tensor that requires a gradient and is neither the model's nor an input.
    """
    mode = FakeTensorMode()
    stepped = _Stepped(model, step or partial(_forward_and_backward, model))
    fakes: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in _tensors(stepped)}
    like = next((tensor for tensor in fakes.values() if tensor.is_floating_point()), torch.empty(0))

    def fake(given: Input) -> Tensor:
        if isinstance(given, Tensor):
            return mode.from_tensor(given if given.is_leaf else given.detach().requires_grad_())
        with mode:
            return torch.empty(tuple(given), dtype=like.dtype, device=like.device, requires_grad=requires_grad)

    several = isinstance(input, tuple) and not all(isinstance(size, int) for size in input)
    inputs = [fake(given) for given in (cast("tuple[Input, ...]", input) if several else (cast(Input, input),))]
    tensors = list({id(tensor): tensor for tensor in [*fakes.values(), *inputs]}.values())
    account = _Account(mode, tensors + [tensor.grad for tensor in tensors if tensor.grad is not None])
    saved = _Saved(model, fakes.values())
    with mode, account, saved.counted():
        functional_call(stepped, fakes, tuple(inputs), tie_weights=False)
    return Memory(
        saved=sum(saved.layers.values()),
        peak=account.peak,
        parameters=_bytes(fakes.values()),
        gradients=_bytes(tensor.grad for tensor in tensors if tensor.grad is not None),
        layers=MappingProxyType(saved.layers),
    )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name: of a module in several places once, a tensor of several modules once for each."""
    for prefix, module in model.named_modules():
        for tensors in (module.named_parameters, module.named_buffers):
            yield from tensors(prefix, recurse=False, remove_duplicate=False)


def _bytes(tensors: Any) -> int:
    storages = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def _forward_and_backward(model: nn.Module, *inputs: Tensor) -> None:
    outputs = [output for output in tree_leaves(model(*inputs)) if isinstance(output, Tensor) and output.requires_grad]
    if outputs:
        torch.autograd.backward([output.sum() for output in outputs])


class _Stepped(nn.Module):
    """A step as a module, in which functional_call puts other tensors in the place of the model's."""

    def __init__(self, model: nn.Module, step: Step) -> None:
        super().__init__()
        self.model = model
        self.step = step

    def forward(self, *inputs: Tensor) -> None:
        self.step(*inputs)


class _Account(TorchDispatchMode):
    """Counts the bytes of the storages that ops make, until they die."""

    def __init__(self, mode: FakeTensorMode, before: Sequence[Tensor]) -> None:
        super().__init__()
        self.mode = mode
        self.known: dict[int, Tensor | None] = {id(tensor.untyped_storage()): tensor for tensor in before}
        self.heap = self.heap_size = self.large = self.peak = 0
        self.blocks = Blocks()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, self._fake, (args, kwargs or {}))
        output = func(*args, **kwargs)
        compiled = _extension.LOADED and func.namespace == "torchconv"
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._enter(tensor, compiled)
        # Gradients that meet are added in place, but for those of subclasses of Tensor, as fake ones are: there the sum
        # is a third one, for as long as this op takes.
        meeting = func is torch.ops.aten.add.Tensor and torch._C._current_graph_task_id() != -1
        if not meeting:
            blocks = [self.blocks.take(count) for count in scratch(func, args)]
            self.peak = max(self.peak, self.heap_size + self.large + sum(blocks) + self.blocks.kept)
            for block in blocks:
                self.blocks.give(block)
        return output

    def _fake(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        if tensor.requires_grad:
            raise RuntimeError(
                f"memory: the step uses a tensor of shape {tuple(tensor.shape)} that requires a gradient, "
                "expected only the model's and the inputs"
            )
        tensor = self.mode.from_tensor(tensor)
        self.known[id(tensor.untyped_storage())] = tensor  # there before the step
        return tensor

    def _enter(self, tensor: Tensor, compiled: bool) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self.known or tensor.is_meta:
            return
        self.known[id(storage)] = None
        count = self.blocks.take(storage.nbytes()) if compiled else storage.nbytes()
        if count < HEAPS_LARGEST:
            self.heap += count
            self.heap_size = max(self.heap_size, self.heap)
        else:
            self.large += count
        weakref.finalize(storage, self._leave, id(storage), count, compiled).atexit = False

    def _leave(self, storage: int, count: int, compiled: bool) -> None:
        del self.known[storage]
        if count < HEAPS_LARGEST:
            self.heap -= count
        else:
            self.large -= count
        if compiled:
            self.blocks.give(count)


class _Saved:
    """Counts what is saved for backward, by the module that saves it first."""

    def __init__(self, model: nn.Module, own: Any) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.own = {id(tensor.untyped_storage()) for tensor in own}
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self.layers: dict[str, int] = {}
        self.entered = [""]

    @contextmanager
    def counted(self) -> Iterator[None]:
        """While in this context."""
        with ExitStack() as hooks:
            for handle in (
                register_module_forward_pre_hook(lambda module, _: self._enter(module)),
                register_module_forward_hook(lambda *_: self._leave(), always_call=True),
            ):
                hooks.callback(handle.remove)
            hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor))
            yield

    def _enter(self, module: nn.Module) -> None:
        # What is not one of the model's modules counts as the one that it is in.
        self.entered.append(self.names.get(module, self.entered[-1]))

    def _leave(self) -> None:
        self.entered.pop()

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self.own and storage not in self.seen:
            self.seen.add(storage)
            name = self.entered[-1]
            self.layers[name] = self.layers.get(name, 0) + storage.nbytes()
        return tensor
