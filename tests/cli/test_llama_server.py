"""The flags of llama-server become this server's settings, or are refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from offgrid_llama import store
from offgrid_llama.cli.exits import UsageError
from offgrid_llama.cli.llama_server import settings_of
from offgrid_llama.cli.llama_server_flags import FLAGS, read
from offgrid_llama.cli.llama_server_templates import template_text
from offgrid_llama.engine.engine import Engine
from offgrid_llama.model.params import ContextOptions, ModelOptions
from offgrid_llama.native.enums import LoadMode
from offgrid_llama.sampling.sampling_params import SamplingParams
from offgrid_llama.server import Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that is there."""
    (tmp_path / "my model.gguf").write_bytes(b"")
    return tmp_path / "my model.gguf"


def settings(file: Path, *arguments: str, **environment: str) -> Settings:
    return settings_of(read(["-m", str(file), *arguments], environment))


def test_flags_become_settings(file: Path) -> None:
    """Each goes to the setting that it is here."""
    found = settings(
        file, "-c", "1024", "-np", "2", "-t", "3", "-b", "64", "-ub", "32", "--temp", "0.5", "--top-k", "-1", "-s", "7",
        "--alias", "b,a", "-n", "9", "--context-shift", "-fa", "on", "-ctk", "q8_0", "-kvu", "--cache-ram", "5",
        "--samplers", "top_k;temperature", "--host", "127.0.0.1,::1", "--port", "9000", "--no-slots", "--metrics",
        "--lora-scaled", "x.gguf:0.5", "--api-key", "secret-key-1,secret-key-2", "--embedding", "--no-ui",
    )  # fmt: skip
    (model,), manner = found.models, found.llama_server
    assert manner is not None
    assert (model.name, model.aliases, model.n_ctx, model.n_parallel, model.n_threads) == ("a", ("b",), 1024, 2, 3)
    assert model.sampling == {"temperature": 0.5, "top_k": 0, "seed": 7, "samplers": ["top_k", "temp_ext"]}
    assert model.engine == {
        "n_batch": 32, "flash_attn_type": "enabled", "type_k": "q8_0", "kv_unified": True, "cache_bytes": 5 * 2**20,
        "stream_interval": 0.0,
    }  # fmt: skip
    assert model.loras == {"x.gguf": 0.5}
    assert (manner.n_predict, manner.context_shift, manner.slots, manner.metrics, manner.embeddings) == (
        9, True, False, True, True,
    )  # fmt: skip
    assert (found.host, found.port, found.page) == ("127.0.0.1,::1", 9000, False)
    assert found.api_keys == ("secret-key-1", "secret-key-2")
    assert found.cors_origins == ("*",)  # with a key pages of all origins may ask
    assert (found.any_model, found.ignore_unknown) == (True, True)


def test_defaults_are_llama_servers(file: Path) -> None:
    """Its port, this machine only, a name from the file, and no page of another origin."""
    found = settings(file)
    assert (found.host, found.port, found.cors_origins, found.insecure) == ("127.0.0.1", 8080, (), False)
    assert found.models[0].name == "my-model"
    opened = settings(file, "--host", "0.0.0.0")
    assert (opened.insecure, opened.allowed_hosts) == (True, ("*",))


def test_the_environment_sets_what_no_flag_does(file: Path) -> None:
    """LLAMA_ARG_ variables count where their flag is not given; a flag of theirs may be 0 or 1."""
    found = settings(
        file, "--port", "9000", LLAMA_ARG_PORT="1", LLAMA_ARG_CTX_SIZE="512", LLAMA_ARG_ENDPOINT_METRICS="1",
        LLAMA_ARG_CONTEXT_SHIFT="0", LLAMA_API_KEY="secret-key",
    )  # fmt: skip
    assert (found.port, found.models[0].n_ctx, found.api_keys) == (9000, 512, ("secret-key",))
    assert found.llama_server is not None
    assert (found.llama_server.metrics, found.llama_server.context_shift) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--grp-attn-n", "2"], "--grp-attn-n"),
        (["--mmproj-url", "x"], "--mmproj-url"),
        (["-c", "many"], "-c: 'many'"),
        (["--chat-template", "vicuna"], "vicuna"),
        (["--slot-save-path", "/nowhere/at/all"], "--slot-save-path"),
        (["--spec-type", "eagle3"], "eagle3"),
        (["-fa", "maybe"], "-fa"),
    ],
)
def test_what_is_refused(file: Path, arguments: list[str], told: str) -> None:
    """The error names the flag, or its value."""
    with pytest.raises(UsageError, match=told):
        settings(file, *arguments)


def test_a_file_that_is_not_there() -> None:
    """Nothing starts."""
    with pytest.raises(UsageError, match="-m"):
        settings_of({"model": "/nowhere/model.gguf"})


def test_without_a_model_those_of_the_cache_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is loaded when a request names it, as llama-server's router does."""
    monkeypatch.setattr(store, "cached", lambda: {"b": None, "a": None})
    found = settings_of(read(["-c", "512"], {}))
    assert [(model.name, model.n_ctx, model.preload) for model in found.models] == [
        ("a", 512, False),
        ("b", 512, False),
    ]
    assert found.llama_server is not None
    assert (found.llama_server.router, found.any_model) == (True, False)


def test_no_flag_has_two_meanings() -> None:
    """Each name is in the table once."""
    names: list[Any] = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names))


def test_arguments_of_others_are_theirs() -> None:
    """What flags hand on to Model, Engine and SamplingParams are arguments of these."""
    known = {
        "load": ModelOptions.__annotations__.keys(),
        "engine": {*ContextOptions.__annotations__, *(Engine.__init__.__kwdefaults__ or {})},
        "sampling": {each.name for each in dataclasses.fields(SamplingParams)},
    }
    handed = [flag.to.split(".", 1) for flag in FLAGS if flag.to.split(".")[0] in known]
    assert [pair for pair in handed if pair[1] not in known[pair[0]]] == []
    assert {kind for kind, _ in handed} == known.keys()


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        (["--mmap"], "mmap"), (["--no-mmap"], "none"), (["--mlock"], "mmap_mlock"), (["--mlock", "--no-mmap"], "mlock"),
    ],
)  # fmt: skip
def test_how_a_file_comes_into_memory(file: Path, flags: list[str], mode: str) -> None:
    """Both flags together are one load mode; without them it is the Model's own."""
    assert settings(file, *flags).models[0].load == {"load_mode": mode}
    assert mode.upper() in LoadMode.__members__
    assert settings(file).models[0].load == {}


def test_templates() -> None:
    """A name, Jinja, or any other text, which is a template without variables."""
    assert "<|start_header_id|>" in template_text("llama3")
    assert template_text("{{ messages }}") == "{{ messages }}"
    assert template_text('Not "one", it is') == '{{ "Not \\"one\\", it is" }}'
