"""Rules that change what a context has in memory, and what it computes with."""

from __future__ import annotations

from hypothesis import strategies as st

import offgrid_llama as og
from helpers.machine.objects import Objects, rule, seeds, seqs, slots
from helpers.machine.things import expect
from helpers.oracle import Saved


class Memory(Objects):
    """Sequences, states and adapters of a context."""

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
            end = expected.twin.positions(seq).stop
            by = 2**29 if by == 2**30 and end <= 1 else by  # behind the last position there is none for a batch
            arguments = (seq, p0, p1, by)
            wrong = ValueError if by == 2**30 else wrong
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
