"""Settings of the server: where they come from, and what is refused."""

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
    """The caller overrides the environment, and the environment overrides the file."""
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
        ({"models": ["a", "a"]}, "two models"), ({"models": ["a b"]}, "name"), ({"models": [{"nam": "a"}]}, "name"),
        ({"models": [{"name": "a", "size": 1}]}, "size"), ({"models": [{"name": "a", "n_ctx": "big"}]}, "n_ctx"),
        ({"models": [{"name": "a", "n_parallel": 0}]}, "n_parallel"), ({"models": "ab"}, "models"),
        ({"models": 5}, "models"),
        ({"wibble": 1}, "wibble"), ({"idle_seconds": True}, "idle_seconds"), ({"max_queue": 1.5}, "max_queue"),
        ({"api_keys": "long-enough"}, "api_keys"), ({"models": [{"name": "a", "aliases": "b"}]}, "aliases"),
        ({"models": [{"name": "a", "load": None}]}, "load"), ({"models": [{"name": "a", "loras": {"b": "c"}}]}, "loras"),
        ({"models": [{"name": "a", "voices": {"b": "c.wav"}}]}, "a: voices are for a model that speaks"),
        ({"models": [{"name": "a", "projector": "p", "voices": {"b": 1}}]}, "voices"),
        ({"models": [{"name": "a", "matryoshka": 5}]}, "matryoshka"),
        ({"models": [{"name": "a", "matryoshka": [64, 0]}]}, "a: matryoshka must have numbers from 1 on, not 0"),
    ],
)  # fmt: skip
def test_what_is_refused(said: dict[str, Any], names: str) -> None:
    """A setting that is not possible is named."""
    with pytest.raises(SettingsError, match=names):
        Settings.load(None, {}, **said)


def test_keys_are_in_no_message() -> None:
    """A key of the wrong type or length is refused, and the message does not repeat it."""
    for keys in ("a-key-of-some-length", [["a-key-of-some-length"]], ["short"]):
        with pytest.raises(SettingsError, match="api_keys") as refused:
            Settings.load(None, {}, api_keys=keys)
        assert "a-key" not in str(refused.value)
        assert "short" not in str(refused.value)


def test_numbers_without_a_point() -> None:
    """A whole number is a number, and stays what it was."""
    told = Settings.load(None, {}, idle_seconds=5, models=[{"name": "a", "loras": {"b": 1}}])
    assert (told.idle_seconds, told.models[0].loras) == (5, {"b": 1})


def test_files_that_say_nonsense(tmp_path: Path) -> None:
    """An unknown setting, a file that is no TOML, and a file without a key are refused by name."""
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
    """Allowed are this machine's names, the address that it listens on, and those of the settings."""
    settings = Settings(host="::1", allowed_hosts=["Example.org"])
    assert settings.hosts >= {"localhost", "127.0.0.1", "[::1]", "example.org"}
    assert Settings(host="10.0.0.1", api_keys=["long-enough"]).hosts >= {"10.0.0.1"}
    assert ModelSettings("a").n_parallel == 8


@pytest.mark.parametrize(
    "environment",
    [{"OFFGRID_LLAMA_API_KEYS": ""}, {"OFFGRID_LLAMA_API_KEYS": " , "}, {"OFFGRID_LLAMA_API_KEY_FILE": ""},
     {"OFFGRID_LLAMA_API_KEY": "a-key-of-some-length"}, {"OFFGRID_LLAMA_API_KEYS_FILE": "keys"}],
)  # fmt: skip
def test_a_variable_that_would_leave_the_server_open(environment: dict[str, str]) -> None:
    """A variable of keys that is empty or misspelt is an error, and not a server without keys."""
    with pytest.raises(SettingsError, match=next(iter(environment))) as refused:
        Settings.load(None, environment)
    assert "a-key" not in str(refused.value)


def test_keys_that_all_can_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file with keys that every user of the machine can read is warned of, once for each file."""
    keys, file = tmp_path / "keys", tmp_path / "settings.toml"
    keys.write_text("a-key-of-some-length\n", encoding="utf-8")
    for text, mode, n in ((f"api_key_file = '{keys}'", 0o600, 0), (f"api_key_file = '{keys}'", 0o644, 1),
                          ("api_keys = ['a-key-of-some-length']", 0o644, 1), ("port = 1", 0o644, 0)):  # fmt: skip
        file.write_text(text, encoding="utf-8")
        for each in (keys, file):
            each.chmod(mode)
        caplog.clear()
        Settings.load(file, {})
        assert len(caplog.records) == n
        assert all("chmod" in record.getMessage() for record in caplog.records)
