"""Grammar: a constraint on a text.

All kinds go through llguidance, which costs about 50 us a token where terminals are long, and a few ms for GBNF, whose
terminals are single characters. llama.cpp's own sampler of GBNF (``llama_sampler_init_grammar``) is there for chains put
together by hand: it takes five to ten times as long, and its time for a token has no bound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from copy import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, get_origin

from offgrid_llama._capi import lib
from offgrid_llama.errors import GrammarError
from offgrid_llama.native import kinds
from offgrid_llama.native.callbacks import forget_log
from offgrid_llama.native.check import not_null
from offgrid_llama.sampling import samplers
from offgrid_llama.sampling.sampler import Sampler

from .gbnf import MAX_BYTES, read_gbnf
from .gbnf_as_lark import TOKEN_MARK, lark_of
from .guide import Guide, guide_of
from .json_schema import MAX_PATTERNS, read_schema
from .patterns import slashed
from .structural_tags import grammars_of_tags
from .type_schema import schema_of_type

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.model.vocab import Vocab

__all__ = ["Grammar"]

_WHITESPACE = r" ?|\n {0,24}"
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/')


class Grammar:
    """A checked grammar, independent of any model. Make one with a class method, and use it as often as you like.

    Attributes:
        kind: "gbnf", "json_schema", "regex", "lark", "choices" or "structural_tags".
        text: the source that it was made from.
        root: the first rule of GBNF.
    """

    def __init__(self, text: str, root: str = "root", *, kind: str = "gbnf", source: str | None = None) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text must be str, not {type(text).__name__}")
        self.kind = kind
        self.text = text
        self.root = root
        self._salt = ""
        self._outline = read_gbnf(text, root) if source is None else None
        if self._outline is not None:
            source = json.dumps({"grammars": [{"lark_grammar": lark_of(text, root, self._outline)}]})
        self._source: str = source or ""

    @classmethod
    def gbnf(cls, text: str, root: str = "root") -> Grammar:
        """Read a grammar in llama.cpp's GBNF notation.

        Raises GrammarError, with line and column, for a grammar that does not parse or exceeds a limit: 64 KiB, 2,000
        rules, 100 nested groups, 2,000 repetitions of one item, 4,000 alternatives at one place.
        """
        return cls(text, root)

    @classmethod
    def json_schema(cls, schema: object, *, whitespace: bool = False) -> Grammar:
        """Read a JSON Schema: the text is JSON that is valid under it.

        Args:
            schema: a mapping, or JSON text; or a type, such as a Pydantic model, a dataclass, a TypedDict or ``list[int]``,
                from which pydantic makes a schema. Properties come in the order of the schema. An object has properties
                that are not listed only where the schema says of which kind.
            whitespace: let the model write a space, or a new line with up to 24 spaces, where JSON allows them; without a
                bound, models run off in spaces. By default there is one space after each comma and colon; these tokens are
                forced and so take no time.

        Raises GrammarError that names the place for anything that is not a schema, for keywords that are not supported
        (uniqueItems, contains, not, if, dependentRequired and others), and above 64 KiB or 64 levels. Errors that only
        llguidance finds, such as rules that no text satisfies, are GrammarErrors when the grammar is used.
        """
        is_type = isinstance(schema, type) or get_origin(schema) is not None
        plain = read_schema(schema_of_type(schema) if is_type else schema)
        options: dict[str, object] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        if whitespace:
            options = {"whitespace_flexible": True, "whitespace_pattern": _WHITESPACE}
        source = {"grammars": [{"json_schema": {**plain, "x-guidance": options}}]}
        return cls(json.dumps(plain), kind="json_schema", source=json.dumps(source))

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Read a regular expression, in the syntax of Rust's ``regex`` without look-around: all of the text matches it."""
        if not kinds.instance("pattern", pattern, str):
            raise ValueError("pattern must not be empty")
        return cls._of("regex", pattern, {"lark_grammar": f"start: /{slashed(pattern)}/"})

    @classmethod
    def choices(cls, texts: Iterable[str]) -> Grammar:
        """Make a grammar of some texts: the answer is one of them."""
        found = kinds.texts("texts", texts)
        for at, text in enumerate(found):
            if not text:
                raise ValueError(f"texts[{at}] must not be empty")
        if not found:
            raise ValueError("texts must not be empty")
        source = "start: " + " | ".join(_literal(text) for text in found)
        return cls._of("choices", json.dumps(list(found)), {"lark_grammar": source})

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Read a grammar in llguidance's variant of Lark; its first rule is ``start``.

        Names of rules have lower-case letters, names of terminals upper-case ones. ``%json {...}`` is a JSON Schema,
        ``<name>`` a control token.

        Raises GrammarError for more than 64 KiB, and for more than 8 uses of ``&``: each doubles the time.
        """
        grammar = cls._of("lark", text, {"lark_grammar": text})
        if _QUOTED.sub("", text).count("&") > MAX_PATTERNS:
            raise GrammarError(f"the grammar has more than {MAX_PATTERNS} times &")
        return grammar

    @classmethod
    def structural_tags(cls, tags: Mapping[str, object]) -> Grammar:
        """Make a grammar of free text with tags, between which there is JSON of a schema, as vLLM has it.

        Args:
            tags: ``{"structures": [{"begin": "<f=a>", "schema": {...}, "end": "</f>"}], "triggers": ["<f="]}``. Wherever the
                text has a trigger, one of the tags that begin with it follows. With ``"at_least_one": True`` the text begins
                with a tag, with ``"stop_after_first": True`` it ends with its first one.

        Raises GrammarError, ValueError and TypeError that name the place.
        """
        if not isinstance(tags, Mapping):
            raise TypeError(f"tags must be a mapping, not {type(tags).__name__}")
        flags = [tags.get(name, False) for name in ("at_least_one", "stop_after_first")]
        text, source = json.dumps(tags), grammars_of_tags(tags.get("structures"), tags.get("triggers"), *flags)
        if len(text) > MAX_BYTES:
            raise GrammarError(f"the tags have {len(text):,} characters; the limit is {MAX_BYTES:,}")
        return cls(text, kind="structural_tags", source=json.dumps({"grammars": source}))

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
        """Whether ``guide`` works for it. GBNF, which llama.cpp follows too, needs it only where llguidance is installed."""
        return self.kind != "gbnf" or _has_llguidance()

    def guide(self, vocab: Vocab) -> Guide:
        """Return a Guide, which follows one text and says which tokens are allowed next.

        Raises GrammarError if llguidance cannot use the grammar or is not installed, and for tokens that the vocabulary
        lacks.
        """
        return guide_of(self._source_for(vocab), vocab, self._salt)

    def _source_for(self, vocab: Vocab) -> str:
        """Return the source with the ids of the tokens that GBNF names."""
        source = self._source
        if self._outline is None:
            return source
        for at, token in enumerate(sorted(self._outline.tokens)):
            found = vocab.tokenize(token, add_special=False, parse_special=True)
            if len(found) != 1:
                raise GrammarError(f"the grammar names {token}, which is not one token of this vocabulary")
            for mark in (TOKEN_MARK.format(at), TOKEN_MARK.format(at).replace("<[", "<[^")):
                source = source.replace(mark, mark.replace(f"?{at}", str(found[0])))
        if max(self._outline.token_ids, default=0) >= vocab.n_tokens:
            raise GrammarError(f"the grammar names a token of which there are only {vocab.n_tokens}")
        return source

    def salted(self, salt: str) -> Grammar:
        """Return a copy whose compiled form is kept for this salt only, so that timing tells other callers nothing."""
        other = copy(self)
        other._salt = salt
        return other

    def within(self, lark: str, also: Iterable[Mapping[str, object]] = ()) -> Grammar:
        """Return a grammar in llguidance's Lark, in which ``@answer`` is this one.

        ``also`` has further grammars that ``lark`` names, in llguidance's form.
        """
        first, *others = json.loads(self._source)["grammars"]
        source = {"grammars": [{"lark_grammar": lark}, {**first, "name": "answer"}, *others, *also]}
        other = Grammar(self.text, kind=self.kind, source=json.dumps(source))
        other._outline = self._outline
        return other

    def sampler(self, vocab: Vocab, *, bounded: bool = False) -> Sampler:
        """Return a sampler that leaves only the tokens that the grammar allows; put it first in a chain.

        Args:
            vocab: the model's.
            bounded: follow GBNF with llguidance, as the engine and ``generate`` do, if it is installed. By default this is
                llama.cpp's own sampler (``llama_sampler_init_grammar``), whose time for a token may grow without bound with
                the text: fourfold with each token for ``root ::= "a" root "b" | "a" root "c"``.

        Raises GrammarError for tokens that the vocabulary lacks, and for a grammar that llama.cpp or llguidance cannot use.
        """
        if self.kind != "gbnf" or (bounded and self.guided):
            return _guided(self.guide(vocab))
        self._source_for(vocab)  # raises for tokens that the vocabulary lacks
        forget_log()
        with vocab.handle:
            ptr = not_null(
                lib.llama_sampler_init_grammar(vocab.ptr, self.text.encode("utf-8"), self.root.encode("utf-8")),
                lambda log: GrammarError("llama.cpp cannot use the grammar", log=log),
            )
            return Sampler("grammar", ptr, vocab)  # the sampler reads the vocabulary until it is freed


def _has_llguidance() -> bool:
    try:
        return find_spec("llguidance") is not None
    except ValueError:  # it was taken out of sys.modules
        return False


def _guided(guide: Guide) -> Sampler:
    """Return a guide as a sampler for a chain."""

    def apply(ids: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        import numpy as np

        guide.fill()
        if guide.error is not None:
            raise guide.error
        mask = np.frombuffer(guide.words(), np.uint32)
        logits[(mask[ids >> 5] >> (ids & 31).astype(np.uint32)) & 1 == 0] = -np.inf

    return samplers.custom(
        apply, name="grammar", accept=guide.accept, reset=guide.reset, clone=lambda: _guided(guide.clone())
    )


def _literal(text: str) -> str:
    """Return a text as a string of Lark."""
    return json.dumps(text)
