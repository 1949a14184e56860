"""How a run is asked to stop between two steps."""

import math
import signal
import time
from types import FrameType, TracebackType


class Stop:
    """Ctrl-C, SIGTERM and the end of the time are asked for at each step; a second Ctrl-C interrupts at once."""

    def __init__(self, seconds: float | None, alone: bool) -> None:
        self.signal = 0
        self._alone = alone
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def __bool__(self) -> bool:
        return self.signal != 0 or time.monotonic() >= self._end

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and self._alone:  # torchrun passes on a Ctrl-C that has come already
            raise KeyboardInterrupt
        self.signal = number

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
