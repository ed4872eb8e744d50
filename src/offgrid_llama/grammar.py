"""Grammar: text that can only be what a grammar allows.

JSON Schema, regular expressions, Lark and choices go through llguidance, which costs some 50 us a token; GBNF through
llama.cpp's own sampler (``llama_sampler_init_grammar``). llguidance cuts a text into words first, the longest that fits;
GBNF knows no words, so that one with a word for each character would be the same grammar, and that is more than the 50,000
items that llguidance allows, as soon as it is one of JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, get_origin

from . import sampling
from ._callbacks import forget_log
from ._capi import lib
from ._check import not_null
from .errors import GrammarError
from .gbnf import MAX_BYTES, read_gbnf
from .guide import Guide, guide_of
from .json_schema import MAX_PATTERNS, read_schema
from .sampling import Sampler

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .vocab import Vocab

__all__ = ["Grammar"]

_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/')


class Grammar:
    """A grammar, checked, and independent of any model. Make one with a class method; it may be used many times.

    Attributes:
        kind: "gbnf", "json_schema", "regex", "lark" or "choices".
        text: what it was made of.
        root: the rule of GBNF to begin with.
    """

    def __init__(self, text: str, root: str = "root", *, kind: str = "gbnf", source: str | None = None) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text must be str, not {type(text).__name__}")
        self.kind = kind
        self.text = text
        self.root = root
        self._source = source
        self._salt = ""
        self._outline = read_gbnf(text, root) if source is None else None

    @classmethod
    def gbnf(cls, text: str, root: str = "root") -> Grammar:
        """Read a grammar in llama.cpp's GBNF notation.

        Raises GrammarError, with line and column, for what does not parse and for what is over a limit: 64 KiB, 2,000
        rules, 100 nested groups, 2,000 repetitions of one item, 4,000 ways to go on from one place.
        """
        return cls(text, root)

    @classmethod
    def json_schema(cls, schema: object, *, whitespace: bool = False) -> Grammar:
        """Read a JSON Schema: the text is JSON that is valid under it.

        Args:
            schema: a mapping, or JSON text; or a type: a Pydantic model, a dataclass, a TypedDict, ``list[int]`` and the
                like, of which pydantic makes a schema. Properties come in the order of the schema; an object has others than
                those that it lists only where the schema says of which kind.
            whitespace: let the model write spaces and new lines where JSON allows them. By default there is one space after
                each comma and colon, which takes no time, as these tokens need not be chosen.

        Raises GrammarError that names the place for what is no schema, for keywords that are not supported (uniqueItems,
        contains, not, if, dependentRequired and the like), and over 64 KiB and 64 levels. What only llguidance finds, such
        as rules that nothing fulfills, is raised when the grammar is used, as a GrammarError too.
        """
        is_type = isinstance(schema, type) or get_origin(schema) is not None
        plain = read_schema(_schema_of(schema) if is_type else schema)
        options: dict[str, object] = {"whitespace_flexible": whitespace}
        if not whitespace:
            options |= {"item_separator": ", ", "key_separator": ": "}
        source = {"grammars": [{"json_schema": {**plain, "x-guidance": options}}]}
        return cls(json.dumps(plain), kind="json_schema", source=json.dumps(source))

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Read a regular expression, in the syntax of Rust's ``regex`` without look-around: all of the text matches it."""
        if not pattern:
            raise ValueError("pattern must not be empty")
        return cls._of("regex", pattern, {"lark_grammar": f"start: /{_slashed(pattern)}/"})

    @classmethod
    def choices(cls, texts: Iterable[str]) -> Grammar:
        """Let the text be one of these."""
        found = [texts] if isinstance(texts, str) else list(texts)
        for at, text in enumerate(found):
            if not isinstance(text, str):
                raise TypeError(f"texts[{at}] must be str, not {type(text).__name__}")
            if not text:
                raise ValueError(f"texts[{at}] must not be empty")
        if not found:
            raise ValueError("texts must not be empty")
        source = "start: " + " | ".join(_literal(text) for text in found)
        return cls._of("choices", json.dumps(found), {"lark_grammar": source})

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Read a grammar in llguidance's variant of Lark; it begins with the rule ``start``.

        Names of rules are small, of terminals large letters. ``%json {...}`` is a JSON Schema, ``<name>`` a control token.

        Raises GrammarError for more than 64 KiB, and for more than 8 times ``&``, each of which doubles the time it takes.
        """
        grammar = cls._of("lark", text, {"lark_grammar": text})
        if _QUOTED.sub("", text).count("&") > MAX_PATTERNS:
            raise GrammarError(f"the grammar has more than {MAX_PATTERNS} times &")
        return grammar

    @classmethod
    def _of(cls, kind: str, text: str, source: Mapping[str, object]) -> Grammar:
        if not isinstance(text, str):
            raise TypeError(f"{kind} must be str, not {type(text).__name__}")
        if len(text) > MAX_BYTES:
            raise GrammarError(f"the grammar has {len(text):,} characters; the limit is {MAX_BYTES:,}")
        return cls(text, kind=kind, source=json.dumps({"grammars": [source]}))

    def __repr__(self) -> str:
        return f"<Grammar: {self.kind} of {len(self.text)} characters>"

    @property
    def guided(self) -> bool:
        """Whether ``guide`` can be used; otherwise there is only ``sampler``."""
        return self._source is not None

    def guide(self, vocab: Vocab) -> Guide:
        """Return what follows a text and tells the tokens that may come next.

        Raises GrammarError where llguidance cannot use the grammar, or is not there, and for GBNF.
        """
        if self._source is None:
            raise GrammarError("GBNF has no guide; use Grammar.sampler")
        return guide_of(self._source, vocab, self._salt)

    def _salted(self, salt: str) -> Grammar:
        """Return one whose compiled form is kept for those with the same salt, so that nobody else can tell it is there."""
        other = copy(self)
        other._salt = salt
        return other

    def within(self, lark: str, also: Iterable[Mapping[str, object]] = ()) -> Grammar:
        """Return a grammar in llguidance's Lark, in which ``@answer`` is this one; GrammarError for GBNF.

        ``also`` are other grammars that it names, as llguidance takes them.
        """
        if self._source is None:
            raise GrammarError("GBNF cannot be part of another grammar")
        first, *others = json.loads(self._source)["grammars"]
        source = {"grammars": [{"lark_grammar": lark}, {**first, "name": "answer"}, *others, *also]}
        return Grammar(self.text, kind=self.kind, source=json.dumps(source))

    def sampler(self, vocab: Vocab) -> Sampler:
        """Return a sampler that leaves only tokens that the grammar allows; put it first in a chain.

        Raises GrammarError for tokens that the vocabulary does not have, and for what llama.cpp or llguidance cannot use.
        """
        if self._source is not None:
            return _guided(self.guide(vocab))
        for token in sorted(self._outline.tokens if self._outline else ()):
            if len(vocab.tokenize(token, add_special=False, parse_special=True)) != 1:
                raise GrammarError(f"the grammar names {token}, which is not one token of this vocabulary")
        if max(self._outline.token_ids if self._outline else (), default=0) >= vocab.n_tokens:
            raise GrammarError(f"the grammar names a token of which there are only {vocab.n_tokens}")
        forget_log()
        with vocab._handle:
            ptr = not_null(
                lib.llama_sampler_init_grammar(vocab._ptr, self.text.encode("utf-8"), self.root.encode("utf-8")),
                lambda log: GrammarError("llama.cpp cannot use the grammar", log=log),
            )
            return Sampler("grammar", ptr, vocab)  # which it reads until it is freed


def _guided(guide: Guide) -> Sampler:
    """Return a guide as a sampler of llama.cpp's chains."""

    def apply(ids: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        import numpy as np

        guide.fill()
        if guide.error is not None:
            raise guide.error
        mask = np.frombuffer(guide.words(), np.uint32)
        logits[(mask[ids >> 5] >> (ids & 31).astype(np.uint32)) & 1 == 0] = -np.inf

    return sampling.custom(
        apply, name="grammar", accept=guide.accept, reset=guide.reset, clone=lambda: _guided(guide.clone())
    )


def _schema_of(kind: Any) -> Any:
    """Return the JSON Schema of a type."""
    try:
        from pydantic import PydanticSchemaGenerationError, TypeAdapter
        from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError
    except ImportError as error:
        raise GrammarError("the schema of a type takes pydantic: pip install 'offgrid-llama[chat]'") from error
    problems = (
        PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError
    )  # fmt: skip
    try:
        return TypeAdapter(kind).json_schema()
    except problems as error:
        raise GrammarError(f"{kind!r} has no JSON Schema: {str(error).partition(chr(10))[0]}") from error


def _literal(text: str) -> str:
    """Return a text as Lark writes it."""
    return json.dumps(text)


def _slashed(pattern: str) -> str:
    """Return a regular expression as it stands between slashes."""
    return "".join(
        "\\/" if char == "/" and not escaped else "\\n" if char == "\n" else char for char, escaped in _chars(pattern)
    )


def _chars(pattern: str) -> Iterable[tuple[str, bool]]:
    """Yield the characters of a pattern, and whether each has a backslash before it."""
    escaped = False
    for char in pattern:
        yield char, escaped
        escaped = char == "\\" and not escaped
