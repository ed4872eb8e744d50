"""Guide: which tokens a grammar of llguidance allows next, and which it forces.

llguidance follows a text through its grammar and gives a mask of one bit for each token. It needs a table of the model's
tokens, which takes a while to build (a second for 262,144 tokens). The table is built once for each model: when it is first
needed, or earlier by ``prepare``, in a thread.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi
from offgrid_llama.errors import ClosedError, GrammarError, OffgridLlamaError, QueueFullError, TokenizeError
from offgrid_llama.native.bound import Bound
from offgrid_llama.native.enums import TokenAttr

if TYPE_CHECKING:
    from offgrid_llama.model.vocab import Vocab
    from offgrid_llama.native.handle import Handle

__all__ = ["Guide", "guide_of", "prepare"]

MAX_FORCED_TOKENS = 32
"""The most forced tokens that are appended at once, so that a long constant text stalls no other stream."""

BYTES_OF_A_CHARACTER = 600
"""Memory of a compiled grammar for each character of its source, at most: an object of optional numbers with ranges takes
560, one of integers 300, of texts 160, patterns up to 370, an enum 10 to 50 (llguidance does not tell it)."""

MAX_KEPT_BYTES = 128 * 2**20
"""Memory of the compiled grammars that are kept for each model, by that estimate; the one used last is always kept."""

MAX_LIVING_BYTES = 2**30
"""Memory of all compiled grammars of a model, with those of texts that are not complete, by that estimate."""

_LIMITS = {"max_lexer_states": 20_000, "max_grammar_size": 100_000}  # all other limits are llguidance's own


class _Tokenizer:
    """A tokenizer with the attributes that llguidance reads."""

    def __init__(self, vocab: Vocab) -> None:
        pieces, attrs = vocab.pieces_and_attrs()
        parsed = TokenAttr.CONTROL | TokenAttr.UNKNOWN
        self.special_token_ids = [token for token, attr in enumerate(attrs) if attr & int(parsed)]
        for token in self.special_token_ids:
            pieces[token] = b"\xff" + pieces[token]  # no text begins so
        self.tokens = pieces
        self.eos_token_id = vocab.eos if vocab.eos is not None else min(vocab.eog_tokens(), default=0)
        self.bos_token_id = vocab.bos
        self._vocab = weakref.ref(vocab)  # the vocabulary's handle keeps the table
        # Some tokenizers put a space before each text, but not after another text.
        before = ((text, _tokens(vocab, text)) for text in (b"", b"\n", b"a", b"\n\x02"))
        self._before = [(text, tokens) for text, tokens in before if tokens is not None]

    def __call__(self, text: bytes) -> list[int]:
        vocab = self._vocab()
        if vocab is None:
            raise ClosedError("the model of this grammar's tokens is gone")
        for before, tokens in self._before:
            found = _tokens(vocab, before + text) or []
            rest = found[len(tokens) :]
            if found[: len(tokens)] == tokens and b"".join(self.tokens[token] for token in rest) == text:
                return rest
        # No tokens give these bytes after any of the texts: try the halves.
        return [] if len(text) < 2 else [*self(text[: len(text) // 2]), *self(text[len(text) // 2 :])]


def _tokens(vocab: Vocab, text: bytes) -> list[int] | None:
    """Return the tokens of a text; None where the vocabulary has none for it, as a very small one may."""
    try:
        return vocab.tokenize(text, add_special=False)
    except TokenizeError:
        return None


class _Compiled:
    """A compiled grammar, for copying; copies share its memory.

    Attributes:
        matcher: llguidance's LLMatcher, at the beginning of a text.
        n_bytes: the memory that it takes, as an upper estimate.
    """

    __slots__ = ("__weakref__", "matcher", "n_bytes")

    def __init__(self, matcher: Any, n_bytes: int) -> None:
        self.matcher = matcher
        self.n_bytes = n_bytes


class _Compiler:
    """The token table of one vocabulary, and its compiled grammars.

    Attributes:
        kept: those that are kept for further texts, by salt and source; the least recently used first.
        n_kept_bytes: their memory, as an upper estimate.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table: Any = None
        self.kept: OrderedDict[tuple[str, str], _Compiled] = OrderedDict()
        self._living: weakref.WeakSet[_Compiled] = weakref.WeakSet()
        self.n_kept_bytes = 0

    def table(self, vocab: Vocab) -> Any:
        """Return llguidance's table of the tokens (``LLTokenizer``)."""
        with self._lock:
            if self._table is None:
                llguidance = _llguidance()
                tokenizer = llguidance.TokenizerWrapper(_Tokenizer(vocab))
                ends = sorted(vocab.eog_tokens()) or None
                self._table = llguidance.LLTokenizer(tokenizer, n_vocab=vocab.n_tokens, eos_token=ends)
            return self._table

    def compiled(self, source: str, vocab: Vocab, salt: str) -> _Compiled:
        """Return a compiled grammar; raise GrammarError if llguidance refuses it, and QueueFullError as ``guide_of``."""
        table, key = self.table(vocab), (salt, source)
        with self._lock:
            known = self.kept.get(key)
            if known is not None:
                self.kept.move_to_end(key)
                return known
        n_bytes = BYTES_OF_A_CHARACTER * len(source)
        self._refuse_more(n_bytes)
        known = _Compiled(_compile(table, source), n_bytes)
        with self._lock:
            self._living.add(known)
            self._keep(key, known)
        return known

    def _keep(self, key: tuple[str, str], known: _Compiled) -> None:
        replaced = self.kept.pop(key, None)  # another thread has compiled it meanwhile
        self.kept[key] = known
        self.n_kept_bytes += known.n_bytes - (0 if replaced is None else replaced.n_bytes)
        while self.n_kept_bytes > MAX_KEPT_BYTES and len(self.kept) > 1:
            _, oldest = self.kept.popitem(last=False)
            self.n_kept_bytes -= oldest.n_bytes

    def _refuse_more(self, n_bytes: int) -> None:
        with self._lock:
            n_living = sum(each.n_bytes for each in self._living)  # those that are kept are among them
            if n_living + n_bytes > MAX_LIVING_BYTES:
                raise QueueFullError(
                    f"the grammars of {len(self._living)} requests take up to {n_living:,} bytes",
                    n_waiting=len(self._living),
                )


