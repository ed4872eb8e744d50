"""Any operation on any object, in any order, from two threads: each does what ``oracle.py`` says, or raises what it says.

The machine holds a few slots of each kind of object. A rule takes an object of a slot, open or closed, or makes one; so
what is closed is used once more, where ClosedError must come. No choice of a rule depends on what threads did before, so
that Hypothesis can go the same way again. ``pytest tests/test_machine.py --machine-steps=100000`` goes on for longer.
"""

from __future__ import annotations

import gc
import inspect
import random
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test
from oracle import APART, BLURRED, LAYOUTS, Expected, Row, Saved
from test_adapter import write_lora
from twin import N_EMBD, N_VOCAB, write_tiny_llama

import offgrid_llama as og
from offgrid_llama import samplers as S  # noqa: N812 - short, as every rule of samplers names a dozen
from offgrid_llama._handle import Handle

STEPS = 1000
"""Steps of one test; as many tests are run as ``--machine-steps`` asks for."""
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
    """What all machines share: files, weights, what adapters add."""

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


def rule(**strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a rule that tells what was done before it failed: of a race Hypothesis says only that it went another way."""

    def make(method: Callable[..., None]) -> Callable[..., None]:
        @wraps(method)
        def step(self: Machine, **arguments: Any) -> None:
            self.trace.append(f"{method.__name__}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
            try:
                method(self, **arguments)
            except Exception:
                sys.stdout.write("\n".join((*self.trace, traceback.format_exc())))
                raise

        step.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
        made: Callable[..., None] = stateful.rule(**strategies)(step)  # type: ignore[no-untyped-call]
        return made

    return make


slots = st.integers(0, 3)
seqs = st.integers(0, 2)
seeds = st.integers(0, 255)


class Machine(RuleBasedStateMachine):
    """A few models, contexts, chains, samplers, adapters and states, and all that can be done with them."""

    def __init__(self, world: World, caught: list[warnings.WarningMessage]) -> None:
        super().__init__()
        self.world = world
        self.caught = caught
        self.things: dict[str, list[Any]] = {
            "model": [None] * 2, "context": [None] * 4, "chain": [None] * 3, "sampler": [None] * 3, "lora": [None] * 3,
        }  # fmt: skip
        self.states: list[Saved | None] = [None] * 4
        self.forgotten = 0
        self.trace: list[str] = []
        self.steps = -1  # the invariants are checked before the first one, too

    def teardown(self) -> None:
        self.world.steps += max(self.steps, 0)
        failed = sys.exc_info()[0] is not None
        everything = [thing for kind in self.things.values() for thing in kind if thing]
        random.Random(self.steps).shuffle(everything)
        while everything:
            everything.pop().obj.close()
        self.things.clear()
        gc.collect()
        if not failed:
            left = [handle.name for handle in gc.get_objects() if type(handle) is Handle and not handle.closed]
            assert left == []
            assert len(self.caught) <= self.forgotten
            assert {warning.category for warning in self.caught} <= {ResourceWarning}
        self.caught.clear()

    @invariant()
    def agree(self) -> None:
        """What is open is open, what is closed is closed, and every sequence has its positions."""
        self.steps += 1
        for kind in self.things.values():
            for thing in kind:
                if thing is not None:
                    assert thing.obj.closed is not thing.open, f"{thing.obj}"
        for thing in self.things["context"]:
            if thing is not None and thing.open:
                for seq in range(thing.expected.n_seq_max):
                    assert thing.obj.memory.positions(seq) == thing.expected.twin.positions(seq), f"sequence {seq}"

    # Objects ----------------------------------------------------------------------------------------------------------

    def take(self, kind: str, i: int, *, alive: bool = False) -> Any:
        """Return the object of a slot; a closed one for one more use, unless it must be ``alive``."""
        row = self.things[kind]
        i %= len(row)
        thing = row[i]
        if thing is None or (not thing.open and (thing.spent or alive)):
            thing = row[i] = getattr(self, f"make_{kind}")(i)
        thing.spent = not thing.open
        return thing

    def make_model(self, _i: int) -> Thing:
        return Thing("model", og.Model(self.world.path))

    def make_context(self, i: int) -> Context:
        model = self.take("model", i, alive=True)
        layout = (self.steps + i) % len(LAYOUTS)
        return self.context_of(model, layout)

    def context_of(self, model: Thing, layout: int) -> Context:
        options = LAYOUTS[layout]
        expected = Expected(self.world.weights, options, layout < len(LAYOUTS) - BLURRED)
        return Context(og.Context(model.obj, **options), model, expected)

    def make_chain(self, i: int) -> Chain:
        return self.chain_of(self.take("model", i, alive=True), [(0, 4, 14), (12, 14), (8, 9, 13)][i % 3])

    def chain_of(self, model: Thing, picks: Any) -> Chain:
        names = [MENU[pick][0] for pick in picks]
        made = og.SamplerChain([MENU[pick][1](model.obj.vocab) for pick in picks])
        return Chain(made, names, model if NEEDS_VOCAB & set(names) else None)

    def make_sampler(self, i: int) -> Thing:
        model = self.take("model", i, alive=True)
        name, make = MENU[(self.steps + i) % len(MENU)]
        thing = Thing("sampler", make(model.obj.vocab), *([model] if name in NEEDS_VOCAB else []))
        assert thing.obj.name == name
        return thing

    def make_lora(self, i: int) -> Thing:
        model = self.take("model", i, alive=True)
        return Thing("lora", og.LoRA(model.obj, self.world.loras[i % 2]), model)

    def gone(self, closed: Thing) -> None:
        """Know what closing a thing, or what it hangs on, has changed elsewhere."""
        for context in self.things["context"]:
            if context is not None:
                loras = {lora: use for lora, use in context.expected.loras.items() if lora.open}
                if len(loras) != len(context.expected.loras):
                    context.expected.use(loras)

    @rule(i=slots, layout=st.integers(0, len(LAYOUTS) - 1), model=slots)
    def open_context(self, i: int, layout: int, model: int) -> None:
        owner = self.take("model", model)
        row = self.things["context"]
        if not owner.open:
            expect(lambda: og.Context(owner.obj, n_ctx=256), og.ClosedError)
            return
        if row[i] is not None:
            row[i].obj.close()
            row[i].close()
        row[i] = self.context_of(owner, layout)

    @rule(
        wrong=st.sampled_from(
            [
                {"n_ctx": 0}, {"n_seq_max": 257}, {"n_seq_max": 0}, {"n_batch": 0}, {"n_threads": 0}, {"type_k": "q3_K"},
                {"n_seq_max": 2, "embeddings": True, "pooling_type": "mean"}, {"n_outputs_max": 1, "n_seq_max": 2},
            ]
        ),
        model=slots,
    )  # fmt: skip
    def open_wrongly(self, wrong: dict[str, Any], model: int) -> None:
        owner = self.take("model", model)
        expect(lambda: og.Context(owner.obj, **wrong), ValueError, None if owner.open else og.ClosedError)
        quantized: dict[str, Any] = {"n_ctx": 256, "type_v": "q8_0", "flash_attn_type": "disabled"}
        expect(lambda: og.Context(owner.obj, **quantized), og.ContextError if owner.open else og.ClosedError)

    @rule(kind=st.sampled_from(["model", "context", "context", "chain", "sampler", "lora", "lora"]), i=slots)
    def close(self, kind: str, i: int) -> None:
        """Close anything, open or closed, with whatever hangs on it."""
        thing = self.take(kind, i)
        thing.obj.close()
        thing.close()
        self.gone(thing)

    @rule(kind=st.sampled_from(["context", "chain", "sampler", "lora", "model"]), i=slots)
    def forget(self, kind: str, i: int) -> None:
        """Drop the last name of an open object: it is freed, with a warning, once nothing needs it."""
        thing = self.take(kind, i, alive=True)
        if any(thing in context.expected.loras for context in self.things["context"] if context):
            return
        needed = any(thing in child.parents for child in self.all_things())
        before = len(self.caught)
        handle = thing.obj._handle
        self.things[kind][i % len(self.things[kind])] = None
        for parent in thing.parents:
            parent.children.remove(thing)
        self.forgotten += 1
        del thing
        gc.collect()
        if not needed:
            assert handle.closed
            assert [one for one in self.caught[before:] if f"unclosed {handle.name}" in str(one.message)]
        elif kind == "model":
            assert not handle.closed

    def all_things(self) -> Iterator[Thing]:
        return (thing for kind in self.things.values() for thing in kind if thing is not None)

    # Decoding ---------------------------------------------------------------------------------------------------------

    def rows_for(self, context: Context, shape: str, n: int, seq: int, seed: int) -> list[Row]:
        """Return a batch: for one sequence, for two, or shared by two; or one with a flaw."""
        expected = context.expected
        rng = random.Random(seed)
        seq %= expected.n_seq_max
        other = (seq + 1) % expected.n_seq_max
        few = expected.options.get("n_outputs_max", 0)

        def run_of(ids: list[int], count: int) -> list[Row]:
            begin = expected.twin.positions(ids[0]).stop
            return [
                (rng.randrange(N_VOCAB), begin + k, ids, k == count - 1 or (not few and rng.random() < 0.3))
                for k in range(count)
            ]

        if shape == "two" and other != seq:
            mine, others = run_of([seq], n), run_of([other], 1 + n // 2)
            return mine + others if seed % 2 else [row for pair in zip(mine, others, strict=False) for row in pair]
        same = all((seq in cell.seqs) is (other in cell.seqs) for cell in expected.twin.cells)
        if shape == "shared" and other != seq and (same or not expected.unified):
            return run_of([seq, other], n) + (run_of([other], 0) if seed % 2 else [])
        rows = run_of([seq], n)
        if shape == "gap":
            rows = [(token, pos + 1 + (k > 0), ids, logits) for k, (token, pos, ids, logits) in enumerate(rows)]
        elif shape == "token":
            rows[-1] = (N_VOCAB, *rows[-1][1:])
        elif shape == "sequence":
            rows[-1] = (*rows[-1][:2], [expected.n_seq_max], True)
        elif shape == "outputs":
            rows = [(*row[:3], True) for row in rows]
        elif shape == "empty":
            rows = []
        return rows

    def decode_on(self, context: Context, rows: list[Row]) -> None:
        """Decode, and compare all that can be read."""
        expected = context.expected
        batch = batch_of(rows)
        if not context.open:
            expect(lambda: context.obj.decode(batch), og.ClosedError)
            return
        error = expected.decode_error(rows)
        expect(lambda: context.obj.decode(batch), error)
        if error is not ValueError:
            expected.begin(moved=error is not og.InvalidBatch)
        if error is None:
            expected.add(rows)
        self.compare(context)

    def compare(self, context: Context) -> None:
        expected = context.expected
        apart: dict[str, Any] = {"rtol": 0, "atol": APART}
        for row in sorted(expected.rows)[-6:]:
            got = context.obj.logits(row).copy()
            if (wanted := expected.rows[row]) is not None:
                np.testing.assert_allclose(got, wanted, **apart)
            else:
                assert np.isfinite(got).all()
            if expected.embeddings and expected.pooling == "none":
                np.testing.assert_allclose(context.obj.embeddings(row), expected.hidden[row], **apart)
        for seq, vector in expected.pooled.items():
            np.testing.assert_allclose(context.obj.sequence_embedding(seq), vector, **apart)

    @rule(
        i=slots, seq=seqs, n=st.sampled_from([1, 1, 2, 3, 5, 9]), seed=seeds,
        shape=st.sampled_from(
            ["one", "one", "one", "two", "two", "shared", "gap", "token", "sequence", "outputs", "empty"]
        ),
    )  # fmt: skip
    def decode(self, i: int, seq: int, n: int, seed: int, shape: str) -> None:
        context = self.take("context", i)
        self.decode_on(context, self.rows_for(context, shape, n, seq, seed))

    @rule(i=slots, seq=seqs, n=st.sampled_from([24, 48, 96]), seed=seeds)
    def fill(self, i: int, seq: int, n: int, seed: int) -> None:
        """Decode much at once, until there is no room."""
        context = self.take("context", i)
        self.decode_on(context, self.rows_for(context, "one", n, seq, seed))

    @rule(i=slots, row=st.integers(-3, 9))
    def read(self, i: int, row: int) -> None:
        """Read a row of the last decode, or what was kept of an earlier one."""
        context = self.take("context", i)
        expected, kept = context.expected, context.view
        closed = None if context.open else og.ClosedError
        readable = sorted(expected.rows)
        there = row in readable or -len(readable) <= row < 0
        for use in (context.obj.argmax, lambda row: context.obj.logits(row).copy()):
            expect(lambda use=use: use(row), closed or (None if there else ValueError))  # type: ignore[misc]
        if kept is not None:
            view, wanted, step = kept
            stale = None if step == expected.step else og.StaleLogitsError
            for read in (view.copy, lambda: view + 1, lambda: view[3], lambda: np.exp(view)):
                expect(read, closed or stale)
            if not (closed or stale) and wanted is not None:
                np.testing.assert_allclose(view, wanted, rtol=0, atol=APART)
            assert "Logits" in repr(view)
        if there and not closed:
            index = row if row in readable else readable[row]
            context.view = context.obj.logits(row), expected.rows[index], expected.step

    @rule(i=slots, index=st.integers(-2, 5))
    def embeddings(self, i: int, index: int) -> None:
        context = self.take("context", i)
        expected = context.expected
        closed = None if context.open else og.ClosedError
        readable = sorted(expected.rows)
        there = index in readable or -len(readable) <= index < 0
        pooled = expected.embeddings and expected.pooling != "none"
        expect(
            lambda: context.obj.embeddings(index),
            closed or (None if there and expected.embeddings and not pooled else ValueError),
        )
        known = expected.embeddings and pooled and index in expected.pooled
        expect(lambda: context.obj.sequence_embedding(index), None if known else ValueError, closed)

    @rule(i=slots, what=st.sampled_from(["threads", "wait", "cancel", "encode", "enter"]))
    def small_calls(self, i: int, what: str) -> None:
        context = self.take("context", i)
        call: Callable[[], object] = {
            "threads": lambda: context.obj.set_n_threads(1, 2),
            "wait": context.obj.synchronize,
            "cancel": context.obj.cancel,
            "encode": lambda: context.obj.encode(batch_of([(1, 0, [0], True)])),
            "enter": context.obj.__enter__,
        }[what]
        error = og.ContextError if what == "encode" else None
        expect(call, *([error] if context.open else [og.ClosedError, error]))

    @rule(i=slots, n=st.integers(0, 4), seed=seeds)
    def vocab(self, i: int, n: int, seed: int) -> None:
        model = self.take("model", i)
        text = "".join(random.Random(seed).choice("abcdXYZ012") for _ in range(n))
        closed = None if model.open else og.ClosedError
        tokens = expect(lambda: model.obj.vocab.tokenize(text, add_special=False), closed)
        if tokens is not None:
            assert model.obj.vocab.detokenize(tokens).strip() == text
        expect(lambda: model.obj.vocab.text(N_VOCAB), ValueError, closed)
        expect(model.obj.fingerprint, closed)

    @rule(i=slots, pooling=st.sampled_from(["mean", "cls", "last"]), seed=seeds)
    def embed(self, i: int, pooling: str, seed: int) -> None:
        """An Embedder packs texts into batches; each vector is its text's own."""
        model = self.take("model", i)
        if not model.open:
            expect(lambda: og.Embedder(model.obj, pooling_type=pooling), og.ClosedError)
            return
        rng = random.Random(seed)
        texts = [[rng.randrange(N_VOCAB) for _ in range(rng.randrange(1, 6))] for _ in range(3)]
        with og.Embedder(model.obj, pooling_type=pooling, n_batch=8, n_threads=1) as embedder:
            got = embedder.embed(texts, normalize=False)
        for vector, text in zip(got, texts, strict=True):
            oracle = Expected(self.world.weights, LAYOUTS[7] | {"pooling_type": pooling}, True)
            oracle.add([(token, pos, [0], True) for pos, token in enumerate(text)])
            np.testing.assert_allclose(vector, oracle.pooled[0], rtol=0, atol=0.05)  # its KV cache is f16

    # Memory -----------------------------------------------------------------------------------------------------------

    @rule(
        i=slots, seq=seqs, to=seqs,
        what=st.sampled_from(["remove", "remove", "remove all", "copy", "copy part", "keep", "shift", "divide", "clear"]),
        p0=st.sampled_from([-1, 0, 1, 2, 5, 8]), p1=st.sampled_from([-1, -1, 1, 3, 7, 20]),
        by=st.sampled_from([-4, -1, 1, 3, 2**30]),
    )  # fmt: skip
    def memory(self, i: int, seq: int, to: int, what: str, p0: int, p1: int, by: int) -> None:
        context = self.take("context", i)
        expected, memory = context.expected, context.obj.memory
        closed = None if context.open else og.ClosedError
        wrong = ValueError if seq >= expected.n_seq_max else None
        what, _, variant = what.partition(" ")
        name: str = what
        arguments: tuple[int, ...] = ()
        if what == "remove":
            arguments = (-1 if variant else seq, p0, p1)
            wrong = None if variant else wrong
        elif what == "copy":
            arguments = (seq, to, p0, p1) if variant else (seq, to)
            part = variant and not expected.unified and seq != to and (p0 > 0 or p1 != -1)
            wrong = ValueError if to >= expected.n_seq_max or part else wrong
        elif what == "keep":
            arguments = (seq,)
        elif what == "shift":
            arguments = (seq, p0, p1, by)
            wrong = ValueError if by == 2**30 and expected.twin.positions(seq).stop > 1 else wrong
        elif what == "divide":
            arguments = (seq, p0, p1, abs(by))
        else:
            wrong = None
        quantized = "q" in expected.options["type_k"] and what in ("shift", "divide")  # heads have 32 values only
        errors = [wrong, closed, og.ContextError if quantized and context.open else None]
        if any(errors):
            expect(lambda: getattr(memory, name)(*arguments), *errors)
            return
        expect(lambda: getattr(memory, name)(*arguments))
        getattr(expected.twin, name)(*arguments)
        if what in ("shift", "divide"):
            expected.moving = True
        elif what == "copy" and seq != to and not expected.unified:
            expected.moving = expected.copying = True
        elif what == "clear":
            expected.moving = expected.copying

    # States -----------------------------------------------------------------------------------------------------------

    @rule(i=slots, slot=slots, seq=st.integers(-1, 2))
    def save_state(self, i: int, slot: int, seq: int) -> None:
        """Save a sequence, or all for -1; what is on its way cannot be saved."""
        context = self.take("context", i)
        expected = context.expected
        seq_id = None if seq < 0 else seq
        state = expect(
            lambda: context.obj.save_state(seq_id, [1, 2]),
            None if context.open else og.ClosedError,
            ValueError if seq >= expected.n_seq_max else None,
            og.StateError if expected.moving and context.open and seq < expected.n_seq_max else None,
        )
        if state is not None:
            self.states[slot] = Saved(state, seq_id, expected.save(seq_id), expected.layout, expected.transposed)

    @rule(i=slots, slot=slots, to=st.integers(-1, 2), through=st.sampled_from(["", "bytes", "damaged"]), at=seeds)
    def load_state(self, i: int, slot: int, to: int, through: str, at: int) -> None:
        """Load what was saved, there or in another context, as it is or through bytes, whole or damaged."""
        context, saved = self.take("context", i), self.states[slot]
        if saved is None:
            return
        state, expected = saved.state, context.expected
        if through:
            blob = bytearray(bytes(state))
            if through == "damaged":
                blob[at * len(blob) // 256] ^= 1 + at % 255
                expect(lambda: og.State.from_bytes(blob), og.StateError)
                return
            state = expect(lambda: og.State.from_bytes(blob))
        seq_id = None if to < 0 else to
        wrong = ValueError if to >= expected.n_seq_max else None
        refused, failed = expected.load_error(saved, seq_id) if wrong is None else (False, False)
        expect(
            lambda: context.obj.load_state(state, seq_id),
            wrong,
            None if context.open else og.ClosedError,
            og.StateError if refused or (failed and context.open) else None,
        )
        if context.open and not wrong and not refused:
            if failed:
                expected.forget(seq_id)
            else:
                expected.load(saved, seq_id)

    # Adapters ---------------------------------------------------------------------------------------------------------

    @rule(i=slots, picks=st.sampled_from([(), (0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)]), scale=st.integers(-2, 4))
    def set_loras(self, i: int, picks: tuple[int, ...], scale: int) -> None:
        context = self.take("context", i)
        uses = {self.take("lora", pick): (pick % 2, scale * 0.25) for pick in picks}
        foreign = any(lora.parents[0] is not context.model for lora in uses)
        closed = not context.open or not all(lora.open for lora in uses)
        expect(
            lambda: context.obj.set_loras({lora.obj: scale for lora, (_, scale) in uses.items()}),
            ValueError if foreign else None,
            og.ClosedError if closed else None,
        )
        if not foreign and not closed:
            added = self.world.added
            context.expected.use({lora: (f"{k}", added[k], scale) for lora, (k, scale) in uses.items()})

    @rule(i=slots, pick=st.sampled_from([None, 0, 1]), scale=st.sampled_from([-0.5, 1.0]))
    def set_control_vector(self, i: int, pick: int | None, scale: float) -> None:
        context = self.take("context", i)
        direction = None if pick is None else self.world.directions[pick]
        vector = None if direction is None else og.ControlVector({1: direction})
        expect(lambda: context.obj.set_control_vector(vector, scale), None if context.open else og.ClosedError)
        if context.open:
            steered = None if pick is None else (pick, scale)
            context.expected.steer(steered, 0.0 if direction is None else scale * direction)

    # Samplers ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def misfit(names: list[str], name: str) -> bool:
        """Return whether a chain of these samplers must refuse one more."""
        return bool(
            (names and names[-1] in SELECTING)
            or (name in ("grammar", "logit-bias") and SORTING & set(names))
            or {"grammar", "infill"} <= {name, *names}
            or (name == "infill" and "top-k" not in names)
        )

    @rule(i=slots, model=slots, picks=st.lists(st.integers(0, 12), max_size=3), last=st.integers(12, 17))
    def open_chain(self, i: int, model: int, picks: list[int], last: int) -> None:
        """Make a chain of samplers, of which one may not fit."""
        owner = self.take("model", model, alive=True)
        names: list[str] = []
        misfit = False
        for pick in (*picks, last):
            misfit = misfit or self.misfit(names, MENU[pick][0])
            names.append(MENU[pick][0])
        samplers = [MENU[pick][1](owner.obj.vocab) for pick in (*picks, last)]
        chain = expect(lambda: og.SamplerChain(samplers), ValueError if misfit else None)
        assert all(sampler.closed for sampler in samplers)
        if chain is not None:
            self.put_chain(i, Chain(chain, names, owner if NEEDS_VOCAB & set(names) else None))

    def put_chain(self, i: int, chain: Chain) -> None:
        row = self.things["chain"]
        if row[i % len(row)] is not None:
            row[i % len(row)].obj.close()
        row[i % len(row)] = chain

    @rule(i=slots, j=slots)
    def add_sampler(self, i: int, j: int) -> None:
        """Add a sampler that is open, closed, given away or another model's."""
        chain, sampler = self.take("chain", i), self.take("sampler", j)
        name = sampler.obj.name
        model = sampler.parents[0] if sampler.parents else None
        foreign = model is not None and chain.model is not None and model is not chain.model
        errors = [
            None if chain.open and sampler.open else og.ClosedError,
            ValueError if foreign or self.misfit(chain.names, name) else None,
        ]
        expect(lambda: chain.obj.add(sampler.obj), *errors)
        if not any(errors):
            chain.names = [*chain.names, name]
            sampler.close()
            if model is not None and chain.model is None:
                chain.model = model
                chain.parents.append(model)
                model.children.append(chain)

    @rule(i=slots, j=slots, row=st.sampled_from([-1, -1, -1, 0, 50]))
    def sample(self, i: int, j: int, row: int) -> None:
        chain, context = self.take("chain", i), self.take("context", j)
        readable = sorted(context.expected.rows)
        there = row in readable or -len(readable) <= row < 0
        foreign = chain.model is not None and chain.model is not context.model
        wrong = not there or foreign or not chain.names or chain.names[-1] not in SELECTING
        closed = not (chain.open and context.open)
        if wrong or closed:
            expect(
                lambda: chain.obj.sample(context.obj, row),
                ValueError if wrong else None,
                og.ClosedError if closed else None,
            )
            return
        token = expect(lambda: chain.obj.sample(context.obj, row))
        assert 0 <= token < N_VOCAB
        if "grammar" in chain.names:
            assert token in LETTERS or (token == EOS and chain.begun)
        chain.begun = chain.begun or token in LETTERS
        if set(chain.names) <= KEEPS_THE_LARGEST:
            assert token == context.obj.argmax(row)

    @rule(i=slots, token=st.sampled_from([EOS, 4, 5, 6, 30, N_VOCAB]))
    def accept(self, i: int, token: int) -> None:
        """A grammar accepts what it allows; all others accept any token."""
        chain = self.take("chain", i)
        strict = "grammar" in chain.names
        allowed = token in LETTERS or (token == EOS and chain.begun)  # llama.cpp goes on after the end of the text
        errors = [
            None if chain.open else og.ClosedError,
            ValueError if token == N_VOCAB and chain.model is not None else None,
            og.GrammarError if strict and not allowed and chain.open and token < N_VOCAB else None,
        ]
        expect(lambda: chain.obj.accept(token), *errors)
        if not any(errors):
            chain.begun = chain.begun or token in LETTERS

    @rule(i=slots, what=st.sampled_from(["reset", "seed", "repr", "clone", "clone"]))
    def chain_calls(self, i: int, what: str) -> None:
        chain = self.take("chain", i)
        closed = None if chain.open else og.ClosedError
        if what == "reset":
            expect(chain.obj.reset, closed)
            chain.begun = chain.begun and not chain.open
        elif what == "seed":
            expect(lambda: chain.obj.seed, closed)
        elif what == "repr":
            assert "SamplerChain" in repr(chain.obj)
        else:
            copy = expect(chain.obj.clone, closed)
            if copy is not None:
                clone = Chain(copy, list(chain.names), chain.model)
                clone.begun = chain.begun
                assert copy.names == chain.obj.names == tuple(chain.names)
                self.put_chain(i + 1, clone)

    # Two threads ------------------------------------------------------------------------------------------------------

    def long_rows(self, context: Context, seq: int, seed: int) -> list[Row]:
        """Return a batch that takes some milliseconds, or a short one where there is no room."""
        for shape, n in (("shared" if seed % 4 == 0 else "one", 60), ("one", 4)):
            rows = self.rows_for(context, shape, n, seq, seed)
            if context.expected.decode_error(rows) is None:
                return rows
        context.obj.memory.clear()
        context.expected.twin.clear()
        context.expected.moving = context.expected.copying
        return self.rows_for(context, "one", 60, seq, seed)

    @rule(i=slots, seq=seqs, seed=seeds, what=st.sampled_from(["context", "model"]))
    def decode_and_close(self, i: int, seq: int, seed: int, what: str) -> None:
        """close() of a context or its model, while it decodes, stops it or waits for it."""
        context = self.take("context", i, alive=True)
        owner = context if what == "context" else context.model
        batch = batch_of(self.long_rows(context, seq, seed))
        order = (lambda: context.obj.decode(batch)), owner.obj.close
        done, closed = together(*order) if seed % 2 else together(*order[::-1])[::-1]
        one_of(done, og.Aborted, og.ClosedError)
        assert one_of(closed)
        owner.close()
        self.gone(owner)

    @rule(i=slots, seq=seqs, seed=seeds)
    def decode_and_cancel(self, i: int, seq: int, seed: int) -> None:
        """A cancelled decode has done whole micro-batches, and the context goes on from there."""
        context = self.take("context", i, alive=True)
        expected = context.expected
        rows = self.long_rows(context, seq, seed)
        batch = batch_of(rows)
        done, cancelled = together(lambda: context.obj.decode(batch), context.obj.cancel)
        assert one_of(cancelled)
        expected.begin()
        if one_of(done, og.Aborted):
            expected.add(rows)
            self.compare(context)
        else:
            stops = {seq: context.obj.memory.positions(seq).stop for seq in range(expected.n_seq_max)}
            expected.add_until(rows, stops)
        self.agree_now(context)

    def agree_now(self, context: Context) -> None:
        """Go on by one token in every sequence, and compare: nothing but what is known may be in memory."""
        for seq in range(context.expected.n_seq_max):
            rows = self.rows_for(context, "one", 1, seq, seq)
            if context.expected.decode_error(rows) is None:
                self.decode_on(context, rows)

    @rule(i=slots, j=slots, seq=seqs, seed=seeds)
    def decode_two(self, i: int, j: int, seq: int, seed: int) -> None:
        """Two contexts decode at once."""
        one, two = self.take("context", i, alive=True), self.take("context", j, alive=True)
        if one is two or not one.open:
            return
        work = [(context, self.long_rows(context, seq, seed)) for context in (one, two)]
        batches = [batch_of(rows) for _, rows in work]
        assert all(map(one_of, together(lambda: one.obj.decode(batches[0]), lambda: two.obj.decode(batches[1]))))
        for context, rows in work:
            context.expected.begin()
            context.expected.add(rows)
            self.compare(context)

    @rule(i=slots, seq=seqs, seed=seeds, what=st.sampled_from(["remove", "positions", "save", "read", "batch"]))
    def decode_and_use(self, i: int, seq: int, seed: int, what: str) -> None:
        """While a context decodes, others wait for their turn; a batch that is decoded cannot be changed."""
        context = self.take("context", i, alive=True)
        expected = context.expected
        rows = self.long_rows(context, seq, seed)
        other = (rows[0][2][0] + 1) % expected.n_seq_max
        alone = all(other not in row[2] for row in rows)
        batch, moving = batch_of(rows), expected.moving
        view = context.obj.logits(-1) if expected.rows else None
        saved = expected.save(other)
        use: Callable[[], Any] = {
            "remove": lambda: context.obj.memory.remove(other) if alone else None,
            "positions": lambda: context.obj.memory.positions(other),
            "save": lambda: context.obj.save_state(other),
            "read": lambda: view.copy() if view is not None else None,
            "batch": batch.clear,
        }[what]
        done, used = together(lambda: context.obj.decode(batch), use)
        if what == "batch":
            one_of(used, RuntimeError)
            if not one_of(done, ValueError):
                assert not len(batch)
                return
        assert one_of(done)
        if what == "remove" and alone:
            assert one_of(used)
            expected.twin.remove(other)
        elif what == "save" and one_of(used, *([og.StateError] if moving else [])) and alone:
            self.states[i] = Saved(used, other, saved, expected.layout, expected.transposed)
        elif what == "read":
            one_of(used, og.StaleLogitsError)
        expected.begin()
        expected.add(rows)
        self.compare(context)

    @rule(i=slots, j=slots, seq=seqs, seed=seeds)
    def decode_and_close_lora(self, i: int, j: int, seq: int, seed: int) -> None:
        """An adapter that is closed while a decode may use it is used for all of that decode, or not at all."""
        context = self.take("context", i, alive=True)
        lora = self.take("lora", j, alive=True)
        if lora.parents[0] is not context.model or not context.open:
            return
        expected = context.expected
        uses = {lora: (f"{j % 3 % 2}", self.world.added[j % 3 % 2], 1.0)}
        context.obj.set_loras([lora.obj])
        rows = self.long_rows(context, seq, seed)
        batch = batch_of(rows)
        cells = expected.save(None)
        done, closed = together(lambda: context.obj.decode(batch), lora.obj.close)
        assert one_of(done)
        assert one_of(closed)
        lora.close()
        self.gone(lora)
        last = context.obj.logits(-1).copy()
        for loras in (uses, {}):
            expected.load(Saved(self.states[0], None, cells, {}, False), None)  # type: ignore[arg-type]
            expected.use(loras)
            expected.begin()
            expected.add(rows)
            wanted = expected.rows[max(expected.rows)]
            if wanted is None or np.abs(last - wanted).max() < APART:
                break
        expected.use({})
        self.compare(context)

    @rule(i=slots, j=slots, what=st.sampled_from(["close", "sample", "reset", "clone"]))
    def sample_and_use(self, i: int, j: int, what: str) -> None:
        """One chain on two threads: one waits for the other."""
        chain, context = self.take("chain", i, alive=True), self.take("context", j, alive=True)
        if not context.expected.rows:
            self.decode_on(context, self.long_rows(context, 0, 3))
        if not chain.open or (chain.model is not None and chain.model is not context.model):
            return
        sample = lambda: chain.obj.sample(context.obj, -1)  # noqa: E731
        use = {"close": chain.obj.close, "sample": sample, "reset": chain.obj.reset, "clone": chain.obj.clone}[what]
        sampled, used = together(sample, use)
        may = [] if chain.names and chain.names[-1] in SELECTING else [ValueError]
        one_of(sampled, *may, *([og.ClosedError] if what == "close" else []))
        one_of(used, *(may if what == "sample" else []))
        if what == "close":
            chain.close()
            return
        if what == "clone":
            used.close()
        chain.obj.reset()
        chain.begun = False

    @rule(i=slots, j=slots)
    def open_and_close(self, i: int, j: int) -> None:
        """What is opened while its owner is closed is closed with it, or was refused."""
        model = self.take("model", i, alive=True)
        make: Callable[[], Any] = [
            lambda: og.Context(model.obj, **LAYOUTS[j]),
            lambda: og.LoRA(model.obj, self.world.loras[0]),
            lambda: S.penalties(model.obj.vocab),
            lambda: og.SamplerChain([og.Grammar.gbnf(GRAMMAR).sampler(model.obj.vocab)]),
        ][j]
        made, closed = together(make, model.obj.close)
        assert one_of(closed)
        if one_of(made, og.ClosedError):
            assert made.closed
        model.close()
        self.gone(model)

    @rule(kind=st.sampled_from(["model", "context", "chain", "sampler", "lora"]), i=slots, other=slots)
    def close_twice(self, kind: str, i: int, other: int) -> None:
        """Two threads close the same object, or an object and its owner."""
        thing = self.take(kind, i)
        owner = thing.parents[0] if thing.parents and other % 2 else thing
        assert all(map(one_of, together(thing.obj.close, owner.obj.close)))
        owner.close()
        thing.close()
        self.gone(owner)


# The run --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The files; and threads that change often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield World(tmp_path_factory.mktemp("machine"))
    sys.setswitchinterval(interval)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "chapter" in metafunc.fixturenames:
        metafunc.parametrize("chapter", range(-(-metafunc.config.getoption("--machine-steps") // STEPS)))


def test_any_operations_in_any_order(chapter: int, world: World) -> None:
    """After any operations what is open, what is in memory and what is computed are what the oracle says."""
    world.steps = 0
    gc.collect()
    gc.freeze()  # so that a collection looks at the machine's objects only
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for part in range(10):
                run_state_machine_as_test(
                    seed(chapter * 1000 + part)(lambda: Machine(world, caught)),  # type: ignore[arg-type]
                    settings=settings(
                        max_examples=10, stateful_step_count=50, deadline=None, database=None, phases=[Phase.generate],
                        suppress_health_check=list(HealthCheck),
                    ),
                )  # fmt: skip
                if world.steps >= STEPS:
                    break
    finally:
        gc.unfreeze()
    assert world.steps >= STEPS
    world.total += world.steps


def test_the_steps_were_run(world: World, request: pytest.FixtureRequest) -> None:
    """The chapters above have really run as many steps as were asked for, 10,000 by default."""
    if not world.total:
        pytest.skip("the chapters were not run")
    assert world.total >= request.config.getoption("--machine-steps")
