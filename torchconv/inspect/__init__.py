"""What a model will cost, said before it runs: `memory` predicts the bytes of a step."""

from torchconv.inspect.memory import Memory, memory

__all__ = ["Memory", "memory"]
