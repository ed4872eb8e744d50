"""Schemas of types: every text that their grammar allows is a value of the type."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import ipaddress
import pathlib
import random
import re
import uuid
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic
import pytest

import offgrid_llama as og
from offgrid_llama.sampling.grammar.type_schema import schema_of_type


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue.green"


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


def text(**limits: Any) -> Any:
    return Annotated[str, pydantic.StringConstraints(**limits)]


def decimals(**limits: Any) -> Any:
    return Annotated[decimal.Decimal, pydantic.Field(**limits)]


TYPES: dict[str, Any] = {
    "Decimal": decimal.Decimal, "Decimal from 0": decimals(ge=0), "Decimal of 5.2": decimals(max_digits=5, decimal_places=2),
    "price": decimals(ge=0, decimal_places=2), "Decimal of 3 digits": decimals(max_digits=3), "share": decimals(gt=0, lt=1),
    "price below 100": decimals(ge=0, lt=100, max_digits=4, decimal_places=2), "eight places": decimals(decimal_places=8),
    "date": datetime.date, "time": datetime.time, "datetime": datetime.datetime, "timedelta": datetime.timedelta,
    "aware": pydantic.AwareDatetime, "naive": pydantic.NaiveDatetime, "past": pydantic.PastDate,
    "future": pydantic.FutureDatetime, "uuid": uuid.UUID, "uuid1": pydantic.UUID1, "uuid4": pydantic.UUID4,
    "dict of int": dict[int, str], "dict of Enum": dict[Colour, int], "dict of Literal": dict[Literal["a", "b"], int],
    "dict of date": dict[datetime.date, bool], "dict of bool": dict[bool, int], "dict of float": dict[float, int],
    "dict of Decimal": dict[decimal.Decimal, int],
    "dict of short": dict[Annotated[str, pydantic.StringConstraints(max_length=3)], int],
    "dict of either": dict[int | Literal["x"], int], "dict of IntEnum": dict[Number, int],
    "bytes": bytes, "base64": pydantic.Base64Bytes, "base64url": pydantic.Base64UrlBytes,
    "IPv4": ipaddress.IPv4Address, "IPv6": ipaddress.IPv6Address, "IPv4 network": ipaddress.IPv4Network,
    "IPv6 network": ipaddress.IPv6Network, "IPv4 interface": ipaddress.IPv4Interface,
    "IPv6 interface": ipaddress.IPv6Interface, "url": pydantic.AnyUrl, "http": pydantic.HttpUrl, "path": pathlib.Path,
    "secret": pydantic.SecretStr, "ByteSize": pydantic.ByteSize, "complex": complex, "Fraction": fractions.Fraction,
    "set": set[int], "frozenset": frozenset[Literal["a", "b"]],
    "stripped": text(strip_whitespace=True, min_length=3, max_length=5),
    "stripped at all": text(strip_whitespace=True, min_length=1, max_length=4), "float": float, "int": int, "bool": bool,
    "Enum": Colour, "Optional": int | None, "tuple": tuple[int, Literal["a"]], "deque": collections.deque[int],
    "Counter": collections.Counter[str], "pattern": text(pattern="^[a-z]{3}$"), "list": list[decimal.Decimal],
}  # fmt: skip

CANNOT: dict[str, Any] = {
    "a file": pydantic.FilePath, "a folder": pydantic.DirectoryPath, "Json": pydantic.Json, "Pattern": re.Pattern,
    "two different": Annotated[set[int], pydantic.Field(min_length=2)],
}  # fmt: skip
"""Types of which a grammar cannot hold all that is validated."""


@cache
def pieces_of(vocab: og.Vocab) -> tuple[list[bytes], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the bytes of each token, and which tokens close a value, and which have no text."""
    pieces = [vocab.piece(token) for token in range(vocab.n_tokens)]
    closing = [piece[:1] in (b'"', b"}", b"]") for piece in pieces]
    return pieces, np.array(closing), np.array([not piece for piece in pieces])


def drawn(grammar: og.Grammar, vocab: og.Vocab, rng: random.Random) -> bytes:
    """Return a text of the grammar, token by token; after a while tokens that may end it are preferred."""
    pieces, closing, empty = pieces_of(vocab)
    guide, written = grammar.guide(vocab), b""
    for step in range(400):
        written += b"".join(pieces[token] for token in guide.forced())
        if guide.ended or guide.error is not None or (guide.may_end and step > 8):
            break
        guide.fill()
        bits = np.unpackbits(np.frombuffer(guide.words(), np.uint8), bitorder="little")[: vocab.n_tokens]
        allowed = bits.astype(bool) & ~empty
        if not allowed.any():
            break
        if step > 8 and (allowed & closing).any():
            allowed &= closing
        token = rng.choice(np.flatnonzero(allowed).tolist())
        guide.accept(token)
        written += pieces[token]
    assert guide.error is None
    return written


@pytest.mark.parametrize("name", TYPES)
def test_what_the_grammar_allows_is_valid(smollm2: og.Model, name: str) -> None:
    """An answer under the grammar of a type is a value of the type, with any choices of the model."""
    model: Any = pydantic.create_model("Answer", value=(TYPES[name], ...))
    grammar = og.Grammar.json_schema(model)
    rng = random.Random(name)
    for _ in range(12):
        written = drawn(grammar, smollm2.vocab, rng).decode("utf-8", "replace")
        model.model_validate_json(written)


@pytest.mark.parametrize("name", CANNOT)
def test_what_no_grammar_holds(name: str) -> None:
    """A type whose validation goes beyond any grammar is refused, by name and place."""
    model: Any = pydantic.create_model("Answer", value=(CANNOT[name], ...))
    with pytest.raises(og.GrammarError, match="/properties/value"):
        og.Grammar.json_schema(model)


VALUES: list[tuple[Any, str, bool]] = [
    (decimal.Decimal, '"12.50"', True), (decimal.Decimal, "12.5", True), (decimal.Decimal, '"cheap"', False),
    (datetime.date, '"2024-02-29"', True), (datetime.date, '"2023-02-29"', False), (datetime.date, '"2023-06-31"', False),
    (datetime.datetime, '"2023-06-30T10:00:00"', True), (datetime.datetime, '"2023-06-30T24:00:00Z"', False),
    (pydantic.AwareDatetime, '"2023-06-30T10:00:00"', False), (dict[int, int], '{"7": 1}', True),
    (dict[int, int], '{"x": 1}', False), (dict[Colour, int], '{"blue.green": 1}', True),
    (dict[Colour, int], '{"bluexgreen": 1}', False), (pydantic.HttpUrl, '"https://example.org/a?b=1"', True),
    (pydantic.HttpUrl, '"mailto:x"', False), (dict[str, int], '{"anything at all": 1}', True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "allowed"), VALUES, ids=str)
def test_usual_values(smollm2: og.Model, kind: Any, value: str, allowed: bool) -> None:
    """Usual values can be written, and what is no value cannot."""
    guide = og.Grammar.json_schema(kind).guide(smollm2.vocab)
    for token in smollm2.vocab.tokenize(value, add_special=False):
        guide.accept(token)
    assert (guide.error is None and guide.may_end) is allowed


def test_a_schema_of_ones_own_stays() -> None:
    """Only the schemas of types change: a mapping is read as it is."""
    assert schema_of_type(int) == {"type": "integer"}
    assert "pattern" not in og.Grammar.json_schema({"type": "string", "format": "date"}).text
