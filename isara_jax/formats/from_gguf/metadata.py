"""The metadata of a file's architecture: fields that begin with its name."""

from typing import Any

import numpy as np

from isara_jax.formats.from_gguf.file import GgufFile

# Facts of other fields said again, or of training.
_WITHOUT_EFFECT = (
    "vocab_size", "tensor_data_layout", "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
)  # fmt: skip


class Metadata:
    """Fields by their names without that prefix; each that might matter must be asked for.

    Args:
      file: whose they are.
      architecture: llama.cpp's name.
    """

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file, self._prefix = file, f"{architecture}."

    def get(self, name: str, kind: type, *default: Any) -> Any:
        """As `GgufFile.get`."""
        return self.file.get(self._prefix + name, kind, *default)

    def array(self, name: str, kind: type, length: int) -> list[Any] | None:
        """As `GgufFile.array`."""
        return self.file.array(self._prefix + name, kind, length)

    def number(self, name: str, *default: float) -> float:
        """A number that was written as f32, in as few digits as it needs."""
        return float(str(np.float32(self.get(name, float, *default))))

    def only(self, name: str, expected: Any, rule: str) -> None:
        """Raises `ValueError` where a field is there and says something else than `expected`."""
        if (value := self.get(name, type(expected), expected)) != expected:
            self.fail(name, value, rule)

    def fail(self, name: str, value: Any, rule: str) -> None:
        """Raises `ValueError` about one field."""
        self.file.fail(self._prefix + name, value, rule)

    def finish(self) -> None:
        """Raises `ValueError` where a field is left that might change logits."""
        self.only("attention.causal", True, "only a causal model is supported")
        ignored = {self._prefix + name for name in _WITHOUT_EFFECT}
        for name, value in self.file.left(self._prefix).items():
            if name not in ignored and value not in (0, False, "", []):
                self.file.fail(name, value, "it is not supported, and might change the logits")
