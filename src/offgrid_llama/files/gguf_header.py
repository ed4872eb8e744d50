"""The contents of a GGUF header: `Metadata`, values by key with a model's hyperparameters among them, and `Tensor`."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Metadata", "Overridden", "Tensor", "Value"]

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]


@dataclass(frozen=True)
class Tensor:
    """One row of the table of tensors. ``shape`` is in ggml's order, the contiguous dimension first."""

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    offset: int

    @property
    def n_elements(self) -> int:
        """The product of ``shape``."""
        return math.prod(self.shape)


class Metadata(Mapping[str, Value]):
    """Values by key, as llama.cpp reads them: the keys of a model's hyperparameters begin with its architecture."""

    @property
    def architecture(self) -> str:
        """The model's architecture, for instance ``llama``; empty when the file names none."""
        value = self.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    def hparam(self, name: str, default: int = 0) -> int:
        """Return the largest of ``<architecture>.<name>``, which may be one number or one for each layer."""
        value = self.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list):
            value = max((item for item in value if isinstance(item, int)), default=default)
        return value if isinstance(value, int) else default

    def kv_heads(self) -> list[int]:
        """Return the number of heads with keys and values in each layer: 0 for a recurrent layer."""
        heads = self.get(f"{self.architecture}.attention.head_count_kv")
        if isinstance(heads, list):
            return [count for count in heads if isinstance(count, int)]
        count = self.hparam("attention.head_count_kv", self.hparam("attention.head_count"))
        every = max(self.hparam("full_attention_interval", 1), 1)
        return [0 if layer % every else count for layer in range(1, self.hparam("block_count") + 1)]


class Overridden(Metadata):
    """Metadata with the values that a load takes instead of the file's."""

    def __init__(self, metadata: Mapping[str, Value], overrides: Mapping[str, bool | int | float | str]) -> None:
        self._values: Mapping[str, Value] = ChainMap(dict(overrides), metadata)  # type: ignore[arg-type]

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
