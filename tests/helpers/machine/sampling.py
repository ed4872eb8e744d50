"""Rules of chains and samplers."""

from __future__ import annotations

from hypothesis import strategies as st

import offgrid_llama as og
from helpers.machine.objects import Objects, rule, slots
from helpers.machine.things import EOS, KEEPS_THE_LARGEST, LETTERS, MENU, NEEDS_VOCAB, SELECTING, SORTING, Chain, expect
from helpers.twin import N_VOCAB


class Sampling(Objects):
    """Chains that are made, added to, drawn from and cloned."""

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
