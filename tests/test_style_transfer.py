"""The painting loop on a small random network: the loss falls, the best is kept, a run ends when and as it should."""

import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from grid import threads
from torch import Tensor, nn

from torchconv.style import CONTENT_LAYERS, STYLE_LAYERS, Evaluation, StyleTransfer, estimate


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield


class SmallNetwork(nn.Module):
    """A convolution of random weights for each layer, on activations of the size of VGG's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = sorted({*CONTENT_LAYERS, *STYLE_LAYERS})
        pairs = pairwise([3, 8, 8, 12, 12, 12, 12])
        self.convolutions = nn.ModuleList([nn.Conv2d(i, o, 3, padding=1) for i, o in pairs]).requires_grad_(False)
        self.calls = 0
        self.spoil: dict[int, float] = {}  # number of the call: factor on its activations

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        x = 255 * (picture - 0.45)
        activations = {}
        for name, convolution in zip(self.names, self.convolutions, strict=True):
            x = 2 * convolution(x).relu()
            activations[name] = x * self.spoil.get(self.calls, 1.0)
        return activations


def picture(seed: int, height: int = 20, width: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand((1, 3, 5, 6), generator=generator)
    return nn.functional.interpolate(small, (height, width), mode="bilinear")


def start(network: SmallNetwork | None = None, **options: object) -> StyleTransfer:
    return StyleTransfer(network or SmallNetwork(), picture(1), [picture(2, 16, 18) ** 2], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("init", ["content", "noise"])
def test_loss_falls_and_is_that_of_the_result(optimizer: str, init: str) -> None:
    transfer = start(optimizer=optimizer, init=init)
    painting = transfer.run(40)
    assert painting.evaluations == 40
    assert painting.seconds > 0
    assert not painting.fell_back
    assert painting.last.loss < painting.first.loss / (10 if optimizer == "lbfgs" else 2)
    assert painting.picture.shape == (1, 3, 20, 24)
    assert painting.picture.min() >= 0
    assert painting.picture.max() <= 1
    with torch.no_grad():
        losses = transfer.objective(painting.picture)
    assert losses.content.item() == pytest.approx(painting.last.content_loss, rel=1e-4)
    assert losses.style.item() == pytest.approx(painting.last.style_loss, rel=1e-4)


def test_lbfgs_moves_from_the_first_step_on_and_recovers_from_overshooting() -> None:
    losses: list[float] = []
    start().run(15, lambda evaluation: losses.append(evaluation.loss))
    assert losses[1] < 0.95 * losses[0]
    assert min(losses) < 0.1 * losses[0]


def test_callback_sees_each_evaluation_and_can_stop() -> None:
    seen: list[Evaluation] = []

    def stop_at_seven(evaluation: Evaluation) -> bool:
        seen.append(evaluation)
        return evaluation.number == 7

    painting = start().run(100, stop_at_seven)
    assert [evaluation.number for evaluation in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert painting.evaluations == 7
    assert painting.first == seen[0]
    assert painting.last.loss == pytest.approx(min(evaluation.loss for evaluation in seen), rel=1e-4)
    assert all(a.seconds < b.seconds for a, b in pairwise(seen))
    for i, evaluation in enumerate(seen):
        assert evaluation.improved == (evaluation.loss < min((e.loss for e in seen[:i]), default=float("inf")))


@pytest.mark.parametrize("evaluations", [1, 2, 3])
def test_few_evaluations(evaluations: int) -> None:
    painting = start().run(evaluations)
    assert painting.evaluations == evaluations
    if evaluations == 1:
        torch.testing.assert_close(painting.picture, picture(1))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e4], ids=["nan", "inf", "explosion"])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_divergence_restores_the_best_and_goes_on_with_adam(factor: float, optimizer: str) -> None:
    network = SmallNetwork()
    transfer = start(network, optimizer=optimizer)
    network.spoil = {network.calls + 8: factor}
    seen: list[Evaluation] = []
    painting = transfer.run(30, seen.append)  # type: ignore[arg-type]
    assert painting.fell_back == (optimizer == "lbfgs")
    assert [evaluation.optimizer for evaluation in seen] == [optimizer] * 8 + ["adam"] * 22
    assert not seen[7].improved
    before = min(evaluation.loss for evaluation in seen[:7])
    assert seen[8].loss == pytest.approx(before, rel=1e-4)  # the best picture again
    assert painting.last.loss < before
    assert painting.picture.isfinite().all()


def test_interruption_leaves_the_best_picture() -> None:
    transfer = start()
    losses = []

    def interrupt(evaluation: Evaluation) -> None:
        losses.append(evaluation.loss)
        if evaluation.number == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer.run(100, interrupt)
    with torch.no_grad():
        assert transfer.objective(transfer.best_picture).total.item() == pytest.approx(min(losses), rel=1e-4)


def test_same_seed_same_picture() -> None:
    first, again, other = (start(init="noise", seed=seed).run(5).picture for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_leaves_inputs_and_global_random_state_alone() -> None:
    content, style = picture(1), picture(2)
    network = SmallNetwork()
    state = torch.get_rng_state()
    StyleTransfer(network, content, [style], init="noise").run(3)
    assert torch.equal(content, picture(1))
    assert torch.equal(style, picture(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_decide_between_content_and_styles() -> None:
    network = SmallNetwork()
    arguments = (network, picture(1), [picture(2), picture(3)])
    content_only = StyleTransfer(*arguments, init="noise", style_weights=[0, 0]).run(30)
    assert content_only.last.style_loss == 0
    assert content_only.last.content_loss < content_only.first.content_loss / 5
    second_only = StyleTransfer(*arguments, content_weight=0, style_weights=[0, 1]).run(20).picture
    alone = StyleTransfer(network, picture(1), [picture(3)], content_weight=0).run(20).picture
    torch.testing.assert_close(second_only, alone, atol=1e-3, rtol=0)


def test_refuses_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="optimizer: expected lbfgs or adam, got 'sgd'"):
        start(optimizer="sgd")
    with pytest.raises(ValueError, match="init: expected content or noise, got 'blank'"):
        start(init="blank")
    with pytest.raises(ValueError, match="evaluations: expected 1 or more, got 0"):
        start().run(0)
    network = SmallNetwork()
    transfer = start(network)
    network.spoil = {network.calls + 1: float("nan")}
    with pytest.raises(ValueError, match="loss at the start is nan"):
        transfer.run(5)


def test_estimate_grows_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    network = SmallNetwork()
    # This process may have needed more before, which is its peak then.
    monkeypatch.setattr(sys.modules["torchconv.style.estimate"], "peak_memory", lambda: 0)
    small, large = (estimate(network, *size) for size in ((64, 64), (640, 640)))
    assert 0 < small.seconds < large.seconds
    assert small.bytes < large.bytes
