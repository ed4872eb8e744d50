"""Vocab: text to tokens and back (``llama_vocab``). Borrowed: it lives in its Model and dies with it."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING, TypeVar

from ._capi import ffi, lib
from ._check import filled, number, text_of
from .errors import NativeError, TokenizeError
from .params import TokenAttr, VocabType

if TYPE_CHECKING:
    from collections.abc import Callable

    from .model import Model

__all__ = ["MAX_BYTES_TIMES_RUN", "MAX_RUN_BYTES", "MAX_SPECIAL_TOKENS", "MAX_TEXT_BYTES", "Vocab"]

MAX_TEXT_BYTES = 64 * 1024 * 1024
"""Longest text that tokenize() takes, in bytes of UTF-8."""

MAX_RUN_BYTES = 1024 * 1024
"""Longest stretch of text without a space, or of spaces alone, in bytes of UTF-8."""

MAX_SPECIAL_TOKENS = 65_536
"""Most tokens of one text that are found before words are: user-defined ones, and control tokens that are parsed."""

MAX_BYTES_TIMES_RUN = 2**33
"""With SentencePiece: a text's bytes, times the most characters in a row that are no tokens, such as 90,000 newlines."""

# llama.cpp takes the square of the two above: std::distance over the list of fragments for each special token
# (llama-vocab.cpp, tokenizer_st_partition), and a reserve() of no more than is needed for each character that is no token
# (llm_tokenizer_spm_session::resegment), which copies all tokens before it.
_SURELY_QUICK_BYTES = 64 * 1024

# Some pre-tokenizers go through std::regex, which recurses for each character of a match, some 200 bytes of stack each.
_SHORT_RUN_BYTES = 1024
_DEEP_STACK_BYTES = 1024 * 1024 * 1024  # reserved, not used: pages come as they are touched

_SPACES = rb"(?:[ \t\f\v]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)"

# Where a pre-tokenizer (tokenizer.ggml.pre) matches other stretches than words and spaces, or takes the square of their
# length: what they are, how errors say it, and the longest that is let through (None: MAX_RUN_BYTES).
_OTHER_RUNS: dict[str, tuple[re.Pattern[bytes], str, int | None]] = {
    "exaone-moe": (re.compile(rb"(?:[^0-9!-/:-@\[-`{-~\s]| (?! ))+"), "bytes without punctuation", None),
    "superbpe": (re.compile(rb"[0-9]+"), "digits in a row", 4096),
    # Its \s+$ looks for the end from each space, unless a letter or a sign after them takes the last one.
    "deepseek-llm": (re.compile(rb"(%s+(?!%s)[0-9\x80-\xff])|%s+" % ((_SPACES,) * 3)), "spaces in a row", 2048),
}


_SPACE, _NO_SPACE = re.compile(rb"\s"), re.compile(rb"\S")
_TOKENS, _CHARS = ffi.typeof("llama_token[]"), ffi.typeof("char[]")
_T = TypeVar("_T")
_stack_size_lock = threading.Lock()


