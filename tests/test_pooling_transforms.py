"""torch.func's transforms, gradcheck, torch.compile, the meta device and autocast on every pooling, beside torch's."""

from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import pytest
import torch
from grid import BACKENDS, filled, strides
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from torchconv import _extension, functional, ops


@pytest.fixture(params=BACKENDS, autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.algorithm(request.param):
        yield request.param


SIZES = {1: (5,), 2: (5, 4), 3: (3, 4, 3)}


def unpool(library: Any, rank: int, x: Tensor) -> Tensor:
    """A corner of the input, unpooled to where no two values meet."""
    corner = x[(..., *[slice(2)] * rank)]
    indices = torch.arange(2**rank, device=x.device).mul(3).flip(0).reshape([2] * rank).expand_as(corner)
    return getattr(library, f"max_unpool{rank}d")(corner, indices, 2)


# Each is called with torchconv.functional or torch.nn.functional, and an input of (N, 2, *SIZES[rank]).
Call = Callable[[Any, Tensor], Tensor]
CALLS: dict[int, dict[str, Call]] = {
    1: {
        "avg_pool1d": lambda f, x: f.avg_pool1d(x, 3, 2, 1, True, False),
        "adaptive_avg_pool1d": lambda f, x: f.adaptive_avg_pool1d(x, 3),
        "adaptive_max_pool1d": lambda f, x: f.adaptive_max_pool1d(x, 3),
        "lp_pool1d": lambda f, x: f.lp_pool1d(x.square() + 0.5, 2.5, 2),
        "max_unpool1d": lambda f, x: unpool(f, 1, x),
        "local_response_norm_1d": lambda f, x: f.local_response_norm(x, 2, 0.5),
    },
    2: {
        "avg_pool2d": lambda f, x: f.avg_pool2d(x, (3, 2), (2, 1), 1, True, True),
        "avg_pool2d_divided_by_less_than_nothing": lambda f, x: f.avg_pool2d(x, 2, divisor_override=-3),
        "adaptive_avg_pool2d": lambda f, x: f.adaptive_avg_pool2d(x, (3, 6)),
        "adaptive_max_pool2d": lambda f, x: f.adaptive_max_pool2d(x, (2, None)),
        "lp_pool2d": lambda f, x: f.lp_pool2d(x.square() + 0.5, 2, (2, 3), 1),
        "lp_pool2d_of_infinite_norm": lambda f, x: f.lp_pool2d(x, inf, 2),
        "max_unpool2d": lambda f, x: unpool(f, 2, x),
        "local_response_norm_2d": lambda f, x: f.local_response_norm(x, 3, 0.5),
    },
    3: {
        "avg_pool3d": lambda f, x: f.avg_pool3d(x, 2, (1, 2, 1), (0, 1, 1), False, False),
        "adaptive_avg_pool3d": lambda f, x: f.adaptive_avg_pool3d(x, (2, None, 4)),
        "adaptive_max_pool3d": lambda f, x: f.adaptive_max_pool3d(x, (2, 3, 1)),
        "lp_pool3d": lambda f, x: f.lp_pool3d(x.square() + 0.5, 3, 2),
        "max_unpool3d": lambda f, x: unpool(f, 3, x),
        "local_response_norm_3d": lambda f, x: f.local_response_norm(x, 2, 0.5),
    },
}
NAMES = [name for calls in CALLS.values() for name in calls]


def rank_of(name: str) -> int:
    return next(rank for rank, calls in CALLS.items() if name in calls)


def pooling(name: str, library: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: CALLS[rank_of(name)][name](library, x)


def pictures(name: str, *before: int) -> Tensor:
    return filled((*before, *SIZES[rank_of(name)]))


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_any_dimension(name: str) -> None:
    ours, theirs = pooling(name, functional), pooling(name, F)
    batches = pictures(name, 3, 2, 2)
    expected = torch.stack([theirs(x) for x in batches])
    derivatives = torch.stack([grad(lambda x: theirs(x).sin().sum())(x) for x in batches])
    for dim, out_dim in ((0, 0), (1, 2), (-1, 1)):
        mapped = batches.movedim(0, dim)
        assert_close(vmap(ours, dim, out_dim)(mapped), expected.movedim(0, out_dim))
        assert_close(vmap(grad(lambda x: ours(x).sin().sum()), dim)(mapped), derivatives)
    assert_close(vmap(vmap(lambda x: ours(x[None])))(batches).squeeze(2), expected)
    assert_close(grad(lambda x: vmap(ours)(x).sin().sum())(batches), derivatives)


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_and_jacobians_equal_torch(name: str) -> None:
    ours, theirs = pooling(name, functional), pooling(name, F)
    input, tangent = pictures(name, 2, 2), filled((2, 2, *SIZES[rank_of(name)]), seed=1)
    # torch can't push tangents through its own unpooling; pulling back twice gives the same.
    by_pulling_back = jacrev(theirs)(input)
    assert_close(jacrev(ours)(input), by_pulling_back)
    assert_close(jacfwd(ours)(input), by_pulling_back)
    pushed = torch.tensordot(by_pulling_back, tangent, dims=input.dim())
    assert_close(jvp(ours, (input,), (tangent,)), (theirs(input), pushed))


@pytest.mark.parametrize("name", NAMES)
def test_hessians_equal_torch(name: str) -> None:
    def of(library: Any) -> Tensor:
        loss = lambda x: (pooling(name, library)(x).sin() * x.mean()).sum()  # noqa: E731
        # torch's own in reverse mode: forward over reverse fails in its unpooling.
        return hessian(loss)(input) if library is functional else jacrev(jacrev(loss))(input)

    input = pictures(name, 1, 2)
    assert_close(of(functional), of(F))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name: str) -> None:
    ours, input = pooling(name, functional), pictures(name, 2, 2).requires_grad_()
    assert gradcheck(
        ours,
        [input],
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=True,
    )
    assert gradgradcheck(ours, [input], check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
@pytest.mark.parametrize("algorithm", ["auto"], indirect=True)  # without the extension that is the reference
@pytest.mark.parametrize(("rank", "dynamic"), [(1, False), (2, True), (3, False)])
def test_all_of_them_compile_into_one_graph(rank: int, dynamic: bool) -> None:
    def call_all(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(functional, x) for call in CALLS[rank].values())

    torch.compiler.reset()
    compiled = torch.compile(call_all, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    # No two sizes are equal, which would be taken for a rule.
    for i, (batch, size) in enumerate(((3, 5), (4, 8)) if dynamic else ((3, 5),)):
        x = filled((batch, 2, *range(size, size + rank))).requires_grad_()
        # The reference loops over what a window holds, which may be more in a larger picture.
        with torch.compiler.set_stance("fail_on_recompile" if i > 0 and _extension.LOADED else "default"):
            actual = compiled(x)
        expected = call_all(x)
        assert_close(actual, expected)
        losses = [sum(y.sin().sum() for y in outputs) for outputs in (actual, expected)]
        assert_close(*(torch.autograd.grad(loss, x) for loss in losses))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_meta_device_gives_shapes_and_strides(name: str, channels_last: bool) -> None:
    call = pooling(name, functional)
    format = ops.memory_format_of(2 + rank_of(name), channels_last and rank_of(name) > 1)
    input = pictures(name, 2, 2).contiguous(memory_format=format)
    real, meta = call(input), call(input.to("meta"))
    assert (meta.shape, strides(meta), meta.dtype, meta.device.type) == (real.shape, strides(real), real.dtype, "meta")


@pytest.mark.parametrize("name", NAMES)
def test_autocast_gives_the_dtypes_that_torch_gives(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        input = pictures(name, 2, 2).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            actual, expected = pooling(name, functional)(input), pooling(name, F)(input)
        assert actual.dtype == expected.dtype
        # Both round in their own way where the dtype is of 16 bits.
        eps = torch.finfo(dtype).eps
        assert_close(actual, expected, **({"rtol": 12 * eps, "atol": 8 * eps} if dtype.itemsize == 2 else {}))
