"""Settings of the server: what may be said, where, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offgrid_llama.server import ModelSettings, Settings, SettingsError

TOML = """
port = 8080
idle_seconds = 5
allowed_hosts = ["llm.example.org"]

[[models]]
name = "small"
model = "smollm2-135m-instruct"
aliases = ["default", "tinyllama-1.1b-chat.Q4_K_M"]
preload = true
sampling = { temperature = 0.5 }
"""


def test_file_environment_and_caller(tmp_path: Path) -> None:
    """The caller's word counts before the environment's, and that before the file's."""
    file = tmp_path / "settings.toml"
    file.write_text(TOML, encoding="utf-8")
    told = Settings.load(file, {})
    assert (told.port, told.idle_seconds, told.host) == (8080, 5, "127.0.0.1")
    assert told.models[0].sampling == {"temperature": 0.5}
    assert "llm.example.org" in told.hosts
    environment = {
        "OFFGRID_LLAMA_PORT": "9090", "OFFGRID_LLAMA_API_KEYS": "first-secret, second-secret", "OFFGRID_LLAMA_PAGE": "no",
        "OFFGRID_LLAMA_CACHE": "of the store", "OTHER": "x",
    }  # fmt: skip
    told = Settings.load(file, environment)
    assert (told.port, told.api_keys, told.page) == (9090, ("first-secret", "second-secret"), False)
    assert Settings.load(file, environment, port=7, host=None).port == 7
    assert "secret" not in repr(told)


def test_models_by_one_word() -> None:
    """A name, a file, or both with an equals sign between them."""
    told = Settings.load(None, {}, models=["a", "b=c", "/srv/d.gguf", "hf:o/r/f.gguf@main"])
    assert [(model.name, model.model) for model in told.models] == [
        ("a", "a"), ("b", "c"), ("d", "/srv/d.gguf"), ("o/r/f.gguf", "hf:o/r/f.gguf@main"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"host": "0.0.0.0"}, "insecure"), ({"port": 70_000}, "port"), ({"port": "x"}, "port"),
        ({"max_queue": 0}, "max_queue"),
        ({"max_queue_share": 0.0}, "max_queue_share"), ({"idle_seconds": -1.0}, "idle_seconds"),
        ({"log_format": "xml"}, "log_format"), ({"api_keys": ["short"]}, "api_keys"), ({"page": "yes"}, "page"),
        ({"models": ["a", "a"]}, "two of them"), ({"models": ["a b"]}, "name"), ({"models": [{"nam": "a"}]}, "name"),
        ({"models": [{"name": "a", "size": 1}]}, "size"), ({"models": [{"name": "a", "n_ctx": "big"}]}, "n_ctx"),
        ({"models": [{"name": "a", "n_parallel": 0}]}, "n_parallel"),
    ],
)  # fmt: skip
def test_what_is_refused(said: dict[str, Any], names: str) -> None:
    """What is not possible is named."""
    with pytest.raises(SettingsError, match=names):
        Settings.load(None, {}, **said)


def test_files_that_say_nonsense(tmp_path: Path) -> None:
    """An unknown setting, TOML that is none, and a file of keys without any are refused by name."""
    file = tmp_path / "settings.toml"
    for text, names in (
        ("colour = 1", "colour"),
        ("port = ", "settings.toml"),
        ('api_key_file = "nothing"', "nothing"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises((SettingsError, OSError), match=names):
            Settings.load(file, {})
    (tmp_path / "keys").write_text("# none\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="no key"):
        Settings.load(None, {}, api_key_file=str(tmp_path / "keys"))
    with pytest.raises(SettingsError, match="OFFGRID_LLAMA_PORT"):
        Settings.load(None, {"OFFGRID_LLAMA_PORT": "many"})


def test_hosts() -> None:
    """This machine's names, the one where it listens, and those that were named."""
    settings = Settings(host="::1", allowed_hosts=["Example.org"])
    assert settings.hosts >= {"localhost", "127.0.0.1", "[::1]", "example.org"}
    assert Settings(host="10.0.0.1", api_keys=["long-enough"]).hosts >= {"10.0.0.1"}
    assert ModelSettings("a").n_parallel == 8
