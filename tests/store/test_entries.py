"""Names: what the catalog knows, and what is no name (store/entries.py)."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.sources import BUILTIN
from offgrid_llama import store
from offgrid_llama.errors import UnknownModelError
from offgrid_llama.store.entries import Catalog, Entry, HubSource, builtin_catalog

# ------------------------------------------------------------------------------------------------------------ names


def test_the_catalog_that_comes_along_is_whole() -> None:
    """Every entry is complete, no two share a name, no name could be a path, and the default model is one of them."""
    known = builtin_catalog()
    assert known.find(store.DEFAULT_MODEL).name == store.DEFAULT_MODEL
    assert store.catalog() == known.entries
    for entry in known:
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256 or ""), entry.name
        assert all([entry.size, entry.context_length, entry.quantization, entry.description, entry.license_url])
        assert entry.file_name == f"{entry.name}.gguf"
        assert not entry.name.endswith(".gguf")
        if isinstance(entry.source, HubSource):
            assert re.fullmatch(r"[0-9a-f]{40}", entry.source.revision), "a branch may move, a commit does not"
        else:
            assert sum(piece.size for piece in entry.source.parts) == entry.size
    with pytest.raises(FrozenInstanceError):
        known.entries[0].name = "other"  # type: ignore[misc]


def test_a_catalog_refuses_what_it_could_not_serve() -> None:
    """Two models of one name, and a model in wheels without a checksum, are errors of the catalog."""
    entry = Entry("a", HubSource("o/r", "f.gguf"))
    with pytest.raises(ValueError, match="two models called 'A'"):
        Catalog([entry, Entry("b", HubSource("o/r", "f.gguf"), aliases=("A",))])
    with pytest.raises(ValueError, match="sha256"):
        Catalog([Entry("a", store.PyPISource((store.PyPIPart("p", "1", "m", 1, 1),)))])


def test_names_are_case_insensitive_and_aliases_count() -> None:
    known = builtin_catalog()
    assert known.find("SmolLM2-135M-Instruct").name == "smollm2-135m-instruct"
    assert known.find("TINYLLAMA").name == "tinyllama-1.1b-chat.Q4_K_M"
    assert known.find("HF:Org/Repo/Sub/File.GGUF@refs/pr/1").source == HubSource(
        "Org/Repo", "Sub/File.GGUF", "refs/pr/1"
    )


def test_an_unknown_name_says_what_comes_close_and_what_to_do(tmp_path: Path) -> None:
    here = store.Store(tmp_path, builtin_catalog())
    with pytest.raises(UnknownModelError, match=r"Did you mean smollm2-135m-instruct.*`offgrid-llama models`"):
        here.resolve("smollm2-135-instruct")
    with pytest.raises(UnknownModelError, match="offgrid-llama models"):
        here.pull("zzz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        *("", "a b", "a;b", "a\0b", "x" * 129, "ü", "a\nb", "..", "../models/x", "/etc/shadow", "models/../../x.gguf"),
        *("hf:", "hf:a", "hf:a/b", "hf:a/b/c", "hf:a/b/../c.gguf", "hf:a/../c.gguf", "hf:/b/c.gguf", "hf:a//c.gguf"),
        *("hf:a/b/c.gguf@", "hf:a/b/c.gguf@..", "hf:a/b/c.gguf@a/../b", "hf:a/b/c.gguf@a@b", "hf:a/b/c%2e.gguf"),
        *("hf:a\\b/c/d.gguf", "hf:a/b/" + "c" * 300 + ".gguf", "hf:a/b/c-00001-of-00002.gguf"),
    ],
)
def test_what_is_no_name_is_refused_before_anything_is_touched(tmp_path: Path, name: str) -> None:
    """Traversal, other characters, and pieces of split models never get as far as the disk or the network."""
    here = store.Store(tmp_path / "cache", builtin_catalog())
    for call in (here.pull, here.remove, here.verify):
        with pytest.raises(UnknownModelError):
            call(name)
    assert not (tmp_path / "cache").exists()


@given(st.from_regex(r"(?i)hf:[a-z./@:\\-]{1,40}\.gguf(@[a-z./-]{1,20})?", fullmatch=True) | st.text(max_size=40))
def test_any_text_is_an_entry_inside_the_cache_or_unknown(name: str) -> None:
    """No name leads out of the cache's folder, and none ends in another exception."""
    try:
        entry = BUILTIN.find(name)
    except UnknownModelError:
        return
    for text in (entry.key, entry.file_name):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", text)
        assert text.strip(".")


def test_two_hub_names_never_share_a_file() -> None:
    names = [
        "hf:a/b/c.gguf",
        "hf:a/b/C.gguf",
        "hf:a/b/c.gguf@x",
        "hf:a--b/c/d.gguf",
        "hf:a/b--c/d.gguf",
        "hf:a/b/c/d.gguf",
    ]
    keys = {BUILTIN.find(name).key.casefold() for name in names}
    assert len(keys) == len(names)
