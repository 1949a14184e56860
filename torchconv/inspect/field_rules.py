"""What each layer and each op does to a receptive field."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules import conv, dropout, pooling
from torch.utils.weak import WeakTensorKeyDictionary

from torchconv.inspect.dry_run import Observer, tensors_in
from torchconv.inspect.field import ReceptiveField
from torchconv.inspect.output_size import IntOrInts
from torchconv.nn import ConvReLUPool2d

# A field, or why there is none.
FieldOrReason = ReceptiveField | str
Sizes = tuple[int, ...]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# torch keeps these bases private to its modules' files.
POOLINGS = (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._LPPoolNd)
ADAPTIVE = (pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd)
TRANSPOSED = conv._ConvTransposeNd
# Apart from statistics over the picture, these take each position alone.
POINTWISE = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm, dropout._DropoutNd)


class Fields(Observer):
    """Follows the receptive field of every tensor through a run.

    Attributes:
        layers: of each module's output, by dotted name, in the order in which they end; why not, where it has none.
    """

    def __init__(self) -> None:
        self.layers: dict[str, FieldOrReason] = {}
        self.tensors: Any = WeakTensorKeyDictionary()
        self.written_in_part: WeakSet[Any] = WeakSet()
        self.rank = 0
        self.ruled: list[nn.Module] = []  # the module under a rule that is running, and how often it was entered

    def begin(self, inputs: Sequence[Tensor]) -> None:
        picture = inputs[0]
        self.rank = picture.dim() - 2
        start: FieldOrReason = "the input is not a picture, which has a batch, channels and 1 to 3 more dimensions"
        if self.rank in (1, 2, 3):
            start = ReceptiveField((1,) * self.rank, (1,) * self.rank, (0,) * self.rank)
        self.tensors[picture] = start

    def enter(self, name: str, module: nn.Module) -> None:
        if self.ruled or isinstance(module, RULED):
            self.ruled.append(module)

    def leave(self, name: str, module: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        if self.ruled:
            self.ruled.pop()
            if not self.ruled:
                sizes = (self._sizes(inputs[0]), self._sizes(outputs[0]))
                self._set(outputs, inputs, lambda field: behind_module(field, module, *sizes))
        if outputs and not self.ruled:
            field = self._get(outputs[0])
            self.layers.pop(name, None)
            self.layers[name] = "it does not depend on the picture" if field is None else field

    def op(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
        outputs, inputs = tensors_in(output), tensors_in((args, kwargs))
        if (
            self.ruled
            or func.overloadpacket.__name__.startswith("new_")
            or func.overloadpacket.__name__.endswith("_like")
        ):
            return
        if not outputs or all(self._get(tensor) is None for tensor in inputs):
            return
        named = {parameter.name: default for parameter, default in _defaults(func)}
        named |= dict(zip(named, args, strict=False)) | kwargs
        seen = next(tensor for tensor in inputs if self._get(tensor) is not None)
        window = _Op(func, named, seen, outputs[0], self.rank)
        self._set(outputs, inputs, window.behind)
        target = outputs[0]
        if func._schema.is_mutable and target.numel() * target.element_size() < target.untyped_storage().nbytes():
            self.written_in_part.add(target.untyped_storage())

    def _sizes(self, tensor: Tensor) -> Sizes:
        return tuple(tensor.shape[-self.rank :])

    def _get(self, tensor: Tensor) -> FieldOrReason | None:
        if tensor.untyped_storage() in self.written_in_part:
            return "it is written piece by piece"
        return self.tensors.get(tensor)

    def _set(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], rule: Callable[[ReceptiveField], FieldOrReason]
    ) -> None:
        known = [field for field in map(self._get, inputs) if field is not None]
        if not known:
            return
        result: FieldOrReason | None = next((field for field in known if isinstance(field, str)), None)
        if result is None:
            try:
                result = rule(reduce(ReceptiveField.union, known))  # type: ignore[arg-type]  # no reasons among them
            except ValueError as error:
                result = str(error)
        for tensor in outputs:
            self.tensors[tensor] = result


RULED: tuple[type, ...] = (*CONVOLUTIONS, *POOLINGS, *ADAPTIVE, TRANSPOSED, *POINTWISE)


def behind_module(field: ReceptiveField, module: Any, before: Sizes, after: Sizes) -> FieldOrReason:
    """The field behind a module of RULED, which gives the size `after` for the size `before`."""
    if isinstance(module, POINTWISE):
        return field
    if isinstance(module, TRANSPOSED):
        return f"a {type(module).__name__} comes before it, whose outputs see fields of different sizes"
    if isinstance(module, ADAPTIVE):
        return _behind_adaptive(field, before, after)
    if isinstance(module, POOLINGS):
        return _behind_pooling(field, module.kernel_size, module)
    rank = len(before)
    dilation, kernel = _each(module.dilation, rank), _each(module.kernel_size, rank)
    padding: Any = module.padding
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    elif padding == "valid":
        padding = 0
    field = field.then(kernel, _each(module.stride, rank), _each(padding, rank), dilation)
    # A convolution that `convert` fused has the pooling's attributes too, but there the pooling follows as a layer.
    if isinstance(module, ConvReLUPool2d) and "_fusion" not in vars(module):
        window = module.pool_stride, module.pool_padding, module.pool_dilation
        field = field.then(*(_each(value, rank) for value in (module.pool_kernel_size, *window)))
    return field


def _each(value: IntOrInts, rank: int) -> tuple[int, ...]:
    """One number for each dimension; of more, the last ones: one dimension is computed as two with a height of 1."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * rank if len(numbers) == 1 else numbers[-rank:]


