"""Guide: which tokens may come next under a grammar of llguidance, and which must.

llguidance knows all that a text may become under a grammar, and gives a mask of one bit a token. It needs a table of the
model's tokens, which takes a while to build (a second for 262,144 of them): once for each model, at the first need or, by
``prepare``, in a thread before that.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ._capi import ffi
from .errors import ClosedError, GrammarError, OffgridLlamaError
from .params import TokenAttr

if TYPE_CHECKING:
    from ._handle import Handle
    from .vocab import Vocab

__all__ = ["Guide", "guide_of", "prepare"]

MOST_FORCED = 32
"""Most tokens that are appended at once."""

MOST_COMPILED = 64
"""Grammars of each model that are kept ready."""

_LIMITS = {"max_lexer_states": 20_000, "max_grammar_size": 100_000}  # the others are llguidance's own


class _Tokenizer:
    """What llguidance asks of a tokenizer, by the names that it asks with."""

    def __init__(self, vocab: Vocab) -> None:
        pieces, attrs = vocab._pieces_and_attrs()
        parsed = TokenAttr.CONTROL | TokenAttr.UNKNOWN
        self.special_token_ids = [token for token, attr in enumerate(attrs) if attr & int(parsed)]
        for token in self.special_token_ids:
            pieces[token] = b"\xff" + pieces[token]  # which no text is
        self.tokens = pieces
        self.eos_token_id = vocab.eos if vocab.eos is not None else min(vocab.eog_tokens(), default=0)
        self.bos_token_id = vocab.bos
        self._vocab = weakref.ref(vocab)  # the table is kept by the handle that the vocabulary has
        # Some put a space before each text; what stands before it keeps that away.
        self._before = [(text, vocab.tokenize(text, add_special=False)) for text in (b"", b"\n", b"a", b"\n\x02")]

    def __call__(self, text: bytes) -> list[int]:
        vocab = self._vocab()
        if vocab is None:
            raise ClosedError("the model of this grammar's tokens is gone")
        for before, tokens in self._before:
            found = vocab.tokenize(before + text, add_special=False)
            rest = found[len(tokens) :]
            if found[: len(tokens)] == tokens and b"".join(self.tokens[token] for token in rest) == text:
                return rest
        # No tokens are these bytes with anything before them: the halves may be some.
        return [] if len(text) < 2 else [*self(text[: len(text) // 2]), *self(text[len(text) // 2 :])]


class _Compiler:
    """The table of one vocabulary, and the grammars that were compiled for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table: Any = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def table(self, vocab: Vocab) -> Any:
        """Return llguidance's table of the tokens (``LLTokenizer``)."""
        with self._lock:
            if self._table is None:
                llguidance = _llguidance()
                tokenizer = llguidance.TokenizerWrapper(_Tokenizer(vocab))
                ends = sorted(vocab.eog_tokens()) or None
                self._table = llguidance.LLTokenizer(tokenizer, n_vocab=vocab.n_tokens, eos_token=ends)
            return self._table

    def matcher(self, source: str, vocab: Vocab) -> Any:
        """Return a new matcher (``LLMatcher``) of a grammar; GrammarError for one that llguidance refuses."""
        table = self.table(vocab)
        with self._lock:
            known = self._compiled.get(source)
            if known is not None:
                self._compiled.move_to_end(source)
        if known is None:
            llguidance = _llguidance()
            limits = llguidance.LLParserLimits(**_LIMITS)
            known = llguidance.LLMatcher(table, source, log_level=0, limits=limits)
            begun = known.deep_copy()
            begun.compute_bitmask()  # some things are found here first
            if begun.is_error():
                raise GrammarError(_told(begun.get_error()))
            with self._lock:
                self._compiled[source] = known
                while len(self._compiled) > MOST_COMPILED:
                    self._compiled.popitem(last=False)
        return known.deep_copy()


_compilers: weakref.WeakKeyDictionary[Handle, _Compiler] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _compiler(vocab: Vocab) -> _Compiler:
    with _lock:
        return _compilers.setdefault(vocab._handle, _Compiler())


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise GrammarError("such grammars need llguidance: pip install 'offgrid-llama[chat]'") from error
    return llguidance


def prepare(vocab: Vocab) -> None:
    """Build the table of a model in a thread of its own, so that the first grammar need not wait for it.

    Does nothing without llguidance. What goes wrong is raised where a grammar is used.
    """

    def build() -> None:
        try:
            _compiler(vocab).table(vocab)
        except (OffgridLlamaError, ValueError, TypeError):
            return

    threading.Thread(target=build, name="offgrid_llama guide", daemon=True).start()


def guide_of(source: str, vocab: Vocab) -> Guide:
    """Return a new Guide for a grammar in llguidance's notation; GrammarError where it cannot be used."""
    return Guide(_compiler(vocab).matcher(source, vocab), vocab)


class Guide:
    """The state of one text under a grammar. Not thread-safe.

    Attributes:
        mask: uint32[(n_vocab + 31) / 32], one bit for each token, as ``fill`` has set it.
        error: why it can say no more; None as long as it can. The mask then allows nothing.
    """

    def __init__(self, matcher: Any, vocab: Vocab) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self._n_words = (vocab.n_tokens + 31) // 32
        self.mask = ffi.new("uint32_t[]", self._n_words)
        self._address = int(ffi.cast("intptr_t", self.mask))
        self.error: GrammarError | None = None

    def fill(self) -> None:
        """Set ``mask`` to the tokens that may come next."""
        if self.error is None:
            self._matcher.unsafe_compute_mask_ptr(self._address, 4 * self._n_words)
            self._check()

    def words(self) -> bytes:
        """Return a copy of ``mask``."""
        return bytes(ffi.buffer(self.mask))

    def accept(self, token: int) -> None:
        """Take the token that has come."""
        if self.error is None:
            self._matcher.consume_token(token)
            self._check()

    def forced(self) -> list[int]:
        """Take the tokens that must come next, whatever the model says, and return them; MOST_FORCED at most."""
        if self.error is not None or self.ended:
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()[:MOST_FORCED]
        return tokens[: self._matcher.try_consume_tokens(tokens)]

    @property
    def ended(self) -> bool:
        """Whether the text is whole, and nothing can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def may_end(self) -> bool:
        """Whether the text is whole as it is."""
        return bool(self._matcher.is_accepting())

    def reset(self) -> None:
        """Begin anew."""
        self._matcher.reset()
        self.error = None
        self._check()

    def clone(self) -> Guide:
        """Return one of its own in the same state."""
        other = Guide(self._matcher.deep_copy(), self._vocab)
        other.error = self.error
        return other

    def _check(self) -> None:
        if self._matcher.is_error():
            self.error = GrammarError(_told(self._matcher.get_error()))
            ffi.memmove(self.mask, b"\0" * (4 * self._n_words), 4 * self._n_words)


def _told(message: str) -> str:
    """Return an error of llguidance in one line."""
    if "oneOf constraints" in message:
        return "grammar: 'oneOf' is supported only where its schemas exclude each other; use 'anyOf' elsewhere"
    if "NoExtension" in message:
        return "grammar: there is no text that fulfills it"
    first, *others = message.strip().splitlines() or ["it cannot be used"]
    reasons = [line.strip().removeprefix("error: ") for line in others if line.strip().startswith("error:")]
    return "grammar: " + " ".join([first, *reasons])[:500]