def _compile(table: Any, source: str) -> Any:
    """Return llguidance's matcher of a grammar. Raises GrammarError."""
    llguidance = _llguidance()
    limits = llguidance.LLParserLimits(**_LIMITS)
    matcher = llguidance.LLMatcher(table, source, log_level=0, limits=limits)
    begun = matcher.deep_copy()
    begun.compute_bitmask()  # finds some errors that compiling does not
    if begun.is_error():
        raise GrammarError(_one_line(begun.get_error()))
    return matcher


_compilers: weakref.WeakKeyDictionary[Handle, _Compiler] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _compiler(vocab: Vocab) -> _Compiler:
    with _lock:
        return _compilers.setdefault(vocab.handle, _Compiler())


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise GrammarError("such grammars need llguidance: pip install 'offgrid-llama[chat]'") from error
    return llguidance


def prepare(vocab: Vocab) -> None:
    """Build a model's token table in a thread, so that the first grammar need not wait for it.

    Call it only while nothing is computed: a busy thread beside those of a decode slows it down by far more than its share.
    Without llguidance it does nothing. Errors are raised later, where a grammar is used.
    """

    def build() -> None:
        try:
            _compiler(vocab).table(vocab)
        except (OffgridLlamaError, ValueError, TypeError):
            return

    with suppress(RuntimeError):  # the system has no thread left
        threading.Thread(target=build, name="offgrid_llama guide", daemon=True).start()


def guide_of(source: str, vocab: Vocab, salt: str = "") -> Guide:
    """Return a new Guide for a grammar in llguidance's notation; raise GrammarError if it cannot be used.

    The compiled grammar is kept for callers with the same salt. Raises QueueFullError while the grammars of other texts take
    MAX_LIVING_BYTES.
    """
    return Guide(_compiler(vocab).compiled(source, vocab, salt), vocab)