def _behind_pooling(field: ReceptiveField, kernel_size: Any, pooling: Any) -> ReceptiveField:
    rank = len(field.size)
    stride = pooling.stride if pooling.stride not in (None, []) else kernel_size
    window = stride, getattr(pooling, "padding", 0), getattr(pooling, "dilation", 1)
    return field.then(_each(kernel_size, rank), *(_each(value, rank) for value in window))


def _behind_adaptive(field: ReceptiveField, before: Sizes, after: Sizes) -> FieldOrReason:
    if any(n % m for n, m in zip(before, after, strict=True)):
        return f"an adaptive pooling from {before} to {after} comes before it, whose windows differ in size"
    window = tuple(n // m for n, m in zip(before, after, strict=True))
    return field.then(window, window, (0,) * len(window), (1,) * len(window))


class _Op:
    """An op on tensors of a picture, outside of the modules that have rules."""

    def __init__(self, func: Any, named: dict[str, Any], input: Tensor, output: Tensor, rank: int) -> None:
        self.func, self.named, self.input, self.output, self.rank = func, named, input, output, rank
        self.name = func._schema.name.removeprefix("aten::").removeprefix("torchconv::")
        self.before, self.after = tuple(input.shape[-rank:]), tuple(output.shape[-rank:])

    def behind(self, field: ReceptiveField) -> FieldOrReason:
        """The field of the op's outputs."""
        if self.name in ("convolution", "conv"):
            if self.named.get("transposed"):
                return "a transposed convolution comes before it, whose outputs see fields of different sizes"
            kernel = self.named["weight"].shape[2:]
            return field.then(*(_each(list(v), self.rank) for v in (kernel, *map(self.named.get, WINDOW))))
        if self.name in POOLING_OPS:
            return _behind_pooling(field, self.named["kernel_size"], _Named(self.named))
        if self.name in ADAPTIVE_OPS:
            return _behind_adaptive(field, self.before, self.after)
        if self.name in PADDING_OPS:
            return self._behind_padding(field)
        if self.name == "slice" and self._dims() and self._dims()[0] >= self.input.dim() - self.rank:
            return self._behind_slice(field)
        if self.name in REDUCTIONS and self.after == (1,) * self.rank and self.named.get("keepdim"):
            return _behind_adaptive(field, self.before, self.after)
        return field if self._keeps_positions() else f"it comes after {self.name}, which mixes positions"

    def _keeps_positions(self) -> bool:
        same = self.before == self.after
        if torch.Tag.pointwise in self.func.tags or self.name in POINTWISE_OPS:
            return same
        if self.name in RESHAPES:
            return same and self.output.numel() == self.input.numel()
        if self.name in BY_DIMENSION or self.name in REDUCTIONS:
            dims = self._dims()
            return same and bool(dims) and max(dims) < self.input.dim() - self.rank
        return False

    def _dims(self) -> list[int]:
        """The dimensions that the op works on, counted from the front."""
        dims: list[int] = []
        for key in ("dim", "dim0", "dim1", "dims"):
            value = self.named.get(key)
            dims += [] if value is None else [value] if isinstance(value, int) else value
        return [dim % self.input.dim() for dim in dims]

    def _behind_padding(self, field: ReceptiveField) -> FieldOrReason:
        pad = self.named["pad" if self.name == "constant_pad_nd" else "padding"]
        before = list(reversed(pad[::2]))
        before = [0] * (self.rank - len(before)) + before[-self.rank :]
        ones = (1,) * self.rank
        return field.then(ones, ones, before, ones)

    def _behind_slice(self, field: ReceptiveField) -> FieldOrReason:
        axis = self._dims()[0] - (self.input.dim() - self.rank)
        start, step = self.named.get("start") or 0, self.named.get("step") or 1
        ones = [1] * self.rank
        stride, padding = list(ones), [0] * self.rank
        stride[axis] = step
        padding[axis] = -(start if start >= 0 else start + self.before[axis])
        return field.then(ones, stride, padding, ones)


class _Named:
    """Arguments by name, read as attributes."""

    def __init__(self, named: dict[str, Any]) -> None:
        vars(self).update(named)


def _defaults(func: Any) -> list[tuple[Any, Any]]:
    return [(parameter, parameter.default_value) for parameter in func._schema.arguments]


WINDOW = ("stride", "padding", "dilation")
POOLING_OPS = {
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "max_pool3d"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool", "avg_pool"),
}
ADAPTIVE_OPS = {
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("adaptive_avg_pool", "adaptive_max_pool"),
}
PADDING_OPS = {
    "constant_pad_nd",
    *(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)),
}
REDUCTIONS = {"mean", "sum", "amax", "amin", "prod"}
BY_DIMENSION = {
    *("cat", "split", "split_with_sizes", "unbind", "select", "slice", "stack", "_softmax", "_log_softmax"),
    *("transpose", "permute", "index_select", "flip", "cumsum"),
}
RESHAPES = {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"}
# Without torch's tag for it.
POINTWISE_OPS = {
    *("detach", "alias", "lift_fresh", "_to_copy", "copy_", "hardswish", "hardswish_", "_prelu_kernel", "rrelu"),
    *("native_dropout", "bernoulli_", "native_batch_norm", "_native_batch_norm_legit", "rectify_", "expand"),
    *("_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_group_norm"),
}
