"""Rules that decode, and read what was computed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.machine.objects import Objects, rule, seeds, seqs, slots
from helpers.machine.things import Context, batch_of, expect
from helpers.oracle import APART, LAYOUTS, Expected, Row
from helpers.twin import N_VOCAB
from offgrid_llama.native.enums import PoolingName


class Decoding(Objects):
    """Batches of any shape, the rows that come of them, texts and vectors."""

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
    def embed(self, i: int, pooling: PoolingName, seed: int) -> None:
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
