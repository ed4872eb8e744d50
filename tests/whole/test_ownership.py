"""Ownership, with real objects: use after close, close in any order, forgotten objects, and the end of the process."""

from __future__ import annotations

import gc
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import offgrid_llama as og
from offgrid_llama.context.logits import Logits

if TYPE_CHECKING:
    from helpers.children import RunChild


class Family:
    """A model with everything that hangs on it, decoded once."""

    def __init__(self, path: Path) -> None:
        self.model = og.Model(path, use_extra_bufts=False)  # so that it can be saved
        self.vocab = self.model.vocab
        self.context = og.Context(self.model, n_ctx=64, n_outputs_max=4, perf=True)
        self.memory = self.context.memory
        self.batch = og.Batch(8)
        self.batch.add_sequence(self.vocab.tokenize("Once upon"))
        self.context.decode(self.batch)
        self.logits = self.context.logits(-1)
        self.state, self.snapshot = self.context.save_state(0), self.context.snapshot(0)
        self.vectors, self.pooled = (
            og.Context(self.model, n_ctx=256, embeddings=True, pooling_type=pooling) for pooling in ("none", "mean")
        )
        for context in (self.vectors, self.pooled):
            context.decode(self.batch)
        self.grammar = og.Grammar.gbnf('root ::= "a"+')
        self.chain = og.SamplerChain([self.grammar.sampler(self.vocab), og.samplers.dist(1)], perf=True)
        self.sampler = og.samplers.penalties(self.vocab)
        self.gguf = og.GGUF(path)

    def owners(self) -> list[Any]:
        """The objects that have a close() of their own."""
        return [self.model, self.context, self.chain, self.sampler, self.gguf]


@pytest.fixture
def family(smollm2_path: Path) -> Any:
    """A family of its own for the test, closed at the end in some order."""
    made = Family(smollm2_path)
    yield made
    for owner in made.owners():
        owner.close()


@pytest.fixture(scope="module")
def closed_family(smollm2_path: Path) -> Family:
    """A family in which everything has been closed."""
    made = Family(smollm2_path)
    for owner in made.owners():
        owner.close()
    return made


# Members of a TokenSampler that an engine uses in a step.
IN_A_STEP = [
    "by_hand",
    "chain_handle",
    "failure",
    "forced",
    "forces",
    "foresee",
    "guide",
    "logprob",
    "n_logprobs",
    "native",
    "reserve",
    "top",
]

