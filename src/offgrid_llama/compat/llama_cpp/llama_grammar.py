"""LlamaGrammar: what a completion's text must be, as GBNF or as a JSON Schema."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from offgrid_llama.errors import GrammarError
from offgrid_llama.sampling.grammar.grammar import Grammar

from .gbnf_texts import (
    ARITHMETIC_GBNF,
    C_GBNF,
    CHESS_GBNF,
    JAPANESE_GBNF,
    JSON_ARR_GBNF,
    JSON_GBNF,
    JSON_LARK,
    LIST_GBNF,
)
from .schema_gbnf import gbnf_of_schema, read_forgivingly

__all__ = [
    "ARITHMETIC_GBNF", "CHESS_GBNF", "C_GBNF", "JAPANESE_GBNF", "JSON_ARR_GBNF", "JSON_GBNF", "LIST_GBNF",
    "LLAMA_GRAMMAR_DEFAULT_ROOT", "InvalidGrammarError", "LlamaGrammar", "json_schema_to_gbnf",
]  # fmt: skip

_logger = logging.getLogger("offgrid_llama.compat")

LLAMA_GRAMMAR_DEFAULT_ROOT = "root"


class InvalidGrammarError(GrammarError, ValueError):
    """A grammar or a JSON Schema cannot be used. It is also the ValueError that programs expect."""


class LlamaGrammar:
    """A grammar, independent of any model.

    GBNF is read when it is first used: an invalid text raises then, as it does in llama-cpp-python. A JSON Schema is read at
    once.
    """

    def __init__(self, *args: Any, _grammar: str, **kwargs: Any) -> None:
        self._grammar = _grammar
        self._root = LLAMA_GRAMMAR_DEFAULT_ROOT
        self._made: Grammar | None = None

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """Return the grammar of a text in GBNF."""
        return cls(_grammar=grammar)

    @classmethod
    def from_file(cls, file: str | Path, verbose: bool = True) -> LlamaGrammar:
        """Return the grammar of a file in GBNF. Raises OSError, and ValueError for a file that is empty or is not UTF-8."""
        text = Path(file).read_text(encoding="utf-8")
        if not text:
            raise ValueError(f"{file} is empty: it must have a grammar in GBNF")
        return cls.from_string(text, verbose=verbose)

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        """Return the grammar of JSON that is valid under a schema.

        Rules that a grammar cannot hold, such as uniqueItems, are left out. With ``verbose``, a warning names them.

        Raises ValueError for a text that is no JSON Schema.
        """
        document, left_out = _document(json_schema)
        if left_out and verbose:
            _logger.warning("rules of a JSON Schema are left out: %s", "; ".join(left_out))
        made = cls(_grammar=gbnf_of_schema(document))
        made._made = Grammar.json_schema(document)
        return made

    @property
    def grammar(self) -> Grammar:
        """The grammar as the rest of offgrid_llama uses it. Raises ValueError, with line and column, for invalid GBNF."""
        if self._made is None:
            try:
                made = Grammar.gbnf(self._grammar, self._root)
            except GrammarError as error:
                raise InvalidGrammarError(str(error)) from error
            self._made = Grammar.lark(JSON_LARK) if self._grammar == JSON_GBNF and made.guided else made
        return self._made

    def reset(self) -> None:
        """Do nothing: a grammar has no state."""


def json_schema_to_gbnf(schema: str, prop_order: list[str] | None = None) -> str:
    """Return a grammar in GBNF for a JSON Schema; see ``schema_gbnf`` for what it leaves out.

    Args:
        schema: the schema as JSON.
        prop_order: properties that come first in objects.

    Raises ValueError for a text that is no JSON Schema.
    """
    return gbnf_of_schema(_document(schema)[0], prop_order or ())


def _document(text: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a JSON Schema as plain JSON, and the rules that are left out."""
    try:
        return read_forgivingly(json.loads(text))
    except GrammarError as error:
        raise InvalidGrammarError(str(error)) from error
