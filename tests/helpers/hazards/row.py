"""A row of the table of hazards, and the words that several rows need."""

from __future__ import annotations

from dataclasses import dataclass

Ours = tuple[str, str, str]


@dataclass(frozen=True)
class Hazard:
    """One row."""

    row: str
    ours: tuple[Ours, ...] = ()
    raw: str = ""
    ends: str = "dies"
    tests: tuple[str, ...] = ()
    note: str = ""
    openmp: bool = False  # only where ggml's threads are those of OpenMP
    rule: str = ""  # of files/gguf_preflight.py


# The words of a few statements that several rows need.
GRAMMAR = "og.Grammar.gbnf({!r}).sampler(vocab)"
RAW_GRAMMAR = "lib.llama_sampler_init_grammar(words_vocab, {}, b'root')"
RAW_YES = RAW_GRAMMAR.format("b'root ::= \"yes\"'")
RAW_CHAIN = "chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())"
FORBID_ALL = "S.logit_bias(vocab, {i: -float('inf') for i in range(vocab.n_tokens)})"
RAW_OTHERS = "rows((9, {}, [0], 1))"
TOKEN_CALLS = ("text", "score", "attr", "piece", "is_control", "is_eog")
