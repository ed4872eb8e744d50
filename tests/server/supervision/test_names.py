"""The names that clients use for models."""

from __future__ import annotations

import pytest

from offgrid_llama.server import ModelSettings
from offgrid_llama.server.supervision.names import Names, tagged
from offgrid_llama.server.supervision.served_model import ServedModel


def names(**models: str) -> tuple[Names, dict[str, ServedModel]]:
    """Return the names of models, each with its file."""
    found, made = Names(), {}
    for name, model in models.items():
        made[name] = ServedModel(ModelSettings(name, model=model))
        found.add(name, made[name])
    return found, made


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mine", "mine"), ("mine:latest", "mine"), ("MINE:Latest", "mine"), ("mine:8b", None), ("min", None), ("", None),
        ("smollm2:135m", "small"), ("SmolLM2:135M", "small"), ("smollm2-135m-instruct", "small"),
        ("smollm2-135m-instruct:latest", "small"), ("registry.ollama.ai/library/smollm2:135m", "small"),
        ("smollm2-135m-instruct:q8_0", None), ("smollm2:360m", None), ("smollm2", None), ("library/mine", "mine"),
        ("/srv/mine.gguf", None), ("../mine", None),
    ],
)  # fmt: skip
def test_names(name: str, found: str | None) -> None:
    """Any case, with the tag "latest" or without one; models of the store by its catalog's names; no files."""
    known, models = names(mine="/srv/mine.gguf", small="smollm2-135m-instruct")
    assert known.find(name) is (None if found is None else models[found])
    assert (name in known) is (found is not None)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/Tiny-GGUF:Q4_K_M", "a"), ("ORG/tiny-gguf:q4_k_m", "a"), ("org/Tiny-GGUF:Q8_0", "b"), ("org/Tiny-GGUF", None),
        ("org/Tiny-GGUF:Q4_K", None), ("org/Tiny-GGUF:Q5_0", None), ("other/Tiny-GGUF:Q8_0", None),
        ("any/Mine-GGUF:F16", "c"), ("any/mine:f16", "c"), ("any/Mine-GGUF", None), ("any/mine-f16-gguf", None),
        ("org/Split-GGUF:IQ4_NL", "d"), ("org/One-GGUF", "f"), ("org/Split-GGUF/x.gguf", None), ("a/b/c:d", None),
        ("x/SmolLM2-135M-Instruct-GGUF:Q4_1", "e"), ("x/SmolLM2-135M-Instruct-GGUF:Q4_0", None), ("/:", None), ("/", None),
    ],
)  # fmt: skip
def test_names_with_a_repository(name: str, found: str | None) -> None:
    """They mean the only model with such a file, of Hugging Face or by its own name."""
    known, models = names(
        a="hf:org/Tiny-GGUF/Tiny-Q4_K_M.gguf", b="hf:org/Tiny-GGUF/q8/tiny.Q8_0.gguf@main", c="/srv/models/Mine-F16.gguf",
        d="/srv/Split-IQ4_NL-00001-of-00002.gguf", e="smollm2-135m-instruct", f="hf:org/One-GGUF/one.gguf",
    )  # fmt: skip
    assert known.find(name) is (None if found is None else models[found])


def test_two_models_with_one_file() -> None:
    """Neither is meant more than the other, unless one has the name."""
    known, models = names(a="hf:org/Tiny-GGUF/Tiny-Q8_0.gguf", b="hf:org/Tiny-GGUF/Tiny-Q8_0.gguf")
    assert known.find("org/Tiny-GGUF:Q8_0") is None
    known.add("org/Tiny-GGUF:Q8_0", models["b"])
    assert known.find("org/Tiny-GGUF:Q8_0") is models["b"]
    known.remove("b")
    known.remove("org/Tiny-GGUF:Q8_0")
    assert known.find("org/Tiny-GGUF:Q8_0") is models["a"]


def test_exact_names_come_first() -> None:
    """A name that a model has is never read as another's."""
    known, models = names(**{"A": "a.gguf", "a": "b.gguf", "smollm2:135m": "c.gguf", "s": "smollm2-135m-instruct"})
    assert [known.find(name) for name in ("A", "a", "smollm2:135m")] == [
        models["A"], models["a"], models["smollm2:135m"]
    ]  # fmt: skip
    assert known.find("A:latest") is models["A"]
    assert known.find("SMOLLM2:135m") is models["smollm2:135m"]
    assert list(known) == ["A", "a", "smollm2:135m", "s"]


def test_a_name_that_is_taken_away() -> None:
    """It means nothing then, and what others mean stays."""
    known, models = names(a="x.gguf", b="smollm2-135m-instruct")
    known.add("c", models["a"])
    known.remove("a")
    assert [known.find(name) for name in ("a", "A", "c", "smollm2:135m")] == [None, None, models["a"], models["b"]]


def test_what_is_listed() -> None:
    """Each name with its tag, and the name in Ollama's library of a model of the store, unless another model has that."""
    known, models = names(a="x.gguf", small="smollm2-135m-instruct")
    assert known.tagged() == {"a:latest": models["a"], "small:latest": models["small"], "smollm2:135m": models["small"]}
    assert all(known.find(name) is model for name, model in known.tagged().items())
    known, models = names(**{"SmolLM2:135m": "x.gguf", "small": "smollm2-135m-instruct"})
    assert known.tagged() == {"SmolLM2:135m": models["SmolLM2:135m"], "small:latest": models["small"]}


def test_tags() -> None:
    """A name without a tag has one; a colon before a slash is that of a port."""
    assert [tagged(name) for name in ("a", "a:b", "host:80/a", "host:80/a:b")] == [
        "a:latest", "a:b", "host:80/a:latest", "host:80/a:b",
    ]  # fmt: skip