# Every public method and property that needs the C object, and how to call it.
USES: dict[type, dict[str, Callable[[Any], Any] | None]] = {
    og.Model: {
        "chat_template": lambda f: f.model.chat_template(),
        "fingerprint": lambda f: f.model.fingerprint(),
        "save": lambda f: f.model.save("written"),
        "__enter__": lambda f: f.model.__enter__(),
    },
    og.Vocab: {
        "tokenize": lambda f: f.vocab.tokenize("x"),
        "detokenize": lambda f: f.vocab.detokenize([1]),
        "piece": lambda f: f.vocab.piece(1),
        "text": lambda f: f.vocab.text(1),
        "score": lambda f: f.vocab.score(1),
        "attr": lambda f: f.vocab.attr(1),
        "is_eog": lambda f: f.vocab.is_eog(1),
        "eog_tokens": lambda f: f.vocab.eog_tokens(),
        "control_tokens": lambda f: f.vocab.control_tokens(),
        "pieces": lambda f: f.vocab.pieces(),
        "pieces_and_attrs": lambda f: f.vocab.pieces_and_attrs(),
        "check_token": None,
        "is_control": lambda f: f.vocab.is_control(1),
        "suppress_tokens": lambda f: f.vocab.suppress_tokens(),
    },
    og.Context: {
        "decode": lambda f: f.context.decode(f.batch),
        "decode_with": lambda f: f.context.decode_with(f.batch, lambda *_: 0),
        "encode": None,  # refused for a decoder-only model, closed or not
        "logits": lambda f: f.context.logits(-1),
        "argmax": lambda f: f.context.argmax(-1),
        "embeddings": lambda f: f.vectors.embeddings(-1),
        "sequence_embedding": lambda f: f.pooled.sequence_embedding(0),
        "save_state": lambda f: f.context.save_state(0),
        "load_state": lambda f: f.context.load_state(f.state, 0),
        "snapshot": lambda f: setattr(f, "snapshot", f.context.snapshot(0)),
        "restore": lambda f: f.context.restore(f.snapshot),
        "set_loras": lambda f: f.context.set_loras(),
        "set_control_vector": lambda f: f.context.set_control_vector(None),
        "cancel": lambda f: f.context.cancel(),
        "release_threads": lambda f: f.context.release_threads(),
        "synchronize": lambda f: f.context.synchronize(),
        "n_threads": lambda f: f.context.n_threads,
        "n_threads_batch": lambda f: f.context.n_threads_batch,
        "set_n_threads": lambda f: f.context.set_n_threads(1),
        "causal_attn": lambda f: f.context.causal_attn,
        "set_causal_attn": lambda f: f.context.set_causal_attn(True),
        "perf": lambda f: f.context.perf(),
        "perf_reset": lambda f: f.context.perf_reset(),
        "__enter__": lambda f: f.context.__enter__(),
    },
    og.Memory: {
        "clear": lambda f: f.memory.clear(),
        "remove": lambda f: f.memory.remove(0),
        "copy": lambda f: f.memory.copy(0, 0),
        "keep": lambda f: f.memory.keep(0),
        "shift": lambda f: f.memory.shift(0, 0, -1, 1),
        "divide": lambda f: f.memory.divide(0, 0, -1, 2),
        "positions": lambda f: f.memory.positions(0),
        "can_shift": lambda f: f.memory.can_shift,
        "can_trim": None,
        "pointer": None,
    },
    Logits: {
        "copy": lambda f: f.logits.copy(),
        "row": None,
        "shape": None,
        "dtype": None,
        "__getitem__": lambda f: f.logits[0],
        "__array__": lambda f: f.logits.__array__(),
        "__array_ufunc__": lambda f: f.logits + 1,
        "__iter__": lambda f: list(f.logits),
        "argmax": lambda f: f.logits.argmax(),
    },
    og.SamplerChain: {
        "add": lambda f: f.chain.add(f.sampler),
        "sample": lambda f: f.chain.sample(f.context, -1),
        "choose": lambda f: f.chain.choose(np.zeros(f.model.vocab.n_tokens, np.float32)),
        "accept": lambda f: f.chain.accept(1),
        "reset": lambda f: f.chain.reset(),
        "clone": lambda f: f.chain.clone(),
        "seed": lambda f: f.chain.seed,
        "remove": lambda f: f.chain.remove(0).close(),
        "perf": lambda f: f.chain.perf(),
        "perf_reset": lambda f: f.chain.perf_reset(),
        "draw": lambda f: f.chain.draw(np.zeros(f.model.vocab.n_tokens, np.float32)),
        "names": None,
        **dict.fromkeys(IN_A_STEP),
        "__enter__": lambda f: f.chain.__enter__(),
    },
    og.Sampler: {"__enter__": lambda f: f.sampler.__enter__(), "owning": None, "copy_of": None},
    og.GGUF: {
        "__getitem__": lambda f: f.gguf["general.architecture"],
        "array_length": lambda f: f.gguf.array_length("tokenizer.ggml.tokens"),
        "value_type": lambda f: f.gguf.value_type("general.architecture"),
        "copy": lambda f: f.gguf.copy("written"),
        "copy_with": lambda f: f.gguf.copy_with(Path("copied"), f.gguf, []),
        "opened": None,
        "unchanged": None,
        "encoded_keys": None,
        "tensors": lambda f: f.gguf.tensors(),
        "check": lambda f: f.gguf.check(),
        "fingerprint": lambda f: f.gguf.fingerprint(),
        "architecture": lambda f: f.gguf.architecture,
        "hparam": lambda f: f.gguf.hparam("block_count"),
        "kv_heads": lambda f: f.gguf.kv_heads(),
        "get": lambda f: f.gguf.get("general.architecture"),
        "items": lambda f: list(f.gguf.items()),
        "values": lambda f: list(f.gguf.values()),
        "keys": None,
        "__enter__": lambda f: f.gguf.__enter__(),
    },
}


@pytest.mark.parametrize("kind", USES, ids=lambda kind: kind.__name__)
def test_the_table_has_every_public_member(kind: type) -> None:
    """No public method can be forgotten in the test of use after close."""
    public = {name for name in dir(kind) if not name.startswith("_")}
    assert public - set(USES[kind]) <= {"close", "closed"}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, uses in USES.items() for name, use in uses.items() if use]
)
def test_use_after_close_names_the_object(closed_family: Family, kind: type, name: str) -> None:
    """Every use of a closed object, or of one whose owner is closed, is a ClosedError that names it."""
    use = USES[kind][name]
    assert use
    with pytest.raises(og.ClosedError, match=r"\w+ .*is closed|SamplerChain is closed"):
        use(closed_family)


