"""Operations: what a plan does to the memory before it computes (data only)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Copy", "Forget", "Keep", "Load", "Operation", "Save", "Shift", "Spill"]


@dataclass(frozen=True)
class Copy:
    """Make ``target`` what ``source`` is (``llama_memory_seq_cp``)."""

    source: int
    target: int


@dataclass(frozen=True)
class Keep:
    """Keep the first ``length`` positions of ``seq`` (``llama_memory_seq_rm`` of the rest)."""

    seq: int
    length: int


@dataclass(frozen=True)
class Shift:
    """Forget the positions [begin, end) of ``seq``, and move what is behind them there (``llama_memory_seq_add``)."""

    seq: int
    begin: int
    end: int


@dataclass(frozen=True)
class Save:
    """Put what ``seq`` has on the shelf, as ``key`` (``llama_state_seq_get_data``)."""

    seq: int
    key: int


@dataclass(frozen=True)
class Load:
    """Make ``seq`` what lies on the shelf as ``key`` (``llama_state_seq_set_data``)."""

    key: int
    seq: int


@dataclass(frozen=True)
class Spill:
    """Put what lies on the shelf as ``key`` on the disk."""

    key: int


@dataclass(frozen=True)
class Forget:
    """Throw away what lies on the shelf or on the disk as ``key``."""

    key: int


Operation = Copy | Keep | Shift | Save | Load | Spill | Forget
