"""Requests for bench/fuzz.py: made from the server's OpenAPI schema, and then bent in depth, type, size and order."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

__all__ = ["Asked", "bases", "requests"]

KEYS = ("the key of the fuzz", "the key of the other client")
WEIGHTS = {"/v1/chat/completions": 6, "/v1/completions": 3, "/apply-template": 2}
"""How much more often than once a path is asked for; all others are asked for equally often."""
N_BENT = 6
"""Bent requests for each that fits the schema."""
LARGE_BYTES = 8 * 2**20
MAX_BYTES = 64 * 2**20
"""Bodies of more bytes are not made: a large part in each place of a large list takes all the memory of the client."""

sys.setrecursionlimit(50_000)  # JSON is written by recursion, and some values are deep


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        method, path: of its first line.
        body: of it, not always JSON.
        head: further lines of its head.
        patience: seconds after which its client leaves.
        again: what of the last answer goes into its body: "message" or "tokens".
    """

    method: str
    path: str
    body: Any
    head: tuple[str, ...] = ()
    patience: float = 1.0
    again: str = ""

    def data(self) -> bytes:
        """Return the bytes of the body."""
        return self.body if isinstance(self.body, bytes) else _written(self.body)


def requests(bases: Sequence[Asked], models: Sequence[str], n: int, number: int) -> Iterator[Asked]:
    """Yield ``n`` requests to a server with models by these names, by the seed ``number``. Some take megabytes."""
    chance = random.Random(number)
    for _ in range(n):
        base = _at_home(chance.choice(bases), models, chance)
        yield base if chance.random() < 1 / (N_BENT + 1) else _bent(base, chance)


