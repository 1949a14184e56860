"""What the suites that hold torchconv against torch share: a call, its derivatives, and what counts as equal."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from grid import threads
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close
from torch.testing._comparison import default_tolerances
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from torchconv.ops import is_channels_last

Call = Callable[..., Any]  # of tensors alone
Results = dict[str, list[Tensor]]

RANKED = (
    "conv",
    "conv_transpose",
    "max_pool",
    "max_unpool",
    "avg_pool",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "lp_pool",
)
FUNCTIONS = (*(f"{family}{rank}d" for family in RANKED for rank in (1, 2, 3)), "local_response_norm", "unfold", "fold")

WIDE = {
    torch.bfloat16: torch.float64,
    torch.float16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
NARROW = (torch.bfloat16, torch.float16, torch.complex32)
# Terms of which a result is the sum, at most, and which 16-bit types round each on its own.
TERMS = {"output": 2, "gradient": 2, "second gradient": 4, "tangent": 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For problems that are too small for more."""
    with threads(1):
        yield


def picks(function: str) -> bool:
    """Whether the function only moves values, so that its output is torch's bit for bit."""
    return function.startswith(("max_", "adaptive_max_", "unfold"))


def is_smooth(tensor: Tensor) -> bool:
    """Whether it has a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def widened(tensor: Tensor) -> Tensor:
    """The same values in a type of 64 bits."""
    return tensor.to(WIDE.get(tensor.dtype, tensor.dtype))


def call_of(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Call, list[Tensor]]:
    """A call as a function of the tensors among its arguments, and these tensors."""
    leaves, spec = tree_flatten((tuple(args), kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def call(*tensors: Tensor) -> Any:
        arguments = list(leaves)
        for i, tensor in zip(places, tensors, strict=True):
            arguments[i] = tensor
        args, kwargs = tree_unflatten(arguments, spec)
        return function(*args, **kwargs)

    return call, [leaves[i] for i in places]


def _direction(like: Tensor, seed: int) -> Tensor:
    """A random vector, the same in a narrow and in a wide type."""
    values = torch.randn(*like.shape, 2, generator=torch.Generator().manual_seed(seed)).bfloat16().double()
    return (torch.view_as_complex(values) if like.is_complex() else values[..., 0]).to(like.dtype)


def _tangent(like: Tensor) -> Tensor:
    """A vector that is equal where the values are, so that unpooling two of them to one place has one answer."""
    wide = widened(like).resolve_conj().resolve_neg()
    angles = (torch.view_as_real(wide) if wide.is_complex() else wide).double()
    values = (3 * angles).cos().bfloat16().double()
    return (torch.view_as_complex(values) if wide.is_complex() else values).to(like.dtype)


def results(
    call: Call,
    tensors: Sequence[Tensor],
    order: int = 0,
    forward: bool = False,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
) -> Results:
    """What a call returns, its gradients up to an order, and its forward derivative.

    `layout` is that of the output's gradient.
    """
    leaves = [t.detach().requires_grad_(order > 0 and is_smooth(t)) for t in tensors]
    inputs = [t for t in leaves if t.requires_grad]
    outputs = tree_leaves(call(*leaves))
    found = {"output": [t.detach() for t in outputs]}
    unused: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    if order > 0:
        outputs = [t for t in outputs if is_smooth(t)]
        weights = [layout(_direction(t, 10 + i)).detach().requires_grad_() for i, t in enumerate(outputs)]
        gradients = torch.autograd.grad(outputs, inputs, weights, create_graph=order > 1, **unused)
        found["gradient"] = [t.detach() for t in gradients]
    if order > 1:
        curved = [t for t in gradients if t.requires_grad]
        directions = [_direction(t, 20 + i) for i, t in enumerate(curved)]
        found["second gradient"] = list(torch.autograd.grad(curved, [*inputs, *weights], directions, **unused))
    if forward:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, _tangent(t)) if is_smooth(t) else t for t in map(Tensor.detach, tensors)]
            outputs = [t for t in tree_leaves(call(*duals)) if is_smooth(t)]
            found["tangent"] = [forward_ad.unpack_dual(t).tangent for t in outputs]
    return found


def assert_near(actual: Tensor, exact: Tensor, terms: int = 1) -> None:
    """Equal within assert_close's bounds for the actual dtype, where the absolute one is for values of up to 1.

    `exact` may be in a wider dtype. Where a sum cancels, its error is of the size of its terms; the largest element
    stands for these. A 16-bit type also rounds each of `terms` terms on its own.
    """
    assert actual.shape == exact.shape
    if not is_smooth(exact):
        assert torch.equal(actual, exact)
        return
    rtol, atol = default_tolerances(actual.dtype)
    if actual.dtype in NARROW:
        rounding = (terms - 1) * torch.finfo(actual.dtype).eps
        rtol, atol = max(rtol, rounding), max(atol, rounding)
    largest = float(exact.abs().nan_to_num(0, 0).max()) if exact.numel() else 0.0
    assert_close(actual.to(exact.dtype), exact, rtol=rtol, atol=atol * max(1.0, largest), equal_nan=True)


def assert_same_results(actual: Results, exact: Results) -> None:
    """All of `results` equal within `assert_near`'s bounds."""
    for kind, expected in exact.items():
        for i, (ours, theirs) in enumerate(zip(actual[kind], expected, strict=True)):
            try:
                assert_near(ours, theirs, TERMS[kind])
            except AssertionError as error:
                raise AssertionError(f"{kind} {i}: {error}") from error


def assert_same_form(actual: Tensor, expected: Tensor, input: Tensor) -> None:
    """Equal in shape, dtype and memory format; where torch has forgotten the input's format, that is as good."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if all(min(tensor.shape[1:], default=1) > 1 for tensor in (actual, input)):  # others have several formats at once
        assert is_channels_last(actual) in (is_channels_last(expected), is_channels_last(input))
