"""torch.func's transforms, torch.compile and autocast on torchconv's functions, beside torch's own."""

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional as F

import torchconv
from torchconv import functional


@pytest.fixture(params=["auto", "reference"], autouse=True)
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.manual_seed(0)
    with torchconv.algorithm(request.param):
        yield request.param


def normal(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64)


def assert_equal(function: Callable[[Any], Any]) -> None:
    """`function` of torchconv.functional gives what it gives of torch.nn.functional."""
    torch.testing.assert_close(function(functional), function(F))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [d for d in itertools.product((0, None), repeat=3) if d != (None,) * 3], ids=str)
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_vmap_over_any_operands(name: str, dims: tuple[int | None, ...], groups: int) -> None:
    operands = normal(3, 2, 4, 6, 5), normal(3, 4, 4 // groups, 3, 3), normal(3, 4)
    operands = tuple(t if dim == 0 else t[0] for t, dim in zip(operands, dims, strict=True))

    def mapped(library: Any) -> Tensor:
        return vmap(lambda *a: getattr(library, name)(*a, padding=1, groups=groups), dims)(*operands)

    def gradients(library: Any) -> Any:
        loss = lambda *a: getattr(library, name)(*a, padding=1, groups=groups).sin().sum()  # noqa: E731
        return vmap(grad(loss, argnums=(0, 1, 2)), dims)(*operands)

    assert_equal(mapped)
    assert_equal(gradients)


@pytest.mark.parametrize("out_dim", [0, 2])
def test_vmap_over_other_dimensions(out_dim: int) -> None:
    input, weight = normal(2, 3, 4, 6, 5), normal(4, 5, 2, 3, 3)
    assert_equal(lambda library: vmap(library.conv2d, (2, 0), out_dim)(input.movedim(1, 0), weight))


@pytest.mark.parametrize(
    "name_and_args",
    [("max_pool2d", (2,)), ("max_pool2d", (3, 2, 1)), ("unfold", (2,)), ("fold", ((3, 3), 2))],
    ids=str,
)
def test_vmap_and_derivatives_of_pooling_and_columns(name_and_args: tuple[str, tuple[Any, ...]]) -> None:
    name, args = name_and_args
    input = normal(3, 2, 8, 4) if name == "fold" else normal(3, 2, 2, 6, 5)

    def call(library: Any) -> Callable[[Tensor], Tensor]:
        ours = {"unfold": "im2col", "fold": "col2im"}.get(name, name)
        function = getattr(library, ours if library is functional else name)
        return lambda x: function(x, *args)

    assert_equal(lambda library: vmap(call(library))(input))
    assert_equal(lambda library: vmap(grad(lambda x: call(library)(x).sin().sum()))(input))
    assert_equal(lambda library: grad(lambda x: vmap(call(library))(x).sin().sum())(input))
    assert_equal(lambda library: jvp(call(library), (input[0],), (input[1],))[1])


def test_jacobians_and_hessian() -> None:
    input, weight = normal(1, 2, 4, 4), normal(2, 2, 3, 3)
    assert_equal(lambda library: hessian(lambda x: library.conv2d(x, weight).sin().sum())(input))
    assert_equal(lambda library: jacrev(lambda w: library.conv_transpose2d(input, w, stride=2))(weight))
    assert_equal(lambda library: jacfwd(lambda x: library.max_pool2d(x, 2))(input))


def test_a_transform_keeps_to_its_own_level() -> None:
    input, weight = normal(2, 3, 6, 6), normal(4, 3, 3, 3).requires_grad_()

    def gradient(library: Any) -> Tensor:
        return grad(lambda x: library.max_pool2d(library.conv2d(x, weight), 2).sin().sum())(input)

    # Inside of grad the weight is a constant; outside it isn't.
    assert_equal(lambda library: torch.autograd.grad(gradient(library).square().sum(), weight)[0])
    with torch.no_grad():
        assert not gradient(functional).requires_grad
        assert_equal(gradient)

    def detached(library: Any) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            with torch.no_grad():
                features = library.conv2d(x, weight)
            return (features * library.conv2d(x, weight)).sum()

        return grad(loss)(input)

    assert_equal(detached)


def test_a_backward_pass_outlives_its_level() -> None:
    input, weight, outputs = normal(2, 3, 6, 6), normal(4, 3, 3, 3), normal(5, 2, 4, 2, 2)

    def pulled_back(library: Any) -> Any:
        _, pull = vjp(lambda x, w: library.max_pool2d(library.conv2d(x, w), 2), input, weight)
        return pull(outputs[0]), vmap(pull)(outputs), grad(lambda y: pull(y)[1].sin().sum())(outputs[0])

    assert_equal(pulled_back)


def test_per_sample_gradients_without_a_warning_or_a_loop() -> None:
    model = nn.Sequential(
        torchconv.Conv2d(1, 4, 5), nn.ReLU(), torchconv.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    ).double()
    parameters = dict(model.named_parameters())
    images, targets = normal(6, 1, 12, 12), torch.arange(6) % 3

    def loss(parameters: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), target[None])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        per_sample = vmap(grad(loss), (None, 0, 0))(parameters, images, targets)
    for i in range(len(images)):
        single = grad(loss)(parameters, images[i], targets[i])
        for name in parameters:
            torch.testing.assert_close(per_sample[name][i], single[name])


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles
@pytest.mark.parametrize("dynamic", [False, True])
def test_training_compiles_into_one_graph(dynamic: bool) -> None:
    model = nn.Sequential(
        torchconv.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        torchconv.MaxPool2d(2),
        torchconv.ConvTranspose2d(8, 4, 2, stride=2),
    ).double()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 5):
        x = normal(batch, 3, 8, 8).requires_grad_()
        leaves = [x, *model.parameters()]
        outputs = compiled(x), model(x)
        torch.testing.assert_close(*outputs)
        for actual, expected in zip(*(torch.autograd.grad(y.sin().sum(), leaves) for y in outputs), strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.filterwarnings("default")
def test_the_same_tensor_twice_keeps_both_gradients_when_compiled() -> None:
    def square(x: Tensor) -> Tensor:
        return functional.conv2d(x, x).sum()

    torch.compiler.reset()
    x = normal(1, 1, 3, 3).requires_grad_()
    (actual,) = torch.autograd.grad(torch.compile(square, fullgraph=True, backend="aot_eager")(x), x)
    torch.testing.assert_close(actual, 2 * x.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_as_torch_does(dtype: torch.dtype) -> None:
    x, w, b = torch.randn(2, 3, 6, 6), torch.randn(3, 3, 3, 3, requires_grad=True), torch.randn(3)
    with torch.autocast("cpu", dtype):
        for ours, theirs in (
            (functional.conv2d, F.conv2d),
            (functional.conv_transpose2d, F.conv_transpose2d),
        ):
            actual, expected = ours(x, w, b), theirs(x, w, b)
            assert actual.dtype == expected.dtype == dtype
            torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)  # torch rounds more than once
            assert ours(x.double(), w.double()).dtype == torch.float64
            (gradient,) = torch.autograd.grad(actual.float().sum(), w)
            assert gradient.dtype == torch.float32
