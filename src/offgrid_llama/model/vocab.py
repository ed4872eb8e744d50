"""Vocab: text to tokens and back (``llama_vocab``). Borrowed: it lives in its Model and dies with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import NativeError, TokenizeError
from offgrid_llama.files.architecture import LONG_RUNS, SPACES_ONLY
from offgrid_llama.native.bound import Bound
from offgrid_llama.native.check import filled, number, text_of
from offgrid_llama.native.enums import TokenAttr, VocabType

from . import tokenize_limits as limits
from .tokenize_limits import SHORT_RUN_BYTES

if TYPE_CHECKING:
    from offgrid_llama.native.handle import Owner

__all__ = ["Vocab"]

_TOKENS, _CHARS = ffi.typeof("llama_token[]"), ffi.typeof("char[]")


class Vocab(Bound):
    """The tokens of a model. Get it as ``model.vocab``: it is borrowed, and keeps the model alive.

    Args:
        owner: the Model.
        metadata: its metadata, with the values that a load overrides.

    Attributes:
        n_tokens: the number of tokens; token ids are 0 to ``n_tokens - 1``.
        type: the tokenizer's algorithm.
        bos, eos, eot, sep, nl, pad, mask: special tokens, None where the vocabulary has none: beginning of sentence,
            end of sentence, end of turn, separator, new line, padding, mask.
        fim_pre, fim_suf, fim_mid, fim_pad, fim_rep, fim_sep: fill-in-the-middle tokens, or None.
        add_bos, add_eos, add_sep: the tokens that ``add_special=True`` adds.
        handle, ptr: internal. The model's Handle, and the ``llama_vocab *``.
    """

    _instead = "it belongs to its model; threads can share it"

    def __init__(self, owner: Owner, metadata: Mapping[str, object]) -> None:
        self._owner = owner
        self.handle = owner.handle
        self._pieces: dict[int, bytes] = {}  # by token, as piece() was asked for them
        self._texts: dict[int | None, str] = {}  # by token, as detokenize() was asked for one alone
        self._eog: frozenset[int] | None = None
        self._characters: set[str] = set()  # that are tokens, and the space; filled when first needed
        self._specials: dict[bool, list[bytes]] = {}
        self._controls: dict[str, int] = {}
        with self.handle as ptr:
            self.ptr = vocab = lib.llama_model_get_vocab(ptr)
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
        self._pre = str(metadata.get("tokenizer.ggml.pre", ""))
        limited = self._pre == SPACES_ONLY or self._pre in LONG_RUNS
        self._checks_short_texts = limited or bool(self._missing) or self.type is VocabType.NONE

    def __len__(self) -> int:
        return self.n_tokens

    def __repr__(self) -> str:
        return f"<Vocab of {self.handle.name}: {self.n_tokens} tokens, {self.type.name}>"

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the token ids of ``text`` (``llama_tokenize``). Several threads may call it at once.

        Args:
            text: str, or bytes that are valid UTF-8; at most MAX_TOKENIZE_BYTES, and MAX_RUN_BYTES without a space. See
                ``model/tokenize_limits.py`` for these and for the limits of texts that no person writes.
            add_special: add the tokens that the model expects at the beginning and at the end, such as BOS.
            parse_special: read ``<s>`` and the like as control tokens. Leave it False for text from users.

        Raises:
            UnicodeError: bytes that are no UTF-8, or str with lone surrogates.
            TokenizeError: the text is over a limit, or the tokenizer failed.
        """
        if isinstance(text, bytes):
            text.decode("utf-8")  # llama.cpp terminates the process on some byte strings that are no UTF-8
            data = text
        elif isinstance(text, str):
            data = text.encode("utf-8")
        else:
            raise TypeError(f"text must be str or bytes, not {type(text).__name__}")
        deep = False
        if self._checks_short_texts or len(data) > SHORT_RUN_BYTES:
            data, deep = self._prepared(data, add_special, parse_special)
        try:
            if deep:
                return limits.on_deep_stack(partial(self._tokenize, data, add_special, parse_special))
            return self._tokenize(data, add_special, parse_special)
        except (NativeError, OverflowError) as error:
            raise TokenizeError(f"the text of {len(data):,} bytes could not be tokenized: {error}") from error

    def _prepared(self, data: bytes, add_special: bool, parse_special: bool) -> tuple[bytes, bool]:
        """Return the text to tokenize, and whether that takes a deep stack. Raises TokenizeError for a text over a limit."""
        self._refuse_none()
        if add_special and self._missing:
            raise TokenizeError(
                f"{self.handle.name} wants {self._missing} added and has no such token; use add_special=False"
            )
        if len(data) > limits.MAX_TOKENIZE_BYTES:
            most = limits.MAX_TOKENIZE_BYTES
            raise TokenizeError(f"text has {len(data):,} bytes; at most {most:,} can be tokenized at once")
        if self._pre == SPACES_ONLY:
            data = limits.single_spaces(data)
        run_bytes = limits.check_runs(data, self._pre)
        if len(data) > limits.LINEAR_BYTES:
            limits.check_special_tokens(data, self._special_texts(parse_special))
            if self.type is VocabType.SPM:
                limits.check_characters(data, self._single_characters())
        return data, run_bytes > SHORT_RUN_BYTES

    def _tokenize(self, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
        size = len(data) + 8  # a text hardly ever has more tokens than bytes
        tokens = ffi.new(_TOKENS, size)
        with self.handle:
            count = lib.llama_tokenize(self.ptr, data, len(data), tokens, size, add_special, parse_special)
            if count < 0:
                call = lambda *to: lib.llama_tokenize(self.ptr, data, len(data), *to, add_special, parse_special)  # noqa: E731
                tokens, count = filled(call, "llama_token[]", size)
        return ffi.unpack(tokens, count) if count else []

    def detokenize(self, tokens: Sequence[int], *, remove_special: bool = False, unparse_special: bool = False) -> str:
        """Return the text of ``tokens`` (``llama_detokenize``); bytes that are no UTF-8 become U+FFFD.

        Args:
            tokens: token ids.
            remove_special: leave out the tokens that ``add_special=True`` adds.
            unparse_special: write control tokens as their text; by default they have none.
        """
        ids = tokens if type(tokens) is list else list(tokens)
        if not ids:
            return ""
        alone = ids[0] if len(ids) == 1 and type(ids[0]) is int and not (remove_special or unparse_special) else None
        if alone in self._texts:
            self.handle.check_open()
            return self._texts[alone]
        result = self._detokenize(ids, remove_special, unparse_special)
        if alone is not None:
            self._texts[alone] = result
        return result

    def _detokenize(self, ids: list[int], remove_special: bool, unparse_special: bool) -> str:
        self._refuse_none()
        if {*map(type, ids)} != {int} or min(ids) < 0 or max(ids) >= self.n_tokens:
            ids = [self.check_token(f"tokens[{i}]", token) for i, token in enumerate(ids)]
        c_ids, n = ffi.new(_TOKENS, ids), len(ids)
        size = 8 * n + 16
        text = ffi.new(_CHARS, size)
        with self.handle:
            count = lib.llama_detokenize(self.ptr, c_ids, n, text, size, remove_special, unparse_special)
            if count < 0:
                call = lambda *to: lib.llama_detokenize(self.ptr, c_ids, n, *to, remove_special, unparse_special)  # noqa: E731
                text, count = filled(call, "char[]", size)
        return str(ffi.unpack(text, count), "utf-8", "replace")

    def piece(self, token: int, *, special: bool = False, lstrip: int = 0) -> bytes:
        """Return the bytes of ``token`` (``llama_token_to_piece``).

        A token may be a part of a UTF-8 character: join pieces through TextStream. Control tokens give ``b""`` unless
        ``special``. ``lstrip`` leaves out up to that many spaces at the beginning.
        """
        if special or lstrip or type(token) is not int:
            return self._piece(token, special, lstrip)
        self.handle.check_open()
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token, False, 0)
        return piece

    def _piece(self, token: int, special: bool, lstrip: int) -> bytes:
        number("lstrip", lstrip, 0)
        with self.handle:
            self.check_token("token", token)
            buffer, count = filled(
                lambda buffer, size: lib.llama_token_to_piece(self.ptr, token, buffer, size, lstrip, special),
                "char[]", 64,
            )  # fmt: skip
        return bytes(ffi.buffer(buffer, count))

    def pieces(self) -> list[bytes]:
        """Return the bytes of all tokens, with control tokens as their text; faster than ``piece`` for each."""
        return self.pieces_and_attrs()[0]

    def pieces_and_attrs(self) -> tuple[list[bytes], list[int]]:
        """Return the bytes of all tokens, as ``pieces`` does, and the TokenAttr of each as an int."""
        self._refuse_none()
        n = self.n_tokens
        ends, attrs = ffi.new("int32_t[]", n), ffi.new("int32_t[]", n)
        with self.handle:
            call = lambda buffer, size: int(lib.og_pieces(self.ptr, buffer, size, ends, attrs))  # noqa: E731
            buffer, count = filled(call, "char[]", 12 * n)
        data, places = ffi.buffer(buffer, count)[:], ffi.unpack(ends, n)
        return [data[begin:end] for begin, end in pairwise((0, *places))], ffi.unpack(attrs, n)

    def text(self, token: int) -> str:
        """Return the token as the vocabulary spells it, for instance ``Ġthe`` (``llama_vocab_get_text``)."""
        with self.handle:
            return text_of(lib.llama_vocab_get_text(self.ptr, self.check_token("token", token)))

    def score(self, token: int) -> float:
        """Return the token's score; its meaning depends on the tokenizer (``llama_vocab_get_score``)."""
        with self.handle:
            return float(lib.llama_vocab_get_score(self.ptr, self.check_token("token", token)))

    def attr(self, token: int) -> TokenAttr:
        """Return what kind of token it is (``llama_vocab_get_attr``)."""
        with self.handle:
            return TokenAttr(lib.llama_vocab_get_attr(self.ptr, self.check_token("token", token)))

    def is_eog(self, token: int) -> bool:
        """Whether the token ends the generation: EOS, EOT and their like (``llama_vocab_is_eog``)."""
        with self.handle:
            return bool(lib.llama_vocab_is_eog(self.ptr, self.check_token("token", token)))

    def eog_tokens(self) -> frozenset[int]:
        """Return all tokens that end the generation, as ``is_eog`` says."""
        with self.handle:
            if self._eog is None:
                self._eog = frozenset(self._find(lib.OG_FIND_EOG))
            return self._eog

    def control_tokens(self) -> Mapping[str, int]:
        """Return the tokens that only ``parse_special=True`` reads in a text, by their text."""
        self._special_texts(True)
        return self._controls

    def is_control(self, token: int) -> bool:
        """Whether the token is a control token, which has no text (``llama_vocab_is_control``)."""
        with self.handle:
            return bool(lib.llama_vocab_is_control(self.ptr, self.check_token("token", token)))

    def suppress_tokens(self) -> list[int]:
        """Return the tokens that must not be generated, by the model's metadata (``llama_vocab_get_suppress_tokens``)."""
        count = ffi.new("int32_t *")
        with self.handle:
            tokens = lib.llama_vocab_get_suppress_tokens(self.ptr, count)
            return list(ffi.unpack(tokens, count[0])) if tokens and count[0] else []

    def _refuse_none(self) -> None:
        if self.type is VocabType.NONE:
            raise TokenizeError(f"{self.handle.name} has no vocabulary")

    def _single_characters(self) -> set[str]:
        """Return the characters that are tokens, and the space."""
        if not self._characters:
            with self.handle:
                texts = [
                    self._text_bytes(token).decode("utf-8", "replace") for token in self._find(lib.OG_FIND_SHORT, 4)
                ]
            self._characters = {" ", *(text for text in texts if len(text) == 1)}
        return self._characters

    def _special_texts(self, parse_special: bool) -> list[bytes]:
        """Return the tokens, longest first, that llama.cpp looks for before it splits a text into words."""
        if not self._specials:
            parsed, special = TokenAttr.CONTROL | TokenAttr.UNKNOWN, {False: set[bytes](), True: set[bytes]()}
            with self.handle:
                for token in self._find(lib.OG_FIND_WITH_ATTR, int(parsed | TokenAttr.USER_DEFINED)):
                    if not (text := self._text_bytes(token)):
                        continue
                    special[True].add(text)
                    if lib.llama_vocab_get_attr(self.ptr, token) & parsed:
                        self._controls.setdefault(text.decode("utf-8", "replace"), token)
                    else:
                        special[False].add(text)
            self._specials = {parse: sorted(texts, key=len, reverse=True) for parse, texts in special.items()}
        return self._specials[parse_special]

    def _find(self, what: int, argument: int = 0) -> list[int]:
        """Return the tokens that ``og_find_tokens`` finds; the handle is in use."""
        tokens = ffi.new("int32_t[]", max(1, self.n_tokens))
        return list(ffi.unpack(tokens, lib.og_find_tokens(self.ptr, what, argument, tokens)))

    def _text_bytes(self, token: int) -> bytes:
        return bytes(ffi.string(lib.llama_vocab_get_text(self.ptr, token)))

    def check_token(self, name: str, token: int) -> int:
        """Return ``token`` if the vocabulary has it; otherwise raise ValueError or TypeError, which say ``name``."""
        self._refuse_none()
        if type(token) is int and 0 <= token < self.n_tokens:
            return token
        return number(name, token, 0, self.n_tokens - 1)
