"""Rules for two threads at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.machine.decoding import Decoding
from helpers.machine.objects import rule, seeds, seqs, slots
from helpers.machine.things import GRAMMAR, SELECTING, Context, batch_of, one_of, together
from helpers.oracle import APART, LAYOUTS, Row, Saved
from offgrid_llama import samplers as S  # noqa: N812 - short, as every rule of samplers names a dozen


class Threads(Decoding):
    """Two threads that use, cancel or close the same objects."""

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
        """An object that is opened while its owner is closed is closed with it, or was refused."""
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
