"""Rules that make, close and forget objects, and what must hold after each rule."""

from __future__ import annotations

import gc
import inspect
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from hypothesis import stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

import offgrid_llama as og
from helpers.machine.things import MENU, NEEDS_VOCAB, Chain, Context, Thing, World, expect
from helpers.oracle import BLURRED, LAYOUTS, Expected, Saved
from offgrid_llama.native.handle import Handle


def rule(**strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a rule that tells what was done before it failed: of a race Hypothesis says only that it went another way."""

    def make(method: Callable[..., None]) -> Callable[..., None]:
        @wraps(method)
        def step(self: Objects, **arguments: Any) -> None:
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


class Objects(RuleBasedStateMachine):
    """A few models, contexts, chains, samplers, adapters and states: how they are made, closed and forgotten."""

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
        """Open things are open, closed ones are closed, and every sequence has its positions."""
        self.steps += 1
        for kind in self.things.values():
            for thing in kind:
                if thing is not None:
                    assert thing.obj.closed is not thing.open, f"{thing.obj}"
        for thing in self.things["context"]:
            if thing is not None and thing.open:
                for seq in range(thing.expected.n_seq_max):
                    assert thing.obj.memory.positions(seq) == thing.expected.twin.positions(seq), f"sequence {seq}"

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
        """Close anything, open or closed, with all that hangs on it."""
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
        handle = thing.obj.handle
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