def bases(document: dict[str, Any], n: int, number: int) -> list[Asked]:
    """Return some ``n`` requests that fit an OpenAPI document, by the seed ``number``."""
    described: Any = schemathesis.openapi.from_dict(document)
    operations = [each.ok() for each in described.get_all_operations()]
    whole = sum(WEIGHTS.get(each.path, 1) for each in operations)
    found: list[Asked] = []
    for operation in operations:

        @seed(number)
        @settings(
            max_examples=max(2, n * WEIGHTS.get(operation.path, 1) // whole), database=None, deadline=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck), verbosity=Verbosity.quiet,
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def collect(case: Any) -> None:
            body = case.body if isinstance(case.body, dict) else {}
            found.append(Asked(case.method.upper(), case.path, body))

        collect()
    return found


def _at_home(base: Asked, models: Sequence[str], chance: random.Random) -> Asked:
    """Return a request that mostly asks a model of this server, for an answer that is not too long."""
    patience = chance.choice((0.02, 0.1, 0.1, 0.3, 0.3, 1.0, 1.0, 60.0))
    path = base.path.replace("{model}", chance.choice((*models, "none", "a%2F..%2Fb")))
    if base.method == "GET":
        return replace(base, path=path, body=b"", patience=60.0)
    body = dict(base.body)
    if chance.random() < 0.9:
        body["model"] = chance.choice(models)
    if "max_tokens" in body or chance.random() < 0.7:
        body["max_tokens"] = chance.choice((1, 8, 64))
    if path.startswith(("/tokenize", "/detokenize", "/extras", "/v1/embed", "/v1/rerank", "/apply", "/models")):
        body.pop("max_tokens", None)
    if path == "/v1/chat/completions" and chance.random() < 0.5:
        body["messages"] = _conversation(chance)
    again = {"/v1/chat/completions": "message", "/detokenize": "tokens", "/extras/detokenize": "tokens"}.get(path, "")
    return replace(base, path=path, body=body, patience=patience, again=again if chance.random() < 0.3 else "")


def _conversation(chance: random.Random) -> list[dict[str, Any]]:
    """Return messages that most templates take."""
    words = " ".join(chance.choice(("a", "tree", "7", "\u00e9", "\U0001f600", "{", "<|im_end|>")) for _ in range(20))
    return [{"role": chance.choice(("user", "system")), "content": words}, {"role": "user", "content": "And?"}]


# Bending ----------------------------------------------------------------------------------------------------------------


def _bent(base: Asked, chance: random.Random) -> Asked:
    if base.method == "GET" or chance.random() < 0.1:
        return chance.choice(_HEADS)(base, chance)
    body: Any = json.loads(_written(base.body))
    for _ in range(chance.choice((1, 1, 2, 4))):
        body = chance.choice(_VALUES)(body, chance)
        if _size(body, {}) > MAX_BYTES:
            return base
    if chance.random() < 0.1:
        return replace(base, body=chance.choice(_BYTES)(_written(body), chance))
    return replace(base, body=body)


def _size(value: Any, known: dict[int, int]) -> int:
    """Return about how many bytes a value takes as JSON; a part that it has many times is looked at once."""
    if not isinstance(value, (dict, list)):
        return len(value) + 2 if isinstance(value, str) else 8
    if id(value) not in known:
        names = sum(len(name) + 4 for name in value) if isinstance(value, dict) else len(value)
        known[id(value)] = names + sum(
            _size(each, known) for each in (value.values() if isinstance(value, dict) else value)
        )
    return known[id(value)]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return each list or object in a value, with each key or index in it."""
    found: list[tuple[Any, Any]] = []
    open_ = [value]
    while open_ and len(found) < 10_000:
        each = open_.pop()
        keys: Any = each if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        found += [(each, key) for key in keys]
        open_ += [each[key] for key in keys]
    return found


def _changed(body: Any, chance: random.Random, change: Callable[[Any], Any]) -> Any:
    """Return a body one of whose values is another."""
    places = _places(body)
    if not places:
        return change(body)
    where, key = chance.choice(places)
    where[key] = change(where[key])
    return body


def _other_type(body: Any, chance: random.Random) -> Any:
    others: tuple[Any, ...] = (
        None, True, 0, -1, 2**31, 2**63, -(2**70), 1e308, 1.5, "", "a", "\ud800", [], {}, [[]], {"": None}, {"a": [1]},
        float("nan"), float("inf"),
    )  # fmt: skip
    return _changed(body, chance, lambda _: chance.choice(others))


def _deeper(body: Any, chance: random.Random) -> Any:
    n, name = chance.choice((1, 3, 60, 70, 3000)), chance.choice(("a", "properties", "items", "anyOf", "content"))

    def wrapped(value: Any) -> Any:
        for _ in range(n):
            value = [value] if chance.random() < 0.5 else {name: value}
        return value

    return _changed(body, chance, wrapped)


def _larger(body: Any, chance: random.Random) -> Any:
    n = chance.choice((10, 1000, 100_000, 2_000_000))

    def grown(value: Any) -> Any:
        if isinstance(value, str):
            return (value or "a") * max(1, min(n, LARGE_BYTES // max(1, len(value))))
        if isinstance(value, list) and value:
            return value * max(1, min(n, LARGE_BYTES // (len(_written(value)) + 1)))
        if isinstance(value, dict):
            return {**value, **{f"key {i}": i for i in range(min(n, 200_000))}}
        return 10 ** min(n, 4000) if isinstance(value, int) else value

    return _changed(body, chance, grown)


def _in_another_order(body: Any, chance: random.Random) -> Any:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            return dict(chance.sample(sorted(value.items(), key=repr), len(value)))
        return chance.sample(value, len(value)) if isinstance(value, list) else value

    return _changed(shuffled(body), chance, shuffled)


def _without(body: Any, chance: random.Random) -> Any:
    places = _places(body)
    if places:
        where, key = chance.choice(places)
        del where[key]
    return body


def _with_more(body: Any, chance: random.Random) -> Any:
    more = chance.choice((
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": _schema(chance, 4)}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _schema(chance, 4)}}},
        {"grammar": chance.choice(('root ::= "a" root "b" | "a" root "c"', "root ::= root", 'root ::= ("a"*)*', "root"))},
        {"stream": True}, {"n": 8}, {"logprobs": True, "top_logprobs": 20}, {"stop": ["a", "b"]},
        {"tool_choice": "required"}, {"unknown": 1}, {"seed": -1}, {"temperature": 2}, {"chat_template_kwargs": {"a": [1]}},
    ))  # fmt: skip
    return {**body, **more} if isinstance(body, dict) else more


def _schema(chance: random.Random, depth: int) -> Any:
    """Return a JSON schema, or what resembles one."""
    inner = [_schema(chance, depth - 1) for _ in range(chance.randrange(3))] if depth else []
    return chance.choice((
        True, {}, {"type": chance.choice(("string", "integer", "uint", ["null", "object"]))}, {"enum": [1, "a", None]},
        {"$ref": chance.choice(("#", "#/properties/a", "#/$defs/none", "http://localhost/none"))}, {"pattern": "(a+)+$"},
        {"type": "object", "properties": {f"p{i}": each for i, each in enumerate(inner)}, "required": ["p0"]},
        {"anyOf": inner}, {"allOf": inner}, {"oneOf": inner}, {"not": inner[0] if inner else {}}, {"const": inner},
        {"type": "array", "items": inner[0] if inner else True, "minItems": chance.choice((0, 3, 10**9))},
        {"minimum": 1e300, "multipleOf": chance.choice((0, 0.1, "a"))}, {"type": "string", "maxLength": 10**12},
    ))  # fmt: skip


_VALUES: tuple[Callable[[Any, random.Random], Any], ...] = (
    _other_type, _other_type, _deeper, _larger, _in_another_order, _without, _with_more, _with_more
)  # fmt: skip


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _flipped(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(min(4, len(found))):
        found[chance.randrange(len(found))] = chance.randrange(256)
    return bytes(found)


def _doubled(data: bytes, _: random.Random) -> bytes:
    """Return an object whose names come twice."""
    return data[:-1] + b"," + data[1:] if len(data) > 2 and data[:1] == b"{" else data + data


_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_cut, _flipped, _doubled)


def _headed(*lines: str) -> Callable[[Asked, random.Random], Asked]:
    return lambda base, _: replace(base, head=lines)


def _other_method(base: Asked, chance: random.Random) -> Asked:
    return replace(base, method=chance.choice(("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW")))


_HEADS: tuple[Callable[[Asked, random.Random], Asked], ...] = (
    _other_method, _headed("Content-Type: text/plain"), _headed("Content-Encoding: gzip"), _headed("Content-Length: 7"),
    _headed("Transfer-Encoding: chunked"), _headed("Authorization: Bearer none"), _headed("Origin: http://foreign.example"),
    _headed("Sec-Fetch-Site: cross-site"), _headed("Expect: 100-continue"), _headed(f"X-Long: {'a' * 100_000}"),
    _headed("Accept: application/xml"), _headed(*[f"X-{i}: a" for i in range(300)]),
)  # fmt: skip


def _written(value: Any) -> bytes:
    """Return a value as JSON, NaN and lone surrogates too."""
    return json.dumps(value).encode()
