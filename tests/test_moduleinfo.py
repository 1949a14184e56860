"""PyTorch's own samples of these modules: torchconv's have the same state, repr, results and derivatives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.lazy import LazyModuleMixin
from torch.testing._internal.common_modules import FunctionInput, ModuleErrorEnum, ModuleInfo, ModuleInput, module_db
from torch.utils._pytree import tree_leaves
from torch_suite import (
    assert_same_form,
    assert_same_results,
    call_of,
    one_thread,  # noqa: F401  # a fixture
    results,
    widened,
)

import torchconv

FILES = nn.modules.conv, nn.modules.pooling, nn.modules.fold
NOT_OURS = {"FractionalMaxPool2d", "FractionalMaxPool3d"}
NAMES = sorted({name for file in FILES for name in file.__all__} - NOT_OURS | {"LocalResponseNorm", "Linear"})


def max_unpool_inputs(rank: int) -> Callable[..., list[ModuleInput]]:
    def inputs(info: Any, device: str, dtype: torch.dtype, requires_grad: bool, training: bool) -> list[ModuleInput]:
        torch.manual_seed(0)
        made = []
        for batch in ((2, 3), (3,)):
            input = torch.randn(*batch, *(8, 6, 4)[:rank], dtype=dtype)
            pooled, indices = getattr(nn, f"MaxPool{rank}d")(3, 2, 1, return_indices=True)(input)
            size = list(input.shape[-rank:])
            made.append(ModuleInput(FunctionInput(3, 2, 1), FunctionInput(pooled, indices, output_size=size)))
            pooled, indices = getattr(nn, f"MaxPool{rank}d")(2, return_indices=True)(input)
            made.append(ModuleInput(FunctionInput(2), FunctionInput(pooled, indices)))
        return made

    return inputs


def unfold_inputs(info: Any, device: str, dtype: torch.dtype, requires_grad: bool, training: bool) -> list[ModuleInput]:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 6, 7, dtype=dtype)
    constructors = (
        FunctionInput(2),
        FunctionInput((2, 3), dilation=(2, 1), padding=(1, 0), stride=(1, 2)),
        FunctionInput(kernel_size=3, padding=1),
    )
    return [
        ModuleInput(constructor, FunctionInput(input)) for constructor in constructors for input in (image, image[0])
    ]


def fold_inputs(info: Any, device: str, dtype: torch.dtype, requires_grad: bool, training: bool) -> list[ModuleInput]:
    made = []
    for sample in unfold_inputs(info, device, dtype, requires_grad, training):
        arguments = sample.constructor_input
        columns = nn.Unfold(*arguments.args, **arguments.kwargs)(*sample.forward_input.args)
        made.append(ModuleInput(FunctionInput((6, 7), *arguments.args, **arguments.kwargs), FunctionInput(columns)))
    return made


# These have no ModuleInfo of PyTorch's.
BY_HAND = [
    *(ModuleInfo(getattr(nn, f"MaxUnpool{rank}d"), module_inputs_func=max_unpool_inputs(rank)) for rank in (1, 2, 3)),
    ModuleInfo(nn.Unfold, module_inputs_func=unfold_inputs),
    ModuleInfo(nn.Fold, module_inputs_func=fold_inputs),
]
INFOS = [info for info in module_db if info.module_cls.__name__ in NAMES] + BY_HAND
CASES = [
    pytest.param(info, dtype, id=f"{info.module_cls.__name__}-{str(dtype)[6:]}")
    for info in INFOS
    for dtype in info.supported_dtypes("cpu")
]


def made(library: Any, info: ModuleInfo, sample: ModuleInput, dtype: torch.dtype, training: bool) -> nn.Module:
    arguments = sample.constructor_input
    torch.manual_seed(0)
    module: nn.Module = getattr(library, info.module_cls.__name__)(*arguments.args, **arguments.kwargs)
    return module.to(dtype).train(training)


def bound(module: nn.Module, sample: ModuleInput) -> tuple[Callable[..., Any], list[Tensor]]:
    """The module's forward as a function of its parameters and inputs."""

    def forward(parameters: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        return functional_call(module, parameters, args, kwargs)

    given = sample.forward_input
    return call_of(forward, (dict(module.named_parameters()), *given.args), given.kwargs)


def test_every_module_of_these_files_is_here() -> None:
    assert sorted(info.module_cls.__name__ for info in INFOS) == NAMES


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("info", "dtype"), CASES)
def test_samples(info: ModuleInfo, dtype: torch.dtype, training: bool) -> None:
    torch.manual_seed(0)
    for sample in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=training):
        theirs, ours = (made(library, info, sample, dtype, training) for library in (nn, torchconv))
        assert repr(ours) == repr(theirs)
        given = sample.forward_input
        expected = tree_leaves(theirs(*given.args, **given.kwargs))
        if isinstance(ours, LazyModuleMixin):
            ours(*given.args, **given.kwargs)
            assert repr(ours) == repr(theirs)
        ours.load_state_dict(theirs.state_dict())
        for a, e in zip(tree_leaves(ours(*given.args, **given.kwargs)), expected, strict=True):
            assert_same_form(a, e, next(iter((*given.args, *given.kwargs.values()))))

        call, tensors = bound(ours, sample)
        exact, _ = bound(theirs, sample)
        wide = [widened(t) for t in tensors]
        assert_same_results(results(call, tensors, order=2, forward=True), results(exact, wide, order=2, forward=True))


@pytest.mark.parametrize("info", [info for info in INFOS if info.module_error_inputs_func], ids=lambda info: info.name)
def test_errors(info: ModuleInfo) -> None:
    settings = {"device": "cpu", "dtype": torch.float32, "requires_grad": False, "training": True}
    for error in info.module_error_inputs_func(info, **settings):
        sample, when = error.module_error_input, error.error_on
        for library in (nn, torchconv):
            if when is ModuleErrorEnum.CONSTRUCTION_ERROR:
                with pytest.raises(error.error_type):
                    made(library, info, sample, torch.float32, training=True)
            else:
                module = made(library, info, sample, torch.float32, training=True)
                with pytest.raises(error.error_type):
                    module(*sample.forward_input.args, **sample.forward_input.kwargs)