def test_using_before_close_works(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The uses in the table are good ones: none of them fails for another reason."""
    monkeypatch.chdir(tmp_path)
    for uses in USES.values():
        for name, use in uses.items():
            if use and name not in ("accept", "add", "choose", "draw", "sample", "clone", "shift", "divide"):
                family.batch.clear()
                family.memory.clear()
                family.batch.add_sequence([1, 2], logits="all")
                family.context.decode(family.batch)
                family.logits = family.context.logits(-1)
                if name == "decode":
                    family.memory.clear()
                use(family)


@pytest.mark.parametrize("order", list(itertools.permutations(["model", "context", "chain"])), ids="-".join)
def test_close_in_any_order(family: Family, order: tuple[str, ...]) -> None:
    """Model, context and chain can be closed in any order, each twice, between a file and a sampler of their own."""
    for owner in (family.gguf, *(getattr(family, name) for name in order), family.sampler):
        owner.close()
        owner.close()
        assert owner.closed
    assert all(owner.closed for owner in family.owners())


def test_closing_a_model_closes_all_that_needs_it(family: Family) -> None:
    """Contexts, and samplers that read the vocabulary, are closed with their model; what is independent is not."""
    family.model.close()
    assert [owner.closed for owner in family.owners()] == [True, True, True, True, False]


def test_a_sampler_given_away_says_where_it_went() -> None:
    """add() takes the sampler for keeps: it cannot be used, or added, again."""
    sampler = og.samplers.top_k(3)
    with og.SamplerChain([sampler]) as chain, og.SamplerChain() as other:
        assert sampler.closed
        with pytest.raises(og.ClosedError, match="top-k was given to a SamplerChain"):
            other.add(sampler)
        assert chain.names == ("top-k",)


@pytest.mark.parametrize("name", ["Model", "Context", "SamplerChain", "GGUF"])
def test_what_is_forgotten_is_freed_with_a_warning(smollm2_path: Path, name: str) -> None:
    """An unclosed object is freed by its finalizer, with a ResourceWarning that names it."""
    with og.Model(smollm2_path) as model:
        make: dict[str, Callable[[], Any]] = {
            "Model": lambda: og.Model(smollm2_path, vocab_only=True),
            "Context": lambda: og.Context(model, n_ctx=64),
            "SamplerChain": og.SamplerChain,
            "GGUF": lambda: og.GGUF(smollm2_path),
        }
        forgotten = make[name]()
        handle = forgotten.handle
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del forgotten
            gc.collect()
    assert handle.closed
    assert [str(warning.message) for warning in caught if name in str(warning.message)]
    assert {warning.category for warning in caught} == {ResourceWarning}


def test_a_child_keeps_its_parent(smollm2_path: Path) -> None:
    """A context whose model's name is gone works on, for it holds the model."""
    context = og.Context(og.Model(smollm2_path), n_ctx=64)
    gc.collect()
    batch = og.Batch(1)
    batch.add(1, 0, [0], logits=True)
    context.decode(batch)
    assert context.argmax(-1) >= 0
    context.model.close()
    assert context.closed


def test_the_end_of_the_process_with_everything_open(smollm2_path: Path, run_child: RunChild) -> None:
    """A process that closes nothing ends with 0, with anything open, and in whichever order its names go."""
    done = run_child(
        """
        import sys, warnings
        warnings.simplefilter("ignore", ResourceWarning)
        import offgrid_llama as og
        context = og.Context(og.Model(sys.argv[1]), n_ctx=64)
        chain = og.SamplerChain([og.Grammar.gbnf('root ::= "a"').sampler(context.model.vocab), og.samplers.greedy()])
        batch = og.Batch(1)
        batch.add(1, 0, [0], logits=True)
        context.decode(batch)
        row = context.logits(-1)
        generation = og.generate(context.model, "Hello", max_tokens=8, temperature=0)
        next(iter(generation))
        cycle = [context, chain, row, generation]
        cycle.append(cycle)
        print("end")
        """,
        smollm2_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_a_forked_child_is_refused(smollm2_path: Path, run_child: RunChild) -> None:
    """A child forked after a model was loaded gets ForkError, does not hang, and frees nothing of its parent's."""
    done = run_child(
        """
        import os, sys, warnings
        warnings.simplefilter("ignore")
        import offgrid_llama as og
        with og.Model(sys.argv[1]) as model, og.Context(model, n_ctx=64) as context:
            batch = og.Batch(1)
            batch.add(1, 0, [0], logits=True)
            context.decode(batch)
            child = os.fork()
            if not child:
                for use in (lambda: context.decode(batch), lambda: og.Model(sys.argv[1]), lambda: model.vocab.piece(1)):
                    try:
                        use()
                    except og.ForkError:
                        print("refused", flush=True)
                model.close()
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            context.memory.clear()
            context.decode(batch)
        print("the parent works on")
        """,
        smollm2_path,
    )
    assert (done.returncode, done.stdout.split("\n")) == (0, ["refused"] * 3 + ["the parent works on", ""]), done.stderr