class Vocab:
    """The tokens of a model. Get it as ``model.vocab``; it holds the model, and is borrowed from it.

    Attributes:
        n_tokens: how many there are; token ids are 0 to ``n_tokens - 1``.
        type: the tokenizer's algorithm.
        bos, eos, eot, sep, nl, pad, mask: special tokens, None where the vocabulary has none: beginning of sentence,
            end of sentence, end of turn, separator, new line, padding, mask.
        fim_pre, fim_suf, fim_mid, fim_pad, fim_rep, fim_sep: fill-in-the-middle tokens, or None.
        add_bos, add_eos, add_sep: what ``add_special=True`` adds.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._handle = model._handle
        self._pieces: dict[int, bytes] = {}  # of the tokens that were asked for
        self._texts: dict[int | None, str] = {}  # and of those that were asked for alone
        self._eog: frozenset[int] | None = None
        self._characters: set[str] = set()  # that are tokens, and the space; filled by _refuse_squares()
        self._specials: dict[bool, list[bytes]] = {}
        self._controls: dict[str, int] = {}
        with self._handle as ptr:
            self._ptr = vocab = lib.llama_model_get_vocab(ptr)
            self.n_tokens: int = lib.llama_vocab_n_tokens(vocab)
            self.type = VocabType(lib.llama_vocab_type(vocab))
            self.add_bos: bool = lib.llama_vocab_get_add_bos(vocab)
            self.add_eos: bool = lib.llama_vocab_get_add_eos(vocab)
            self.add_sep: bool = lib.llama_vocab_get_add_sep(vocab)

            def special(name: str) -> int | None:
                token = getattr(lib, f"llama_vocab_{name}")(vocab)
                return None if token == lib.LLAMA_TOKEN_NULL else int(token)

            self.bos, self.eos, self.eot = special("bos"), special("eos"), special("eot")
            self.sep, self.nl, self.pad, self.mask = special("sep"), special("nl"), special("pad"), special("mask")
            self.fim_pre, self.fim_suf, self.fim_mid = special("fim_pre"), special("fim_suf"), special("fim_mid")
            self.fim_pad, self.fim_rep, self.fim_sep = special("fim_pad"), special("fim_rep"), special("fim_sep")
        added = {"bos": self.add_bos, "eos": self.add_eos}
        if self.type is VocabType.WPM:
            added = {"bos": True, "sep": True}
        self._missing = " and ".join(name for name, wanted in added.items() if wanted and getattr(self, name) is None)
        self._pre = str({**model.metadata, **model.kv_overrides}.get("tokenizer.ggml.pre", ""))
        odd = self._pre == "whitespace" or self._pre in _OTHER_RUNS
        self._particular = odd or bool(self._missing) or self.type is VocabType.NONE  # about short texts, too

    def __len__(self) -> int:
        return self.n_tokens

    def __repr__(self) -> str:
        return f"<Vocab of {self._handle.name}: {self.n_tokens} tokens, {self.type.name}>"

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the token ids of ``text`` (``llama_tokenize``). Safe to call from several threads.

        Args:
            text: str, or bytes that are valid UTF-8; at most MAX_TEXT_BYTES, and MAX_RUN_BYTES without a space. See
                MAX_SPECIAL_TOKENS and MAX_BYTES_TIMES_RUN for texts that no person writes.
            add_special: add the tokens that the model wants at the beginning and at the end, such as BOS.
            parse_special: read ``<s>`` and the like as control tokens. Leave it False for text from users.

        Raises:
            UnicodeError: bytes that are no UTF-8, or str with lone surrogates.
            TokenizeError: the text is too long, or the tokenizer gave up.
        """
        if isinstance(text, bytes):
            text.decode("utf-8")  # llama.cpp terminates the process on some byte strings that are no UTF-8
            data = text
        elif isinstance(text, str):
            data = text.encode("utf-8")
        else:
            raise TypeError(f"text must be str or bytes, not {type(text).__name__}")
        deep = False
        if self._particular or len(data) > _SHORT_RUN_BYTES:
            data, deep = self._prepared(data, add_special, parse_special)
        try:
            if deep:
                return _on_deep_stack(partial(self._tokenize, data, add_special, parse_special))
            return self._tokenize(data, add_special, parse_special)
        except (NativeError, OverflowError) as error:
            raise TokenizeError(f"the text of {len(data):,} bytes could not be tokenized: {error}") from error

    def _prepared(self, data: bytes, add_special: bool, parse_special: bool) -> tuple[bytes, bool]:
        """Return what to tokenize, and whether that takes a deep stack; TokenizeError for what must not be."""
        self._refuse_none()
        if add_special and self._missing:
            raise TokenizeError(
                f"{self._handle.name} wants {self._missing} added and has no such token; use add_special=False"
            )
        if len(data) > MAX_TEXT_BYTES:
            raise TokenizeError(f"text has {len(data):,} bytes; at most {MAX_TEXT_BYTES:,} can be tokenized at once")

        if (
            self._pre == "whitespace"
        ):  # its words are spaces too, and llama.cpp aborts on one that is longer than a space
            data = " ".join(re.split(r"\s+", data.decode("utf-8"))).encode("utf-8")

        run_bytes = _longest_run(data)
        if run_bytes > MAX_RUN_BYTES:
            raise TokenizeError(
                f"text has {run_bytes:,} bytes without a space; at most {MAX_RUN_BYTES:,} can be tokenized"
            )
        if self._pre in _OTHER_RUNS:
            pattern, what, limit = _OTHER_RUNS[self._pre]
            other = max(map(len, pattern.findall(data)), default=0)
            if other > (limit or MAX_RUN_BYTES):
                raise TokenizeError(f"text has {other:,} {what}; at most {limit or MAX_RUN_BYTES:,} can be tokenized")
            run_bytes = max(run_bytes, other)
        if len(data) > _SURELY_QUICK_BYTES:
            self._refuse_squares(data, parse_special)
        return data, run_bytes > _SHORT_RUN_BYTES

    def _tokenize(self, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
        size = len(data) + 8  # there are hardly ever more tokens than bytes
        tokens = ffi.new(_TOKENS, size)
        with self._handle:
            count = lib.llama_tokenize(self._ptr, data, len(data), tokens, size, add_special, parse_special)
            if count < 0:
                call = lambda *to: lib.llama_tokenize(self._ptr, data, len(data), *to, add_special, parse_special)  # noqa: E731
                tokens, count = filled(call, "llama_token[]", size)
        return ffi.unpack(tokens, count) if count else []

    def detokenize(self, tokens: Sequence[int], *, remove_special: bool = False, unparse_special: bool = False) -> str:
        """Return the text of ``tokens`` (``llama_detokenize``); bytes that are no UTF-8 become U+FFFD.

        Args:
            tokens: token ids.
            remove_special: leave out the tokens that ``add_special=True`` adds.
            unparse_special: write control tokens as their text; by default they give nothing.
        """
        ids = tokens if type(tokens) is list else list(tokens)
        if not ids:
            return ""
        alone = ids[0] if len(ids) == 1 and type(ids[0]) is int and not (remove_special or unparse_special) else None
        if alone in self._texts:
            self._handle.check_open()
            return self._texts[alone]
        self._refuse_none()
        if {*map(type, ids)} != {int} or min(ids) < 0 or max(ids) >= self.n_tokens:
            ids = [self._id(f"tokens[{i}]", token) for i, token in enumerate(ids)]
        c_ids, n = ffi.new(_TOKENS, ids), len(ids)
        size = 8 * n + 16
        text = ffi.new(_CHARS, size)
        with self._handle:
            count = lib.llama_detokenize(self._ptr, c_ids, n, text, size, remove_special, unparse_special)
            if count < 0:
                call = lambda *to: lib.llama_detokenize(self._ptr, c_ids, n, *to, remove_special, unparse_special)  # noqa: E731
                text, count = filled(call, "char[]", size)
        result = str(ffi.unpack(text, count), "utf-8", "replace")
        if alone is not None:
            self._texts[alone] = result
        return result

    def piece(self, token: int, *, special: bool = False, lstrip: int = 0) -> bytes:
        """Return the bytes that ``token`` stands for (``llama_token_to_piece``).

        One token may be a part of a UTF-8 character: join pieces through TextStream. Control tokens give ``b""`` unless
        ``special``. ``lstrip`` leaves out up to that many spaces at the beginning.
        """
        if special or lstrip or type(token) is not int:
            return self._piece(token, special, lstrip)
        self._handle.check_open()
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token, False, 0)
        return piece

    def _piece(self, token: int, special: bool, lstrip: int) -> bytes:
        number("lstrip", lstrip, 0)
        with self._handle:
            self._id("token", token)
            buffer, count = filled(
                lambda buffer, size: lib.llama_token_to_piece(self._ptr, token, buffer, size, lstrip, special),
                "char[]", 64,
            )  # fmt: skip
        return bytes(ffi.buffer(buffer, count))

    def pieces(self) -> list[bytes]:
        """Return the bytes of all tokens, control tokens as their text; quicker than ``piece`` for each."""
        return self._pieces_and_attrs()[0]

    def _pieces_and_attrs(self) -> tuple[list[bytes], list[int]]:
        self._refuse_none()
        n = self.n_tokens
        ends, attrs = ffi.new("int32_t[]", n), ffi.new("int32_t[]", n)
        with self._handle:
            call = lambda buffer, size: int(lib.og_pieces(self._ptr, buffer, size, ends, attrs))  # noqa: E731
            buffer, count = filled(call, "char[]", 12 * n)
        data, places = ffi.buffer(buffer, count)[:], ffi.unpack(ends, n)
        return [data[begin:end] for begin, end in pairwise((0, *places))], ffi.unpack(attrs, n)

    def text(self, token: int) -> str:
        """Return the token as the vocabulary spells it, for instance ``Ġthe`` (``llama_vocab_get_text``)."""
        with self._handle:
            return text_of(lib.llama_vocab_get_text(self._ptr, self._id("token", token)))

    def score(self, token: int) -> float:
        """Return the token's score; its meaning depends on the tokenizer (``llama_vocab_get_score``)."""
        with self._handle:
            return float(lib.llama_vocab_get_score(self._ptr, self._id("token", token)))

    def attr(self, token: int) -> TokenAttr:
        """Return what kind of token it is (``llama_vocab_get_attr``)."""
        with self._handle:
            return TokenAttr(lib.llama_vocab_get_attr(self._ptr, self._id("token", token)))

    def is_eog(self, token: int) -> bool:
        """Whether the token ends the generation: EOS, EOT and their like (``llama_vocab_is_eog``)."""
        with self._handle:
            return bool(lib.llama_vocab_is_eog(self._ptr, self._id("token", token)))

    def eog_tokens(self) -> frozenset[int]:
        """Return all tokens that end the generation; see ``is_eog``."""
        with self._handle:
            if self._eog is None:
                self._eog = frozenset(self._find(lib.OG_ENDS))
            return self._eog

    def control_tokens(self) -> Mapping[str, int]:
        """Return the tokens that only ``parse_special=True`` reads in a text, by what they are read from."""
        self._special_texts(True)
        return self._controls

    def is_control(self, token: int) -> bool:
        """Whether the token is no text (``llama_vocab_is_control``)."""
        with self._handle:
            return bool(lib.llama_vocab_is_control(self._ptr, self._id("token", token)))

    def suppress_tokens(self) -> list[int]:
        """Return the tokens that the model says must not be generated (``llama_vocab_get_suppress_tokens``)."""
        count = ffi.new("int32_t *")
        with self._handle:
            tokens = lib.llama_vocab_get_suppress_tokens(self._ptr, count)
            return list(ffi.unpack(tokens, count[0])) if tokens and count[0] else []

    def _refuse_none(self) -> None:
        if self.type is VocabType.NONE:
            raise TokenizeError(f"{self._handle.name} has no vocabulary")

    def _refuse_squares(self, data: bytes, parse_special: bool) -> None:
        """Raise for texts of which llama.cpp would take the square."""
        specials = self._special_texts(parse_special)
        # There are no more of them than of their beginnings, which are quicker to count.
        if sum(map(data.count, {text[:2] for text in specials})) > MAX_SPECIAL_TOKENS:
            pattern = re.compile(b"|".join(map(re.escape, specials)))
            if next(islice(pattern.finditer(data), MAX_SPECIAL_TOKENS, None), None):
                raise TokenizeError(f"text has more than {MAX_SPECIAL_TOKENS:,} special tokens: tokenize it in parts")
        if self.type is not VocabType.SPM:
            return
        if not self._characters:
            with self._handle:
                texts = [self._text_bytes(token).decode("utf-8", "replace") for token in self._find(lib.OG_SHORT, 4)]
            self._characters = {" ", *(text for text in texts if len(text) == 1)}
        text = data.decode("utf-8")
        marks = {0: " "} | dict.fromkeys(map(ord, set(text) - self._characters), "\0")
        longest = max(map(len, re.findall("\0+", text.translate(marks))), default=0)
        if longest * len(data) > MAX_BYTES_TIMES_RUN:
            raise TokenizeError(
                f"text of {len(data):,} bytes has {longest:,} characters in a row that are no tokens; at most "
                f"{MAX_BYTES_TIMES_RUN // len(data):,} can be tokenized in a text of that size"
            )

    def _special_texts(self, parse_special: bool) -> list[bytes]:
        """Return the tokens, longest first, that llama.cpp looks for before it splits a text into words."""
        if not self._specials:
            parsed, special = TokenAttr.CONTROL | TokenAttr.UNKNOWN, {False: set[bytes](), True: set[bytes]()}
            with self._handle:
                for token in self._find(lib.OG_HAS, int(parsed | TokenAttr.USER_DEFINED)):
                    if not (text := self._text_bytes(token)):
                        continue
                    special[True].add(text)
                    if lib.llama_vocab_get_attr(self._ptr, token) & parsed:
                        self._controls.setdefault(text.decode("utf-8", "replace"), token)
                    else:
                        special[False].add(text)
            self._specials = {parse: sorted(texts, key=len, reverse=True) for parse, texts in special.items()}
        return self._specials[parse_special]

    def _find(self, what: int, argument: int = 0) -> list[int]:
        """Return the tokens that ``og_find_tokens`` finds; the handle is in use."""
        tokens = ffi.new("int32_t[]", max(1, self.n_tokens))
        return list(ffi.unpack(tokens, lib.og_find_tokens(self._ptr, what, argument, tokens)))

    def _text_bytes(self, token: int) -> bytes:
        return bytes(ffi.string(lib.llama_vocab_get_text(self._ptr, token)))

    def _id(self, name: str, token: int) -> int:
        self._refuse_none()
        if type(token) is int and 0 <= token < self.n_tokens:
            return token
        return number(name, token, 0, self.n_tokens - 1)


