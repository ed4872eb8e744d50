"""Operations: changes of the memory that a plan makes before it computes (data only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Adapt", "Copy", "Forget", "Keep", "Load", "Operation", "Save", "Shift", "Spill"]


@dataclass(frozen=True)
class Copy:
    """Give ``target`` the positions of ``source`` (``llama_memory_seq_cp``)."""

    source: int
    target: int


@dataclass(frozen=True)
class Keep:
    """Keep the first ``length`` positions of ``seq``, and remove the rest (``llama_memory_seq_rm``)."""

    seq: int
    length: int


@dataclass(frozen=True)
class Shift:
    """Remove the positions [begin, end) of ``seq``, and move those behind them there (``llama_memory_seq_add``)."""

    seq: int
    begin: int
    end: int


@dataclass(frozen=True)
class Save:
    """Put the state of ``seq`` on the shelf, as ``key`` (``llama_state_seq_get_data``)."""

    seq: int
    key: int


@dataclass(frozen=True)
class Load:
    """Give ``seq`` the state that lies on the shelf as ``key`` (``llama_state_seq_set_data``)."""

    key: int
    seq: int


@dataclass(frozen=True)
class Spill:
    """Move the state that lies on the shelf as ``key`` from host memory to the disk."""

    key: int


@dataclass(frozen=True)
class Forget:
    """Delete the state that lies on the shelf as ``key``, in host memory or on the disk."""

    key: int


@dataclass(frozen=True)
class Adapt:
    """Compute with these adapters from now on (``llama_set_adapters_lora``)."""

    adapters: tuple[Any, ...]


Operation = Adapt | Copy | Keep | Shift | Save | Load | Spill | Forget
