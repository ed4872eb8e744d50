"""The oracle of a context, for the machine of test_machine.py: its memory, its outputs, what it refuses.

Written from what docstrings and llama.h promise, without a look at the binding: the twin computes, and each ``..._error``
says which exception, if any, a call must raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import offgrid_llama as og
from helpers.twin import EXACT, N_EMBD, N_VOCAB, Array, Cell, Twin, Weights

Row = tuple[int, int, list[int], bool]
"""A row of a batch: token, position, sequences, whether its logits are asked for."""
Cells = list[tuple[Cell, frozenset[int], int]]
"""The content of a state: cells, with the sequences and the position that they had."""

APART = 5e-3
"""How far a context with adapters may be from the twin; a wrong token, position or scale gives at least 0.1."""

_ONE = {"n_ctx": 256, **EXACT}
_UNIFIED = {"n_ctx": 256, "n_seq_max": 3, "kv_unified": True, **EXACT}
_VECTORS = {"n_ctx": 256, "n_seq_max": 2, "kv_unified": True, "embeddings": True, "n_ubatch": 64, **EXACT}
LAYOUTS: list[dict[str, Any]] = [
    _ONE,
    _ONE | {"n_ctx": 768, "n_seq_max": 3},
    _UNIFIED,
    _UNIFIED | {"n_ubatch": 4, "n_batch": 96},
    _ONE | {"n_ctx": 512, "n_seq_max": 2, "n_ubatch": 4, "n_batch": 96},
    _ONE | {"n_outputs_max": 2},
    _VECTORS | {"pooling_type": "none"},
    _VECTORS | {"pooling_type": "mean"},
    _VECTORS | {"pooling_type": "last"},
    _VECTORS | {"pooling_type": "cls"},
    _UNIFIED | {"type_k": "q8_0", "type_v": "q8_0", "flash_attn_type": "enabled"},
    _ONE | {"n_ctx": 512, "n_seq_max": 2, "type_k": "f16", "type_v": "f16", "flash_attn_type": "auto", "n_threads": 2},
    _ONE | {"attention_type": "non_causal"},
]
"""Options of contexts. The last three compute something else than the twin: of them only positions are held."""
BLURRED = 3


class Oracle(Twin):
    """The twin, with adapters that come and go, and the vectors that embeddings are made of."""

    def __init__(self, weights: Weights, *, unified: bool) -> None:
        super().__init__(weights, unified=unified)
        self.base = self.weights
        self.direction: Array | float = 0.0
        self.hidden = np.zeros(N_EMBD)

    def norm(self, x: Array, name: str) -> Array:
        if name != "output_norm":
            return super().norm(x, name)
        self.hidden = super().norm(x + self.direction, name)
        return self.hidden

    def adapt(self, changes: Iterable[tuple[Weights, float]]) -> None:
        """Compute with these additions to the weights from now on."""
        self.weights = dict(self.base)
        for added, scale in changes:
            for name, array in added.items():
                self.weights[name] = self.weights[name] + scale * array


@dataclass
class Saved:
    """A state, and what it must hold."""

    state: og.State
    seq_id: int | None
    cells: Cells
    layout: dict[str, Any]
    transposed: bool


@dataclass
class Expected:
    """The expected content and outputs of a context."""

    weights: Weights
    options: dict[str, Any]
    exact: bool
    twin: Oracle = field(init=False)
    loras: dict[Any, tuple[str, Weights, float]] = field(default_factory=dict)  # by the machine's thing
    vector: tuple[int, float] | None = None
    rows: dict[int, Array | None] = field(default_factory=dict)  # readable rows, and their logits where they are known
    hidden: dict[int, Array] = field(default_factory=dict)
    pooled: dict[int, Array] = field(default_factory=dict)
    moving: bool = False  # what is in memory is not where it will be, until the next decode
    copying: bool = False
    step: int = 0

    def __post_init__(self) -> None:
        self.unified: bool = self.options.get("kv_unified", False)
        self.n_seq_max: int = self.options.get("n_seq_max", 1)
        self.embeddings: bool = self.options.get("embeddings", False)
        self.pooling: str = self.options.get("pooling_type", "none")
        self.n_cells = self.options["n_ctx"] if self.unified else self.options["n_ctx"] // self.n_seq_max
        n_batch = self.options.get("n_batch", 2048)
        whole = (self.embeddings and self.pooling != "none") or "attention_type" in self.options
        self.limit = min(n_batch, self.options.get("n_ubatch", 512)) if whole else n_batch
        self.transposed = self.options["flash_attn_type"] == "disabled"
        self.twin = Oracle(self.weights, unified=self.unified)

    # Batches ----------------------------------------------------------------------------------------------------------

    def refused(self, rows: list[Row]) -> bool:
        """Return whether a batch must be a ValueError: nothing of it may reach llama.h."""
        asked = len(rows) if self.embeddings else sum(logits for *_, logits in rows)
        return (
            not 0 < len(rows) <= self.limit
            or asked > (self.options.get("n_outputs_max") or self.limit)
            or any(token >= N_VOCAB or max(seqs) >= self.n_seq_max for token, _, seqs, _ in rows)
            or (not self.unified and any(len(seqs) > 1 for _, _, seqs, _ in rows))
        )

    def decode_error(self, rows: list[Row]) -> type[Exception] | None:
        """Return what decode() must raise for a batch."""
        if self.refused(rows):
            return ValueError
        there = {seq: self.twin.positions(seq) for seq in range(self.n_seq_max)}
        for seq, before in there.items():
            new = [pos for _, pos, seqs, _ in rows if seq in seqs]
            if new and (new != list(range(new[0], new[0] + len(new))) or (len(before) and new[0] != before.stop)):
                return og.InvalidBatch
            sets = [set(seqs) for *_, seqs, _ in rows if seq in seqs]
            if sets and not set.intersection(*sets):
                return og.InvalidBatch
        if any(there[seq] != there[seqs[0]] for *_, seqs, _ in rows for seq in seqs):
            return og.InvalidBatch
        streams = [range(self.n_seq_max)] if self.unified else [[seq] for seq in range(self.n_seq_max)]
        for stream in streams:
            used = sum(not cell.seqs.isdisjoint(stream) for cell in self.twin.cells)
            if used + sum(not set(seqs).isdisjoint(stream) for _, _, seqs, _ in rows) > self.n_cells:
                return og.NoKVSlot
        return None

    def begin(self, *, moved: bool = True) -> None:
        """Note that a decode has reached llama.h: the rows before it are gone; ``moved`` says what was put off is done."""
        self.rows, self.hidden, self.pooled = {}, {}, {}
        self.step += 1
        if moved:
            self.moving = self.copying = False

    def add(self, rows: list[Row]) -> None:
        """Compute a batch that was decoded."""
        if not rows:
            return
        asked = [i for i, row in enumerate(rows) if row[3] or self.embeddings]
        if not self.exact:
            self.twin.cells += [Cell(pos, seqs) for _, pos, seqs, _ in rows]
            self.rows = dict.fromkeys(asked)
            return
        logits = self.twin.batch([row[:3] for row in rows])
        self.rows = {i: logits[i] for i in asked}
        self.hidden = {i: self.twin.hidden[i] for i in asked}
        if self.embeddings and self.pooling != "none":
            for seq in {seq for *_, seqs, _ in rows for seq in seqs}:
                mine = np.array([self.hidden[i] for i, row in enumerate(rows) if seq in row[2]])
                self.pooled[seq] = {"mean": mine.mean(axis=0), "cls": mine[0], "last": mine[-1]}[self.pooling]

    def add_until(self, rows: list[Row], stops: Mapping[int, int]) -> None:
        """Compute the part of a batch that an aborted decode has left: each sequence up to its stop."""
        self.add([row for row in rows if all(row[1] < stops[seq] for seq in row[2])])
        self.rows, self.hidden, self.pooled = {}, {}, {}

    # Adapters ---------------------------------------------------------------------------------------------------------

    def use(self, loras: dict[Any, tuple[str, Weights, float]]) -> None:
        """Compute with these adapters, {thing: (name of its file, what it adds, scale)}, from now on."""
        self.loras = loras
        self.twin.adapt((added, scale) for _, added, scale in loras.values())

    def steer(self, vector: tuple[int, float] | None, direction: Array | float) -> None:
        self.vector, self.twin.direction = vector, direction

    # States -----------------------------------------------------------------------------------------------------------

    @property
    def layout(self) -> dict[str, Any]:
        """The properties that must be the same where a state is saved and where it is loaded."""
        scales: dict[str, float] = {}
        for name, _, scale in self.loras.values():
            scales[name] = scales.get(name, 0.0) + scale
        return {
            "streams": None if self.unified else self.n_seq_max,
            "types": (self.options["type_k"], self.options["type_v"]),
            "loras": {name: scale for name, scale in scales.items() if scale},
            "vector": self.vector,
        }

    def save(self, seq_id: int | None) -> Cells:
        """Return what a state of one sequence, or of all, must hold."""
        cells = self.twin.cells if seq_id is None else [cell for cell in self.twin.cells if seq_id in cell.seqs]
        return [(cell, frozenset(cell.seqs if seq_id is None else {seq_id}), cell.pos) for cell in cells]

    def load_error(self, saved: Saved, seq_id: int | None) -> tuple[bool, bool]:
        """Return whether a load must fail with nothing changed, and whether it must fail and forget."""
        if (saved.seq_id is None) != (seq_id is None) or saved.layout != self.layout or self.copying:
            return True, False
        fits = saved.transposed == self.transposed or not saved.cells
        if seq_id is not None:
            others = [cell for cell in self.twin.cells if cell.seqs - {seq_id} and self.unified]
            return False, not (fits and len(others) + len(saved.cells) <= self.n_cells)
        counts = [len(saved.cells)]
        if not self.unified:
            counts = [sum(seq in seqs for _, seqs, _ in saved.cells) for seq in range(self.n_seq_max)]
        seqs = {seq for _, seqs, _ in saved.cells for seq in seqs}
        return False, not (fits and max(counts) <= self.n_cells and max(seqs, default=0) < self.n_seq_max)

    def forget(self, seq_id: int | None) -> None:
        """Empty the sequence, or all, that a state is loaded into."""
        if seq_id is None:
            self.twin.clear()
            self.moving = False
        else:
            self.twin.remove(seq_id)

    def load(self, saved: Saved, seq_id: int | None) -> None:
        """Hold what a state holds."""
        self.forget(seq_id)
        for old, seqs, pos in saved.cells:
            cell = Cell(pos, seqs if seq_id is None else [seq_id])
            cell.keys, cell.values = old.keys, old.values
            self.twin.cells.append(cell)
