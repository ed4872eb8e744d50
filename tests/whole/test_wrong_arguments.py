"""Arguments of the wrong kind: each public function tells them by the argument's name, and by nothing of Python's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest

import offgrid_llama as og

ASKED = [{"role": "user", "content": "Hi"}]
WRONG: list[Any] = [
    5, -1, 1.5, "x", b"x", None, True, object(), [5], ["x"], [None], {}, {"a": 1}, (), math.nan, 10**30, lambda: 0,
]  # fmt: skip
OTHER_WORDS = {
    "response_format": "schema", "draft": "model", "draft_model": "model", "system": "messages[0]", "devices": "device",
    "cache_dir": "No such file", "projector": "No such file", "template": "chat template", "text": "grammar",
}  # fmt: skip
"""The words that an error may have in place of the argument's name."""


@pytest.fixture(scope="module")
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    with og.Engine(smollm2, n_seq_max=2, n_ctx=512) as engine:
        yield engine


def tried(name: str, call: Callable[[Any], Any]) -> list[str]:
    """Return what is told of wrong values without the name of the argument; a value that is taken is closed."""
    told = []
    for value in WRONG:
        try:
            made = call(value)
            with suppress(AttributeError):
                made.close()
        except (TypeError, ValueError, OSError, og.OffgridLlamaError) as error:
            if name not in str(error) and OTHER_WORDS.get(name, name) not in str(error):
                told.append(f"{value!r}: {error!r}")
    return told


OPTIONS = [
    (kind, each.name)
    for kind in (og.RequestOptions, og.SamplingParams, og.ChatOptions)
    for each in fields(kind)
    if each.init
]


@pytest.mark.parametrize(("kind", "name"), OPTIONS, ids=lambda each: getattr(each, "__name__", each))
def test_options(kind: Any, name: str) -> None:
    """Each option is told by its name."""
    assert tried(name, lambda value: kind(**{name: value})) == []


@pytest.mark.parametrize("name", og.TurnArguments.__annotations__)
def test_a_chat(engine: og.Engine, name: str) -> None:
    """Each option of Engine.chat is told by its name, those that the engine itself reads, too."""
    options = {"max_tokens": 1, "continue_final_message": False}
    if name != "continue_final_message":  # True is right, and this conversation cannot be continued
        assert tried(name, lambda value: engine.chat(ASKED, **{**options, name: value})) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [*inspect.signature(og.Context).parameters])
def test_a_context(smollm2: og.Model, name: str) -> None:
    """Each argument of Context is told by its name."""
    assert tried(name, lambda value: og.Context(**{"model": smollm2, "n_ctx": 64, name: value})) == []


MODEL = [name for name in inspect.signature(og.Model).parameters if name != "model"]


@pytest.mark.parametrize("name", MODEL)
def test_a_model(smollm2: og.Model, name: str) -> None:
    """Each option of Model is told by its name."""
    assert tried(name, lambda value: og.Model(smollm2.path, **{"vocab_only": True, name: value})) == []


ENGINE = [name for name in inspect.signature(og.Engine).parameters if name not in ("model", "context")]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ENGINE)
def test_an_engine(smollm2: og.Model, name: str) -> None:
    """Each option of Engine is told by its name."""
    sizes = {"n_ctx": 128, "n_seq_max": 2}
    assert tried(name, lambda value: og.Engine(smollm2, **{**sizes, name: value})) == []


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("model", og.Engine), ("model", og.Context), ("model", og.Embedder), ("model", og.Reranker),
        ("model", lambda value: og.generate(value, "a")), ("model", lambda value: og.Model(value, download="never")),
        ("texts", og.Grammar.choices), ("pattern", og.Grammar.regex), ("text", og.Grammar.gbnf),
    ],
)  # fmt: skip
def test_first_arguments(name: str, call: Callable[[Any], Any]) -> None:
    """So are the first arguments, for instance a path where a Model is meant."""
    assert tried(name, call) == []


def test_a_path_is_no_model() -> None:
    """The error says how to make one."""
    with pytest.raises(TypeError, match=r"^model must be a Model, not str: Model\(\.\.\.\) loads one$"):
        og.Context("model.gguf")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stop", "says"), [(5, "stop must be a str or several, not int"), (["a", 5], r"stop\[1\] must be str")]
)
def test_stop(stop: Any, says: str) -> None:
    """A stop that is no text is told by its place."""
    with pytest.raises(TypeError, match=says):
        og.RequestOptions(stop=stop)
