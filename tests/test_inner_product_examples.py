"""The examples that put another inner product into a convolution: they learn, and what they claim holds."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from grid import filled, gradients, leaf, threads
from torch.autograd.gradcheck import GradcheckError
from torch.nn import functional as F
from torch.testing import assert_close

import torchconv

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example() -> Iterator[Callable[[str], ModuleType]]:
    """Reads an example as a module; one thread is fastest for what is so small."""

    def read(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    with threads(1):
        yield read


def numbers(pattern: str, text: str) -> list[float]:
    """What stands in the pattern's one group, at each place where it matches."""
    return [float(found) for found in re.findall(pattern, text)]


def test_adder_net_learns_by_either_gradient(
    example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    example("adder_net").main(["--steps", "20"])
    printed = capsys.readouterr().out
    assert printed.startswith("gradcheck: passed\ngradgradcheck: passed\n")
    for gradient in ("exact", "paper"):
        first, last = numbers(rf"{gradient} gradient, step \d+: loss (\S+)", printed)
        assert first > 2  # ln 10 is a guess's
        assert last < first / 2
        assert len(numbers(rf"{gradient} gradient: (\S+)% of 297 unseen digits are right", printed)) == 1


def test_adder_net_recognises_digits(example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    example("adder_net").main(["--gradients", "paper"])
    (right,) = numbers(r"(\S+)% of 297 unseen digits are right", capsys.readouterr().out)
    assert right > 85


def test_papers_gradients_are_those_of_two_other_distances(example: Callable[[str], ModuleType]) -> None:
    patches, weight = leaf(filled((2, 3, 5, 7))), leaf(filled((3, 4, 5), seed=1))
    module = example("adder_net")
    output = module.full_precision(patches, weight)
    assert torch.equal(output, module.l1(patches, weight))
    grad_output = filled(output.shape, seed=2)
    in_patches, in_weight = gradients(output, [patches, weight], grad_output)
    both = torch.broadcast_tensors(patches.unsqueeze(2), weight.unsqueeze(-1))
    huber = -F.huber_loss(*both, reduction="none").sum(3)
    assert_close([in_patches], gradients(huber, [patches], grad_output))
    squared = -F.mse_loss(*both, reduction="none").sum(3) / 2
    assert_close([in_weight], gradients(squared, [weight], grad_output))


def test_adder_layers_step_is_as_long_as_it_is_told_to_be(example: Callable[[str], ModuleType]) -> None:
    module = example("adder_net")
    network = module.adder_net("paper")
    network(filled((4, 1, 8, 8), torch.float32)).sum().backward()
    before = network[0].weight.grad.clone()
    module.adapt_learning_rates(network, eta=0.3)
    assert torch.equal(network[0].weight.grad, before)
    for layer in (network[3], network[6]):
        root_mean_square = layer.weight.grad.square().mean().sqrt()
        assert_close(root_mean_square, torch.tensor(0.3))


def test_max_plus_recovers_a_structuring_element_and_learns_digits(
    example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    example("max_plus").main(["--steps", "50"])
    printed = capsys.readouterr().out
    assert printed.startswith("gradcheck of Dilation2d: passed\ngradcheck of Erosion2d: passed\n")
    errors = numbers(r"structuring element, step \d+: .*largest error (\S+)", printed)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 3
    losses = numbers(r"digits, step \d+: loss (\S+)", printed)
    assert losses[-1] < losses[0] / 4
    (right,) = numbers(r"digits: (\S+)% of 297 unseen ones are right", printed)
    assert right > 80


def test_erosion_is_the_dual_of_dilation(example: Callable[[str], ModuleType]) -> None:
    module = example("max_plus")
    dilation, erosion = module.Dilation2d(2, 3, 3), module.Erosion2d(2, 3, 3)
    erosion.load_state_dict(dilation.state_dict())
    picture = filled((2, 2, 6, 5), torch.float32)
    assert torch.equal(erosion(picture), -dilation(-picture))


def test_their_gradcheck_finds_a_wrong_gradient(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    adder_net, max_plus = example("adder_net"), example("max_plus")
    monkeypatch.setitem(adder_net.GRADIENTS, "exact", adder_net.full_precision)
    right = max_plus.max_plus
    monkeypatch.setattr(max_plus, "max_plus", lambda patches, weight: right(patches, weight + weight.detach()))
    for module in (adder_net, max_plus):
        with pytest.raises(GradcheckError):
            module.check_gradients()


def test_code_of_the_page_runs() -> None:
    page = (EXAMPLES.parent / "docs" / "inner_product.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"torchconv": torchconv, "x": filled((2, 3, 8, 8)), "weight": filled((4, 3, 3, 3), seed=1)}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    assert names["y"].shape == (2, 4, 4, 4)
    layer = names["AdderConv2d"](3, 4, 3, stride=2, padding=1, bias=False).double()
    layer.weight.data = names["weight"]
    assert torch.equal(layer(names["x"]), names["y"])
    patches, weight = filled((2, 1, 5, 7)), filled((1, 4, 5), seed=1)
    assert_close(-torch.cdist(weight, patches.mT, p=1.0), names["l1"](patches, weight))
