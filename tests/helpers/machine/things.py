"""Objects of the library with what is known of them, and two threads that use them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import offgrid_llama as og
from helpers.adapters import write_lora
from helpers.oracle import Expected, Row
from helpers.twin import N_EMBD, write_tiny_llama
from offgrid_llama import samplers as S  # noqa: N812 - short, as every rule of samplers names a dozen

PATIENCE = 60
"""Seconds until two threads that wait for each other are called a deadlock."""

PIECES = ["<unk>", "<s>", "</s>", "\u2581", *map(chr, range(97, 123)), *map(chr, range(65, 91)), *"01234"]
EOS, LETTERS = 2, range(4, 8)  # a to d
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (len(PIECES) - 3),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": EOS,
}
GRAMMAR = "root ::= [a-d] [a-d]*"

MENU: list[tuple[str, Callable[[og.Vocab], og.Sampler]]] = [
    ("top-k", lambda _: S.top_k(3)),
    ("top-p", lambda _: S.top_p(0.9)),
    ("min-p", lambda _: S.min_p(0.1)),
    ("typical", lambda _: S.typical(0.9)),
    ("temp", lambda _: S.temp(0.7)),
    ("temp-ext", lambda _: S.temp_ext(0.8, 0.3)),
    ("xtc", lambda _: S.xtc(0.5, 0.1, 1, seed=3)),
    ("top-n-sigma", lambda _: S.top_n_sigma(2.0)),
    ("penalties", lambda vocab: S.penalties(vocab, 16, 1.3, 0.1, 0.1)),
    ("dry", lambda vocab: S.dry(vocab, 0.8, 1.75, 1, 32, ["a"])),
    ("logit-bias", lambda vocab: S.logit_bias(vocab, {5: 2.0, 6: -float("inf")})),
    ("infill", S.infill),
    ("grammar", lambda vocab: og.Grammar.gbnf(GRAMMAR).sampler(vocab)),
    ("greedy", lambda _: S.greedy()),
    ("dist", lambda _: S.dist(5)),
    ("mirostat", lambda vocab: S.mirostat(vocab, 5, m=20)),
    ("mirostat-v2", lambda _: S.mirostat_v2(5)),
    ("adaptive-p", lambda _: S.adaptive_p(0.4, seed=5)),
]
NEEDS_VOCAB = {"penalties", "dry", "logit-bias", "infill", "grammar", "mirostat"}
SELECTING = {"greedy", "dist", "mirostat", "mirostat-v2", "adaptive-p"}
SORTING = {"top-k", "top-p", "min-p", "typical", "xtc", "top-n-sigma", "infill", "temp-ext"}
KEEPS_THE_LARGEST = {"top-k", "top-p", "min-p", "temp", "temp-ext", "greedy"}


class Thing:
    """An object of the library, and what is known of it."""

    def __init__(self, kind: str, obj: Any, *parents: Thing) -> None:
        self.kind = kind
        self.obj = obj
        self.open = True
        self.spent = False  # closed, and used once more since
        self.parents = list(parents)
        self.children: list[Thing] = []
        for parent in parents:
            parent.children.append(self)

    def close(self) -> None:
        """Know that it is closed, and what hangs on it."""
        for child in self.children:
            child.close()
        self.open = False


class Context(Thing):
    def __init__(self, obj: og.Context, model: Thing, expected: Expected) -> None:
        super().__init__("context", obj, model)
        self.model = model
        self.expected = expected
        self.view: tuple[Any, Any, int] | None = None  # logits that were kept, what they hold, their step

    def close(self) -> None:
        super().close()
        self.expected.loras = {}  # it lets go of them


class Chain(Thing):
    def __init__(self, obj: og.SamplerChain, names: list[str], model: Thing | None) -> None:
        super().__init__("chain", obj, *([model] if model else []))
        self.model = model
        self.names = names
        self.begun = False  # whether a letter was accepted, so that the text may end


class World:
    """The world that all machines share: files, weights, what adapters add."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.gguf"
        self.weights = write_tiny_llama(self.path, more=TOKENIZER)
        self.loras = [folder / f"lora-{i}.gguf" for i in range(2)]
        self.added = [write_lora(path, self.weights, i) for i, path in enumerate(self.loras)]
        rng = np.random.default_rng(1)
        self.directions = [rng.standard_normal(N_EMBD).astype(np.float32) for _ in range(2)]
        self.steps = self.total = 0


def run(call: Callable[[], Any]) -> Any:
    """Return what a call returns or raises; of an exception without its frames, which would keep objects alive."""
    try:
        return call()
    except Exception as error:
        return error.with_traceback(None)


def expect(call: Callable[[], Any], *errors: type[Exception] | None) -> Any:
    """Call, and require one of ``errors``, or none at all where there is none; return the result, or None."""
    wanted = tuple(error for error in errors if error)
    result = run(call)
    if wanted:
        assert type(result) in wanted, f"{wanted} was to come, not {result!r}"
        return None
    if isinstance(result, Exception):
        raise AssertionError(f"nothing was to come, not {result!r}") from result
    return result


def together(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Do two things at once, the second on a thread of its own; return what each returns or raises."""
    start = threading.Barrier(2)
    results: list[Any] = []

    def other() -> None:
        start.wait(PATIENCE)
        results.append(run(second))

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    start.wait(PATIENCE)
    mine = run(first)
    thread.join(PATIENCE)
    assert results, "two threads wait for each other"
    return mine, results[0]


def one_of(result: Any, *errors: type[Exception]) -> bool:
    """Return whether a call returned; what it raised must be one of ``errors``."""
    if isinstance(result, Exception):
        assert type(result) in errors, f"one of {errors} could come, not {result!r}"
        return False
    return True


def batch_of(rows: list[Row]) -> og.Batch:
    batch = og.Batch(max(len(rows), 1))
    for token, pos, seqs, logits in rows:
        batch.add(token, pos, seqs, logits)
    return batch