def _longest_run(data: bytes) -> int:
    """Return the length of the longest stretch with no change between space and no space; short ones may give less."""
    if len(data) <= _SHORT_RUN_BYTES:
        return len(data)
    step = _SHORT_RUN_BYTES // 2  # a longer stretch goes through one of these places, and on for as much
    for at in range(0, len(data) - step + 1, step):
        change = _NO_SPACE if data[at : at + 1].isspace() else _SPACE
        if not change.search(data, at, at + step):
            return max(map(len, [*data.split(), *re.findall(rb"\s\s+", data)]), default=0)
    return 0


def _on_deep_stack(run: Callable[[], _T]) -> _T:
    """Run on a thread whose stack lasts for std::regex, which recurses for each letter; pages come as they are used."""
    result: list[_T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(run())
        except BaseException as error:
            failure.append(error)

    with _stack_size_lock:
        before = threading.stack_size(_DEEP_STACK_BYTES)
        try:
            thread = threading.Thread(target=body, name="offgrid_llama.tokenize", daemon=True)
            thread.start()
        except RuntimeError as error:
            raise TokenizeError(
                f"a long word needs a thread with a stack of {_DEEP_STACK_BYTES >> 20:,} MiB of address space: {error}"
            ) from error
        finally:
            threading.stack_size(before)
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
