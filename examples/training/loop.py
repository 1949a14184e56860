"""The loop: steps, epochs, tests and checkpoints."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from training.batches import derived_seed, order_of_epoch, prepare, training_batch
from training.checkpoint import save
from training.data import Data, Part
from training.metrics import Metrics
from training.optimization import Settings, make_optimizer, rate
from training.parallel import Processes
from training.stop import Stop

LOOK_EVERY = 10  # steps between two looks at the loss, for which a GPU has to wait


@dataclass
class Progress:
    """How far a run has come: steps in all, and of the current epoch the sums over its pictures, and its seconds."""

    step: int = 0
    loss: float = 0.0
    right: float = 0.0
    pictures: float = 0.0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = 0


class Trainer:
    """A network, what it learns from, and how far it has come."""

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, int, int],
        data: Data,
        settings: Settings,
        processes: Processes,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.settings, self.processes, self.shape, self.data = settings, processes, shape, data
        self.format = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.network = network.to(processes.device, memory_format=self.format)
        self.wrapped = processes.wrap(self.network)
        self.optimizer = make_optimizer(self.network, settings)
        self.progress = Progress()
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
        self.train_part, self.test_part = data.train.to(processes.device), data.test.to(processes.device)
        self.steps_per_epoch = math.ceil(len(data.train) / settings.batch_size)
        self.total = min(settings.epochs * self.steps_per_epoch, settings.max_steps or math.inf)
        own = getattr(network, "loss", None)
        if own is not None and settings.label_smoothing:
            raise ValueError(f"--label-smoothing: expected 0 for {settings.model}, which has a loss of its own")
        self.loss: Callable[[Tensor, Tensor], Tensor] = own or self._cross_entropy

    def _cross_entropy(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            scores, labels, label_smoothing=self.settings.label_smoothing if self.network.training else 0.0
        )

    def _autocast(self) -> AbstractContextManager:
        if self.settings.autocast == "none":
            return nullcontext()
        return torch.autocast(self.processes.device.type, getattr(torch, self.settings.autocast))

    def _scores(self, network: nn.Module, images: Tensor) -> Tensor:
        with self._autocast():
            return network(prepare(images, self.shape).contiguous(memory_format=self.format)).float()

    def step(self, rows: Tensor) -> Tensor:
        """Learn from one joined batch: the sums of loss and right answers, and the count of this process's part."""
        s, rank, world, step = self.settings, self.processes.rank, self.processes.world, self.progress.step
        # Dropout's masks too depend on nothing but the seed, the step and, so that no two are alike, the process.
        torch.manual_seed(derived_seed(s.seed, "dropout", step, rank))
        for group in self.optimizer.param_groups:
            group["lr"] = rate(s, step, int(self.total))
        images, labels = training_batch(
            self.train_part, rows, (rank, world), seed=s.seed, step=step, shift=s.shift, flip=s.flip
        )
        count = len(labels)
        if not count:  # a last batch of fewer pictures than processes: one that doesn't count keeps DDP in step
            images, labels = self.train_part.images[rows[:1]], self.train_part.labels[rows[:1]]
        scores = self._scores(self.wrapped, images)
        loss = self.loss(scores, labels)
        self.optimizer.zero_grad()
        (loss * (count * world / len(rows))).backward()  # DDP takes the mean over processes: the joined batch's loss
        self.optimizer.step()
        right = (scores.detach().argmax(1) == labels).sum()
        return torch.stack(
            [loss.detach().double() * count, right.double() * bool(count), right.new_tensor(count).double()]
        )

    @torch.no_grad()
    def test(self, part: Part | None = None) -> tuple[float, float]:
        """Mean loss and accuracy on the test pictures."""
        part = part or self.test_part
        self.processes.share_buffers(self.network)
        self.network.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.processes.device)
        for rows in torch.arange(len(part)).split(self.settings.batch_size * 2):
            mine = rows.tensor_split(self.processes.world)[self.processes.rank].to(self.processes.device)
            if len(mine):
                scores, labels = self._scores(self.network, part.images[mine]), part.labels[mine]
                sums[0] += self.loss(scores, labels).double() * len(mine)
                sums[1] += (scores.argmax(1) == labels).sum()
        self.network.train()
        loss, right = (self.processes.sum(sums) / len(part)).tolist()
        return loss, right

    def checkpoint(self, path: Path) -> None:
        """Write all that a run needs to go on."""
        if self.processes.first:
            save(
                path,
                {
                    "settings": asdict(self.settings),
                    "data": {"checksum": self.data.checksum, "classes": list(self.data.classes)},
                    "progress": asdict(self.progress),
                    "model": self.network.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                },
            )

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):  # before a checkpoint of what led to it
            raise ValueError(f"the loss is {loss} at step {self.progress.step}: try a lower --lr")

    def _add(self, sums: Tensor, seconds: float) -> None:
        """Bring the progress up to date."""
        loss, right, pictures = self.processes.sum(sums).tolist()
        self._check(loss)
        p = self.progress
        p.loss += loss
        p.right += right
        p.pictures += pictures
        p.seconds += seconds

    def epoch(self, stop: Stop, folder: Path, checkpoint_every: int | None) -> bool:
        """Steps to the end of the epoch; False if something stops it before."""
        number, first = divmod(self.progress.step, self.steps_per_epoch)
        last = min(self.steps_per_epoch, int(self.total) - number * self.steps_per_epoch)
        batches = order_of_epoch(len(self.train_part), self.settings.seed, number).split(self.settings.batch_size)
        sums, start = torch.zeros(3, dtype=torch.float64, device=self.processes.device), time.perf_counter()
        self.network.train()
        with tqdm(
            total=last,
            initial=first,
            desc=f"epoch {number + 1}/{self.settings.epochs}",
            unit="batch",
            disable=not self.processes.first,
            leave=False,
        ) as bar:
            for position in range(first, last):
                sums += self.step(batches[position])
                self.progress.step += 1
                bar.update()
                ends = position + 1 == last
                stopping = self.processes.any(bool(stop)) and not ends
                saving = not ends and checkpoint_every is not None and self.progress.step % checkpoint_every == 0
                if ends or stopping or saving or self.progress.step % LOOK_EVERY == 0:
                    now = time.perf_counter()
                    self._add(sums, now - start)
                    sums.zero_()
                    start = now
                    p = self.progress
                    bar.set_postfix(
                        loss=f"{p.loss / p.pictures:.4f}", accuracy=f"{p.right / p.pictures:.2%}", refresh=False
                    )
                if stopping or saving:
                    self.checkpoint(folder / "last.pt")
                if stopping:
                    return False
        return True

    def run(self, stop: Stop, folder: Path, metrics: Metrics | None, checkpoint_every: int | None = None) -> bool:
        """Train to the end; False if something stopped it before, after last.pt was written."""
        p = self.progress
        while p.step < self.total:
            number = p.step // self.steps_per_epoch + 1
            if not self.epoch(stop, folder, checkpoint_every):
                return False
            loss, accuracy = self.test()
            self._check(loss)
            line = {
                "epoch": number,
                "step": p.step,
                "train_loss": p.loss / p.pictures,
                "train_accuracy": p.right / p.pictures,
                "test_loss": loss,
                "test_accuracy": accuracy,
                "seconds": round(p.seconds, 3),
                "learning_rate": self.optimizer.param_groups[0]["lr"],
            }
            p.loss = p.right = p.pictures = p.seconds = 0.0
            better = accuracy > p.best_accuracy
            if better:
                p.best_accuracy, p.best_epoch = accuracy, number
            if metrics:
                metrics.add(line)
                print(
                    f"epoch {number}/{self.settings.epochs}: loss {line['train_loss']:.4f}, "
                    f"accuracy {line['train_accuracy']:.2%}; test loss {loss:.4f}, accuracy {accuracy:.2%}; "
                    f"{line['seconds']:.1f} s",
                    flush=True,
                )
            for name in ["best.pt"] * better + ["last.pt"]:
                self.checkpoint(folder / name)
            if p.step < self.total and self.processes.any(bool(stop)):
                return False
        return True
