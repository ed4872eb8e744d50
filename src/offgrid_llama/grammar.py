"""Grammar: text that can only be what a grammar allows (GBNF, ``llama_sampler_init_grammar``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._callbacks import forget_log
from ._capi import lib
from ._check import not_null
from .errors import GrammarError
from .gbnf import read_gbnf
from .sampling import Sampler

if TYPE_CHECKING:
    from .vocab import Vocab

__all__ = ["Grammar"]


class Grammar:
    """A grammar, checked, and independent of any model. Make one with ``Grammar.gbnf(text)``; it may be used many times.

    Attributes:
        text: the grammar's source.
        root: the rule to begin with.
    """

    def __init__(self, text: str, root: str = "root") -> None:
        if not isinstance(text, str):
            raise TypeError(f"text must be str, not {type(text).__name__}")
        self.text = text
        self.root = root
        self._outline = read_gbnf(text, root)

    @classmethod
    def gbnf(cls, text: str, root: str = "root") -> Grammar:
        """Read a grammar in llama.cpp's GBNF notation.

        Raises GrammarError, with line and column, for what does not parse and for what is over a limit: 64 KiB, 2,000
        rules, 100 nested groups, 2,000 repetitions of one item, 4,000 ways to go on from one place.
        """
        return cls(text, root)

    def __repr__(self) -> str:
        return f"<Grammar: {len(self._outline.rules)} rules, {len(self.text)} characters>"

    def sampler(self, vocab: Vocab) -> Sampler:
        """Return a sampler that leaves only tokens that the grammar allows; put it first in a chain.

        Raises GrammarError for tokens that the vocabulary does not have, and for what llama.cpp cannot use.
        """
        for token in sorted(self._outline.tokens):
            if len(vocab.tokenize(token, add_special=False, parse_special=True)) != 1:
                raise GrammarError(f"the grammar names {token}, which is not one token of this vocabulary")
        if max(self._outline.token_ids, default=0) >= vocab.n_tokens:
            raise GrammarError(f"the grammar names token {max(self._outline.token_ids)} of {vocab.n_tokens}")
        forget_log()
        with vocab._handle:
            ptr = not_null(
                lib.llama_sampler_init_grammar(vocab._ptr, self.text.encode("utf-8"), self.root.encode("utf-8")),
                lambda log: GrammarError("llama.cpp cannot use the grammar", log=log),
            )
            return Sampler("grammar", ptr, vocab)  # which it reads until it is freed
