"""What a run reports: a line of JSON for each epoch, and TensorBoard's curves."""

import json
import os
from pathlib import Path
from typing import Any

from training.checkpoint import write_whole


class Metrics:
    """A file of JSON lines, and the same in TensorBoard if asked for.

    Lines of steps after `step` are removed: a run that is resumed there will write them again.

    Raises:
        ModuleNotFoundError: TensorBoard isn't installed.
        OSError: the file can't be written.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ModuleNotFoundError("--tensorboard: needs TensorBoard: pip install tensorboard") from None
            self._writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)
        kept = [line for line in read(self.path) if line["step"] <= step]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add(self, line: dict[str, Any]) -> None:
        """Append a line; on a full disk the file stays as it was."""
        size = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            os.truncate(self.path, size)
            raise OSError(f"{self.path}: can't be written: {error.strerror or error}") from None
        if self._writer:
            for name in ("loss", "accuracy"):
                for part in ("train", "test"):
                    self._writer.add_scalar(f"{name}/{part}", line[f"{part}_{name}"], line["step"])
            self._writer.add_scalar("learning_rate", line["learning_rate"], line["step"])
            self._writer.flush()

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._writer:
            self._writer.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, but for what isn't one, as the last after a power cut."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines
