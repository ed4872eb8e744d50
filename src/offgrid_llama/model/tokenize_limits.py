"""Limits of a text that is tokenized, so that no text takes llama.cpp minutes, or the process.

llama.cpp takes the square of two numbers: ``std::distance`` over the list of fragments for each special token
(llama-vocab.cpp, tokenizer_st_partition), and with SentencePiece a ``reserve()`` of no more than needed for each character
that is no token, which copies all tokens before it (llm_tokenizer_spm_session::resegment). And some pre-tokenizers use
``std::regex``, which recurses for each character of a match, with some 200 bytes of stack each.

The functions here look at the text alone. ``Vocab.tokenize`` calls them, and knows the tokens.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeVar

from offgrid_llama.errors import TokenizeError
from offgrid_llama.files.architecture import LONG_RUNS

__all__ = [
    "LINEAR_BYTES", "MAX_BYTES_TIMES_RUN", "MAX_RUN_BYTES", "MAX_SPECIAL_TOKENS", "MAX_TOKENIZE_BYTES", "SHORT_RUN_BYTES",
    "check_characters", "check_runs", "check_special_tokens", "longest_run", "on_deep_stack", "single_spaces",
]  # fmt: skip

MAX_TOKENIZE_BYTES = 64 * 1024 * 1024
"""Longest text that tokenize() takes, in bytes of UTF-8."""

MAX_RUN_BYTES = 1024 * 1024
"""Longest stretch of text without a space, or of spaces alone, in bytes of UTF-8."""

MAX_SPECIAL_TOKENS = 65_536
"""Most tokens of one text that are found before words are: user-defined ones, and control tokens that are parsed."""

MAX_BYTES_TIMES_RUN = 2**33
"""With SentencePiece: a text's bytes, times the most characters in a row that are no tokens, such as 90,000 newlines."""

LINEAR_BYTES = 64 * 1024
"""Any text up to this many bytes of UTF-8 is quick: the square of its length is small."""

SHORT_RUN_BYTES = 1024
"""A stretch up to this many bytes of UTF-8 needs no more stack than every thread has."""

DEEP_STACK_BYTES = 1024 * 1024 * 1024
"""Stack for the longest stretch, in address space: pages are taken from memory as they are touched."""

_SPACE, _NO_SPACE = re.compile(rb"\s"), re.compile(rb"\S")
_T = TypeVar("_T")
_stack_size_lock = threading.Lock()


def single_spaces(data: bytes) -> bytes:
    """Return the text with each stretch of spaces as one space."""
    return " ".join(re.split(r"\s+", data.decode("utf-8"))).encode("utf-8")


def longest_run(data: bytes) -> int:
    """Return the length of the longest stretch without a change between space and no space; short ones may give less."""
    if len(data) <= SHORT_RUN_BYTES:
        return len(data)
    step = SHORT_RUN_BYTES // 2  # a longer stretch goes through one of these places, and on for as much
    for at in range(0, len(data) - step + 1, step):
        change = _NO_SPACE if data[at : at + 1].isspace() else _SPACE
        if not change.search(data, at, at + step):
            return max(map(len, [*data.split(), *re.findall(rb"\s\s+", data)]), default=0)
    return 0


def check_runs(data: bytes, pre_tokenizer: str) -> int:
    """Return the length of the longest stretch that a pre-tokenizer matches; TokenizeError for one that is too long."""
    run_bytes = longest_run(data)
    if run_bytes > MAX_RUN_BYTES:
        raise TokenizeError(f"text has {run_bytes:,} bytes without a space; at most {MAX_RUN_BYTES:,} can be tokenized")
    run = LONG_RUNS.get(pre_tokenizer)
    if run is None:
        return run_bytes
    other = max(map(len, run.pattern.findall(data)), default=0)
    limit = run.max_bytes or MAX_RUN_BYTES
    if other > limit:
        raise TokenizeError(f"text has {other:,} {run.what}; at most {limit:,} can be tokenized")
    return max(run_bytes, other)


def check_special_tokens(data: bytes, special_texts: Sequence[bytes]) -> None:
    """Raise TokenizeError for a text with too many special tokens; ``special_texts`` has them all, the longest first."""
    # A text has no more special tokens than it has beginnings of them, which are quicker to count.
    if sum(map(data.count, {text[:2] for text in special_texts})) > MAX_SPECIAL_TOKENS:
        pattern = re.compile(b"|".join(map(re.escape, special_texts)))
        if next(islice(pattern.finditer(data), MAX_SPECIAL_TOKENS, None), None):
            raise TokenizeError(f"text has more than {MAX_SPECIAL_TOKENS:,} special tokens: tokenize it in parts")


def check_characters(data: bytes, characters: Iterable[str]) -> None:
    """Raise TokenizeError for too many characters in a row that are none of ``characters``, which are tokens."""
    text = data.decode("utf-8")
    marks = {0: " "} | dict.fromkeys(map(ord, set(text).difference(characters)), "\0")
    longest = max(map(len, re.findall("\0+", text.translate(marks))), default=0)
    if longest * len(data) > MAX_BYTES_TIMES_RUN:
        raise TokenizeError(
            f"text of {len(data):,} bytes has {longest:,} characters in a row that are no tokens; at most "
            f"{MAX_BYTES_TIMES_RUN // len(data):,} can be tokenized in a text of that size"
        )


def on_deep_stack(run: Callable[[], _T]) -> _T:
    """Return ``run()``, called on a thread with DEEP_STACK_BYTES of stack. Raises what it raises."""
    result: list[_T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(run())
        except BaseException as error:
            failure.append(error)

    with _stack_size_lock:
        before = threading.stack_size(DEEP_STACK_BYTES)
        try:
            thread = threading.Thread(target=body, name="offgrid_llama.tokenize", daemon=True)
            thread.start()
        except RuntimeError as error:
            raise TokenizeError(
                f"a long word needs a thread with a stack of {DEEP_STACK_BYTES >> 20:,} MiB of address space: {error}"
            ) from error
        finally:
            threading.stack_size(before)
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
