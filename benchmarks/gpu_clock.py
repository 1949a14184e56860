"""Time and memory of calls on a GPU, by its own events and torch's allocator; on the CPU, by the clock alone.

Sides take turns, and the order is turned round after each round. Times are medians.
"""

import gc
import statistics
import time
from collections.abc import Callable

import torch
from side_by_side import Calls, Timing

ROUNDS = 5, 200  # at least and at most; one in a trial on the CPU
SPIN = 10_000_000  # cycles of the GPU, to learn how long one takes
LATE = 0.05  # seconds at most that the GPU is held up before what is timed


class Clock:
    """Times calls on a device.

    Args:
        device: cuda or cpu.
        budget: seconds after which no further round begins.
    """

    def __init__(self, device: torch.device, budget: float) -> None:
        self.gpu, self.budget = device.type == "cuda", budget
        self.least = ROUNDS[0] if self.gpu else 1
        self.cycles = 0.0  # per second
        if self.gpu:
            self._on_gpu(lambda: torch.cuda._sleep(SPIN))
            self.cycles = SPIN / self._on_gpu(lambda: torch.cuda._sleep(SPIN))

    def alternate(self, calls: Calls, queued: bool) -> Timing:
        """Time calls in alternation.

        Args:
            calls: by side. Each runs twice untimed at first.
            queued: leave out the time that the CPU takes to ask for the work: the GPU begins when all of it is asked
                for. Else a call's time is that from its beginning to its end.
        """
        seconds: dict[str, list[float]] = {side: [] for side in calls}
        asking = {}
        for side, call in calls.items():
            call()
            self._synchronize()
            began = time.perf_counter()
            call()
            asking[side] = time.perf_counter() - began
            self._synchronize()
        gc.collect()
        gc.disable()
        began, rounds = time.perf_counter(), 0
        while rounds < self.least or (time.perf_counter() - began < self.budget and rounds < ROUNDS[1]):
            for side in list(calls)[:: -1 if rounds % 2 else 1]:
                late = min(LATE, 2 * asking[side] + 1e-4) if queued else 0.0
                seconds[side].append(self._on_gpu(calls[side], late) if self.gpu else self._on_cpu(calls[side]))
            rounds += 1
        gc.enable()
        medians = {side: statistics.median(values) for side, values in seconds.items()}
        return Timing(medians, {side: min(values) for side, values in seconds.items()}, rounds)

    def peak(self, call: Callable[[], object]) -> int:
        """Bytes of tensors that a call has at most, beyond those before it; 0 on the CPU, which doesn't count them."""
        if not self.gpu:
            return 0
        gc.collect()
        self._synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()  # counts as long as it is there
        self._synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before

    def _synchronize(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def _on_gpu(self, call: Callable[[], object], late: float = 0.0) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if late:
            torch.cuda._sleep(int(late * self.cycles))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _on_cpu(self, call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began


def copy_bandwidth(clock: Clock, device: torch.device, mebibytes: int) -> float:
    """Bytes per second, read and written, of a copy of so many mebibytes."""
    source = torch.empty(mebibytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = clock.alternate({"copy": lambda: target.copy_(source)}, queued=True)
    return 2 * source.numel() / timing.median["copy"]