class Guide(Bound):
    """The state of one text under a grammar. Not thread-safe.

    Args:
        known: the compiled grammar; it is copied, not changed.
        vocab: the model's Vocab.

    Attributes:
        mask: uint32[(n_vocab + 31) / 32], one bit for each token, as ``fill`` has set it.
        error: why the guide has failed; None while it works. After a failure the mask allows nothing.
        masks, must: the results of ``foresee``: the masks of all rows but the first, one after the other, and for each row
            the forced token, or -1.
    """

    _instead = "hand on the Grammar; grammar.guide(vocab) makes another one"

    def __init__(self, known: _Compiled, vocab: Vocab) -> None:
        self._known: _Compiled | None = known
        self._matcher: Any = known.matcher.deep_copy()
        self._vocab = vocab
        self._n_words = (vocab.n_tokens + 31) // 32
        self.mask = ffi.new("uint32_t[]", self._n_words)
        self.masks, self.must = ffi.new("uint32_t[]", 0), ffi.new("int32_t[]", 1)
        self.error: GrammarError | None = None
        self._taken: list[int] = []
        self._filled = False  # whether the mask is that of the state
        self._blind = False  # whether looking ahead has failed

    def fill(self) -> None:
        """Set ``mask`` to the tokens that are allowed next."""
        if self.error is None and not self._filled:
            self._compute(self.mask)
            self._filled = True
            self._check()

    def words(self) -> bytes:
        """Return a copy of ``mask``."""
        return bytes(ffi.buffer(self.mask))

    def accept(self, token: int) -> None:
        """Append a sampled token to the text."""
        if self.error is None:
            self._filled = False
            self._taken.append(token)
            self._matcher.consume_token(token)
            self._check()

    def forced(self) -> list[int]:
        """Append the tokens that the grammar forces next, up to MAX_FORCED_TOKENS, and return them."""
        if self.error is not None:
            return []
        tokens = self._run()
        self._filled = self._filled and not tokens
        self._taken += tokens
        return tokens

    def foresee(self, guesses: Sequence[int], *, forces: bool = True) -> list[int]:
        """Return the tokens to verify together when ``guesses`` are guessed next, and fill ``mask`` and ``masks``.

        The list ends before a guess that the grammar forbids, and before one that would complete the text. Forced tokens
        after a guess replace the guesses there; if they differ, the list ends after them. The token after the list is never
        a forced one: forced tokens cost nothing once the text before them is certain. The state does not change.

        Args:
            guesses: token ids. The result is never longer.
            forces: whether forced tokens are appended without being sampled; ``must`` has them.
        """
        self.fill()
        if self.error is not None or self._blind or not guesses:
            return []
        if len(self.must) <= len(guesses):
            self.masks = ffi.new("uint32_t[]", len(guesses) * self._n_words)
            self.must = ffi.new("int32_t[]", len(guesses) + 1)
        tokens, n_consumed = self._look(guesses, forces)
        if self._matcher.is_error() or not self._matcher.rollback(n_consumed):
            # An error of a guess cannot be rolled back; the text itself may never run into it.
            self._renew()
            self._blind = True
        return tokens

    def _look(self, guesses: Sequence[int], forces: bool) -> tuple[list[int], int]:
        """Return the tokens to verify, and how many tokens the matcher has consumed for them; fill the masks."""
        matcher, ends = self._matcher, self._vocab.eog_tokens()
        tokens: list[int] = []
        n_consumed, mask, same = 0, self.mask, True
        self.must[0] = -1
        while same and len(tokens) < len(guesses):
            guess = guesses[len(tokens)]
            if not mask[guess // 32] >> guess % 32 & 1 or guess in ends or not matcher.try_consume_tokens([guess]):
                break
            run = self._run() if forces else []  # empty where the guess completes the text
            n_consumed += 1 + len(run)
            if len(tokens) + 1 + len(run) > len(guesses) or not ends.isdisjoint(run) or self.ended:
                break
            tokens.append(guess)
            same = self._append_forced(run, tokens, guesses)
            mask = self.masks + (len(tokens) - 1) * self._n_words
            self._compute(mask)
            if matcher.is_error():
                del tokens[len(tokens) - 1 - len(run) :]
                break
        return tokens, n_consumed

    def _append_forced(self, run: Sequence[int], tokens: list[int], guesses: Sequence[int]) -> bool:
        """Append forced tokens, and return whether they are as guessed."""
        same = True
        for token in run:
            same = same and guesses[len(tokens)] == token
            self.must[len(tokens)] = token
            tokens.append(token)
        self.must[len(tokens)] = -1
        return same

    def _run(self) -> list[int]:
        """Consume the tokens that the grammar forces next, and return them."""
        if self.ended:
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()[:MAX_FORCED_TOKENS]
        return tokens[: self._matcher.try_consume_tokens(tokens)]

    def _compute(self, mask: Any) -> None:
        self._matcher.unsafe_compute_mask_ptr(int(ffi.cast("intptr_t", mask)), 4 * self._n_words)

    def _renew(self) -> None:
        """Replace the matcher by a new one in the state of the text so far."""
        if self._known is None:
            raise ClosedError("the guide is closed")
        self._matcher = self._known.matcher.deep_copy()
        self._matcher.consume_tokens(self._taken)
        self._check()

    @property
    def ended(self) -> bool:
        """Whether the text is complete, and nothing can follow."""
        return self._known is None or bool(self._matcher.is_stopped())

    @property
    def may_end(self) -> bool:
        """Whether the text is complete as it is."""
        return self._known is not None and bool(self._matcher.is_accepting())

    def reset(self) -> None:
        """Start a new text."""
        self.error, self._filled = None, False
        self._taken.clear()
        self._renew()

    def close(self) -> None:
        """Let go of the grammar, whose memory others may need. From now on nothing is allowed."""
        if self._known is not None:
            self._known = self._matcher = None
            self._fail(GrammarError("grammar: the guide is closed"))

    def clone(self) -> Guide:
        """Return an independent Guide in the same state."""
        if self._known is None:
            raise ClosedError("the guide is closed")
        other = Guide(self._known, self._vocab)
        other._matcher = self._matcher.deep_copy()
        other._taken, other._blind = self._taken.copy(), self._blind
        other.error = self.error
        return other

    def _check(self) -> None:
        if self._matcher.is_error():
            self._fail(GrammarError(_one_line(self._matcher.get_error())))

    def _fail(self, error: GrammarError) -> None:
        self.error = error
        ffi.memmove(self.mask, b"\0" * (4 * self._n_words), 4 * self._n_words)


def _one_line(message: str) -> str:
    """Return an error of llguidance as one line."""
    if "oneOf constraints" in message:
        return "grammar: 'oneOf' is supported only where its schemas exclude each other; use 'anyOf' elsewhere"
    if "NoExtension" in message:
        return "grammar: there is no text that fulfills it"
    first, *others = message.strip().splitlines() or ["it cannot be used"]
    reasons = [line.strip().removeprefix("error: ") for line in others if line.strip().startswith("error:")]
    return "grammar: " + " ".join([first, *reasons])[:500]
