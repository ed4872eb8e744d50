"""Guide: which tokens may come next under a grammar of llguidance, and which must.

llguidance knows all that a text may become under a grammar, and gives a mask of one bit a token. It needs a table of the
model's tokens, which takes a while to build (a second for 262,144 of them): once for each model, at the first need or, by
``prepare``, in a thread before that.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
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
        self._compiled: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def table(self, vocab: Vocab) -> Any:
        """Return llguidance's table of the tokens (``LLTokenizer``)."""
        with self._lock:
            if self._table is None:
                llguidance = _llguidance()
                tokenizer = llguidance.TokenizerWrapper(_Tokenizer(vocab))
                ends = sorted(vocab.eog_tokens()) or None
                self._table = llguidance.LLTokenizer(tokenizer, n_vocab=vocab.n_tokens, eos_token=ends)
            return self._table

    def matcher(self, source: str, vocab: Vocab, salt: str) -> Any:
        """Return a matcher (``LLMatcher``) of a grammar, to copy; GrammarError for one that llguidance refuses."""
        table, key = self.table(vocab), (salt, source)
        with self._lock:
            known = self._compiled.get(key)
            if known is not None:
                self._compiled.move_to_end(key)
        if known is None:
            llguidance = _llguidance()
            limits = llguidance.LLParserLimits(**_LIMITS)
            known = llguidance.LLMatcher(table, source, log_level=0, limits=limits)
            begun = known.deep_copy()
            begun.compute_bitmask()  # some things are found here first
            if begun.is_error():
                raise GrammarError(_told(begun.get_error()))
            with self._lock:
                self._compiled[key] = known
                while len(self._compiled) > MOST_COMPILED:
                    self._compiled.popitem(last=False)
        return known


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

    Not while anything is computed: a busy thread beside those of a decode slows it down by far more than its share.

    Does nothing without llguidance. What goes wrong is raised where a grammar is used.
    """

    def build() -> None:
        try:
            _compiler(vocab).table(vocab)
        except (OffgridLlamaError, ValueError, TypeError):
            return

    with suppress(RuntimeError):  # no room for a thread
        threading.Thread(target=build, name="offgrid_llama guide", daemon=True).start()


def guide_of(source: str, vocab: Vocab, salt: str = "") -> Guide:
    """Return a new Guide for a grammar in llguidance's notation; GrammarError where it cannot be used.

    What is compiled is kept for those with the same salt.
    """
    return Guide(_compiler(vocab).matcher(source, vocab, salt), vocab)


class Guide:
    """The state of one text under a grammar. Not thread-safe.

    Args:
        known: the matcher of the grammar, which is left as it is.
        vocab: of the model.

    Attributes:
        mask: uint32[(n_vocab + 31) / 32], one bit for each token, as ``fill`` has set it.
        error: why it can say no more; None as long as it can. The mask then allows nothing.
        masks, must: what ``foresee`` has found: the masks of all rows but the first, one behind the other, and for each row
            the token that must come, or -1.
    """

    def __init__(self, known: Any, vocab: Vocab) -> None:
        self._known = known
        self._matcher = known.deep_copy()
        self._vocab = vocab
        self._n_words = (vocab.n_tokens + 31) // 32
        self.mask = ffi.new("uint32_t[]", self._n_words)
        self.masks, self.must = ffi.new("uint32_t[]", 0), ffi.new("int32_t[]", 1)
        self.error: GrammarError | None = None
        self._taken: list[int] = []
        self._filled = False  # whether the mask is that of the state
        self._blind = False  # whether looking ahead has failed

    def fill(self) -> None:
        """Set ``mask`` to the tokens that may come next."""
        if self.error is None and not self._filled:
            self._compute(self.mask)
            self._filled = True
            self._check()

    def words(self) -> bytes:
        """Return a copy of ``mask``."""
        return bytes(ffi.buffer(self.mask))

    def accept(self, token: int) -> None:
        """Take the token that has come."""
        if self.error is None:
            self._filled = False
            self._taken.append(token)
            self._matcher.consume_token(token)
            self._check()

    def forced(self) -> list[int]:
        """Take the tokens that must come next, whatever the model says, and return them; MOST_FORCED at most."""
        if self.error is not None:
            return []
        tokens = self._run()
        self._filled = self._filled and not tokens
        self._taken += tokens
        return tokens

    def foresee(self, guesses: Sequence[int], *, forces: bool = True) -> list[int]:
        """Return which tokens to check together where ``guesses`` are guessed to come next, and fill ``mask`` and ``masks``.

        A guess that may not come ends the list, and so does one after which the text would be whole. Where tokens must come
        after a guess, as ``forced`` would say, they take the place of the guesses; where these differ, the list ends after
        them. What comes after the last of the list is never one that must come: such tokens cost no more once it is sure
        that they do. The state stays as it is.

        Args:
            guesses: token ids. There are never more tokens than these.
            forces: whether tokens that must come are not sampled; ``must`` has them.
        """
        self.fill()
        if self.error is not None or self._blind or not guesses:
            return []
        if len(self.must) <= len(guesses):
            self.masks = ffi.new("uint32_t[]", len(guesses) * self._n_words)
            self.must = ffi.new("int32_t[]", len(guesses) + 1)
        tokens, n_consumed = self._look(guesses, forces)
        if self._matcher.is_error() or not self._matcher.rollback(n_consumed):
            # There is no way back from an error that the text itself may never come to.
            self._renew()
            self._blind = True
        return tokens

    def _look(self, guesses: Sequence[int], forces: bool) -> tuple[list[int], int]:
        """Return what may come, with masks for all that is sampled, and how many tokens that has consumed."""
        matcher, must, ends = self._matcher, self.must, self._vocab.eog_tokens()
        tokens: list[int] = []
        n_consumed, mask, same = 0, self.mask, True
        must[0] = -1
        while same and len(tokens) < len(guesses):
            guess = guesses[len(tokens)]
            if not mask[guess // 32] >> guess % 32 & 1 or guess in ends or not matcher.try_consume_tokens([guess]):
                break
            n_consumed += 1
            if self.ended:
                break
            run = self._run() if forces else []
            n_consumed += len(run)
            if len(tokens) + 1 + len(run) > len(guesses) or not ends.isdisjoint(run) or self.ended:
                break
            tokens.append(guess)
            for token in run:
                same = same and guesses[len(tokens)] == token
                must[len(tokens)] = token
                tokens.append(token)
            must[len(tokens)] = -1
            mask = self.masks + (len(tokens) - 1) * self._n_words
            self._compute(mask)
            if matcher.is_error():
                del tokens[len(tokens) - 1 - len(run) :]
                break
        return tokens, n_consumed

    def _run(self) -> list[int]:
        """Consume what must come next, and return it."""
        if self.ended:
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()[:MOST_FORCED]
        return tokens[: self._matcher.try_consume_tokens(tokens)]

    def _compute(self, mask: Any) -> None:
        self._matcher.unsafe_compute_mask_ptr(int(ffi.cast("intptr_t", mask)), 4 * self._n_words)

    def _renew(self) -> None:
        """Make another matcher that is where this one was."""
        self._matcher = self._known.deep_copy()
        self._matcher.consume_tokens(self._taken)
        self._check()

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
        self.error, self._filled = None, False
        self._taken.clear()
        self._renew()

    def clone(self) -> Guide:
        """Return one of its own in the same state."""
        other = Guide(self._known, self._vocab)
        other._matcher = self._matcher.deep_copy()
        other._taken, other._blind = self._taken.copy(), self._blind
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
