"""The server with llama-cpp-python's flags: how they are read, the settings that they become, and a server that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from helpers.serving import Served, serving
from offgrid_llama import store
from offgrid_llama.compat.llama_cpp.server.__main__ import main
from offgrid_llama.compat.llama_cpp.server.conversion import CHAT_FORMATS, KV_TYPES, notes_of, settings_of
from offgrid_llama.compat.llama_cpp.server.fields import BY_NAME, FIELDS
from offgrid_llama.compat.llama_cpp.server.sources import Given, read
from offgrid_llama.errors import UnknownModelError
from offgrid_llama.native import enums
from offgrid_llama.server import ModelSettings, Settings, SettingsError

MODULE = "offgrid_llama.compat.llama_cpp.server"
GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "llama_cpp_server_settings.json").read_text(encoding="utf-8"))
TYPES = {
    "str": "text", "Optional[str]": "text", "int": "integer", "Optional[int]": "integer", "float": "number",
    "bool": "switch", "Union[bool, int]": "switch or integer", "Literal['ram', 'disk']": "cache type",
    "Optional[List[float]]": "numbers", "Optional[List[str]]": "texts", "Optional[Dict[str, Any]]": "object",
}  # fmt: skip
EXPRESSIONS = {
    "llama_cpp.LLAMA_SPLIT_MODE_LAYER": enums.SplitMode.LAYER,
    "llama_cpp.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED": enums.RopeScaling.UNSPECIFIED,
    "llama_cpp.LLAMA_DEFAULT_SEED": 0xFFFFFFFF,
}
"""Defaults that are no literals; those that depend on the machine are not here."""


def of_model(*arguments: str, **environment: str) -> dict[str, Any]:
    """Return what is set of the one model, besides its file."""
    (model,) = read(["--model", "m", *arguments], environment).models
    return {name: value for name, value in model.items() if name != "model"}


def test_every_field_is_in_the_table() -> None:
    """The names, kinds, defaults and least values are those of llama-cpp-python's classes, in their order."""
    golden = {**GOLDEN["ModelSettings"], **GOLDEN["ServerSettings"]}
    assert len(golden) > 50
    assert [field.name for field in FIELDS] == list(golden)
    for field in FIELDS:
        theirs = golden[field.name]
        default = EXPRESSIONS.get(theirs["expression"]) if "expression" in theirs else theirs.get("default")
        found = (field.kind, field.default, field.least, field.of_server)
        assert found == (TYPES[theirs["type"]], default, theirs.get("least"), field.name in GOLDEN["ServerSettings"])


# Sources ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--n_ctx", "1024"], {"n_ctx": 1024}),
        (["--n_ctx=1024"], {"n_ctx": 1024}),
        (["--n_ct", "1024"], {"n_ctx": 1024}),  # argparse takes beginnings
        (["--n_ctx", "1", "--n_ctx", "2"], {"n_ctx": 2}),
        (["--n_gpu_layers", "-1"], {"n_gpu_layers": -1}),
        (["--n_threads", "-1", "--n_threads_batch=-1"], {"n_threads": os.cpu_count(), "n_threads_batch": os.cpu_count()}),
        (["--use_mmap", "Off", "--use_mlock", "1", "--cache", "yes", "--embedding=T"],
         {"use_mmap": False, "use_mlock": True, "cache": True, "embedding": True}),
        (["--tensor_split", "1", "0.5", "--seed", "-1"], {"tensor_split": [1.0, 0.5], "seed": -1}),
        (["--tensor_split", "1", "--tensor_split", "2"], {"tensor_split": [2.0]}),
        (["--kv_overrides", "a=int:1", "b=str:x=y"], {"kv_overrides": ["a=int:1", "b=str:x=y"]}),
        (["--chat_template_kwargs", '{"a": [1]}'], {"chat_template_kwargs": {"a": [1]}}),
        (["--numa", "true"], {"numa": True}),
        (["--rope_freq_base", "1e4"], {"rope_freq_base": 10000.0}),
    ],
)  # fmt: skip
def test_forms_of_flags(arguments: list[str], expected: dict[str, Any]) -> None:
    """As llama-cpp-python's command line reads them."""
    assert of_model(*arguments) == expected


def test_the_environment_sets_what_no_flag_does() -> None:
    """Names in any case, lists and objects in JSON, switches in pydantic's words."""
    found = of_model(
        "--n_batch", "9", N_BATCH="8", n_ctx="77", TENSOR_SPLIT="[1, 2]", CHAT_TEMPLATE_KWARGS='{"a": 1}', USE_MMAP="f",
        NUMA="3", N_UBATCH=" 10.0 ",
    )  # fmt: skip
    assert found == {
        "n_batch": 9, "n_ctx": 77, "tensor_split": [1.0, 2.0], "chat_template_kwargs": {"a": 1}, "use_mmap": False,
        "numa": 3, "n_ubatch": 10,
    }  # fmt: skip
    assert read([], {"MODEL": "q"}).models == [{"model": "q"}]


def test_host_and_port_of_the_environment_come_first() -> None:
    """In upper case they come before the flags; in lower case they are as any other field."""
    flags = ["--model", "m", "--host", "a", "--port", "1"]
    assert read(flags, {"HOST": "b", "PORT": "2"}).server == {"host": "b", "port": 2}
    assert read(flags, {"host": "b", "port": "2"}).server == {"host": "a", "port": 1}


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """A settings file in JSON."""
    file = tmp_path / "settings.json"
    models = [{"model": "a", "model_alias": "x", "n_ctx": "512", "use_mmap": 0, "lora_path": None}, {"model": "b"}]
    file.write_text(json.dumps({"host": "0.0.0.0", "Port": 8080, "models": models}), encoding="utf-8")
    return file


def test_a_settings_file(settings_file: Path) -> None:
    """It takes the place of the flags, and the environment sets what it does not."""
    given = read(["--config_file", str(settings_file), "--port", "9", "--n_ctx=3"], {"SEED": "5", "API_KEY": "secret"})
    assert given.server == {"host": "0.0.0.0", "port": 8080, "api_key": "secret"}
    assert given.models == [
        {"model": "a", "model_alias": "x", "n_ctx": 512, "use_mmap": False, "seed": 5},
        {"model": "b", "seed": 5},
    ]
    assert list(notes_of(given)) == ["beside a settings file these flags have no effect: --n_ctx, --port"]
    assert read(["--config_file", "/nowhere"], {"CONFIG_FILE": str(settings_file), "PORT": "4"}).server["port"] == 4


def test_a_settings_file_in_yaml(tmp_path: Path) -> None:
    """The same in YAML, by the ending of its name."""
    pytest.importorskip("yaml")
    file = tmp_path / "settings.yml"
    file.write_text("port: 81\nmodels:\n  - model: a\n    tensor_split: [1, 2]\n    verbose: off\n", encoding="utf-8")
    given = read(["--config_file", str(file)], {})
    assert (given.server, given.models) == (
        {"port": 81},
        [{"model": "a", "tensor_split": [1.0, 2.0], "verbose": False}],
    )
    file.write_text("a: [", encoding="utf-8")
    with pytest.raises(SettingsError, match="no YAML"):
        read(["--config_file", str(file)], {})


def test_yaml_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, or to write."""
    (tmp_path / "settings.yaml").write_text("models: []", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(SettingsError, match="pip install pyyaml, or write the file in JSON"):
        read(["--config_file", str(tmp_path / "settings.yaml")], {})


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (["--bogus", "1"], {}, "unrecognized arguments: --bogus"),
        (["--mod", "b"], {}, "ambiguous option: --mod"),
        (["--use_mmap"], {}, "--use_mmap: expected one argument"),
        (["--n_ctx", "many"], {}, "--n_ctx: 'many' cannot be used: it must be an integer"),
        (["--n_ctx", "1.5"], {}, "--n_ctx"),
        (["--n_ctx", "-3"], {}, "--n_ctx: -3 cannot be used: it must be at least 0"),
        (["--use_mmap", "maybe"], {}, "--use_mmap: 'maybe' cannot be used: it must be true or false"),
        (["--cache_type", "tape"], {}, "--cache_type: 'tape' cannot be used: it must be ram or disk"),
        (["--chat_template_kwargs", "[1]"], {}, "--chat_template_kwargs: .* an object in JSON"),
        ([], {"N_CTX": ""}, "N_CTX: '' cannot be used"),
        ([], {"TENSOR_SPLIT": "1,2"}, "TENSOR_SPLIT: '1,2' cannot be used"),
        ([], {"rope_freq_base": "nan"}, "rope_freq_base: 'nan' cannot be used: it must be a number"),
    ],
)
def test_what_cannot_be_read(arguments: list[str], environment: dict[str, str], told: str) -> None:
    """The error names the flag, or the variable as it is written."""
    with pytest.raises(SettingsError, match=told):
        read(["--model", "m", *arguments], environment)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"models": []}, "models: there is none"),
        ({}, "models: there is none"),
        ({"models": {"model": "a"}}, "models: it must be a list"),
        ({"models": [3]}, r"models\[0\]: it must be an object"),
        ([1], "it must be an object"),
        ({"bogus": 1, "models": []}, "bogus: there is no such setting$"),
        ({"n_ctx": 1, "models": []}, "n_ctx: there is no such setting of the server"),
        ({"models": [{"model": "a"}, {"model": "b", "port": 2}]}, r"models\[1\].port: .* of a model"),
        ({"models": [{"model": 5}]}, r"models\[0\].model: cannot be used: it must be a text, not int"),
        ({"models": [{"model": "a", "n_ctx": None}]}, r"models\[0\].n_ctx"),
        ({"models": [{"model": "a", "n_ctx": 5.5}]}, r"models\[0\].n_ctx"),
        ({"models": [{"model": "a", "kv_overrides": [1]}]}, r"models\[0\].kv_overrides"),
        ({"models": [{"n_ctx": 5}]}, "there is no model"),
        ({"api_key": 12345678, "models": [{"model": "a"}]}, "api_key: cannot be used"),
    ],
)
def test_settings_files_that_cannot_be_read(tmp_path: Path, content: object, told: str) -> None:
    """The error names the file and the place in it."""
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SettingsError, match=told):
        read(["--config_file", str(file)], {})


def test_a_key_is_in_no_error(tmp_path: Path) -> None:
    """Neither one of a wrong type, nor one that is too short."""
    file = tmp_path / "settings.json"
    file.write_text('{"api_key": 1234567, "models": []}', encoding="utf-8")
    with pytest.raises(SettingsError) as told:
        read(["--config_file", str(file)], {})
    assert "1234567" not in str(told.value)


# Conversion -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my model.gguf").write_bytes(b"")
    return tmp_path / "my model.gguf"


def settings(*arguments: str) -> Settings:
    return settings_of(read(["--model", "my model.gguf", *arguments], {}))


def model(*arguments: str) -> ModelSettings:
    (found,) = settings(*arguments).models
    return found


@pytest.mark.usefixtures("file")
def test_defaults_are_llama_cpp_pythons() -> None:
    """Port 8000 of this machine, 2,048 positions for a request, no GPU, any model's name, unknown parameters ignored."""
    found = settings()
    assert (found.host, found.port, found.api_keys, found.cors_origins) == ("localhost", 8000, (), ())
    assert (found.any_model, found.ignore_unknown, found.insecure, found.allowed_hosts) == (True, True, False, ())
    (only,) = found.models
    assert (only.name, only.model, only.n_gpu_layers, only.preload) == ("my-model.gguf", "my model.gguf", 0, True)
    assert (only.n_ctx, only.n_parallel) == (8 * 2048, 8)
    assert only.engine == {"n_batch": 512, "stream_interval": 0.0, "kv_unified": False}
    assert only.sampling == {"repeat_penalty": 1.1, "repeat_last_n": 64}
    assert (only.template, only.load, only.loras, only.n_threads) == (None, {}, {}, None)


@pytest.mark.usefixtures("file")
def test_fields_become_settings() -> None:
    """Each goes to the setting that it is here."""
    Path("lora.gguf").write_bytes(b"")
    found = model(
        "--model_alias", "x", "--n_gpu_layers", "7", "--split_mode", "2", "--main_gpu", "1", "--tensor_split", "1", "3",
        "--use_mmap", "0", "--use_mlock", "1", "--kv_overrides", "a=int:1", "b=bool:TRUE", "c=float:.5", "d=str:e:f=g",
        "--rpc_servers", "h:1, i:2", "--seed", "42", "--n_batch", "300", "--n_ubatch", "200", "--n_threads", "3",
        "--n_threads_batch", "4", "--rope_scaling_type", "2", "--rope_freq_base", "5", "--rope_freq_scale", ".5",
        "--offload_kqv", "0", "--flash_attn", "1", "--last_n_tokens_size", "9", "--lora_path", "lora.gguf", "--cache", "1",
        "--cache_size", "100", "--type_k", "8", "--type_v", "30",
    )  # fmt: skip
    assert (found.name, found.n_gpu_layers, found.n_threads, found.loras) == ("x", 7, 3, {"lora.gguf": 1.0})
    assert found.load == {
        "split_mode": "row", "main_gpu": 1, "tensor_split": [1.0, 3.0], "load_mode": "mlock",
        "kv_overrides": {"a": 1, "b": True, "c": 0.5, "d": "e:f=g"}, "devices": ["h:1", "i:2"],
    }  # fmt: skip
    assert found.engine == {
        "n_batch": 200, "stream_interval": 0.0, "kv_unified": False, "n_threads_batch": 4, "rope_scaling_type": "yarn",
        "rope_freq_base": 5.0, "rope_freq_scale": 0.5, "offload_kqv": False, "flash_attn_type": "enabled",
        "cache_bytes": 100, "type_k": "q8_0", "type_v": "bf16",
    }  # fmt: skip
    assert found.sampling == {"repeat_penalty": 1.1, "repeat_last_n": 9, "seed": 42}


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("n_ctx", "expected"),
    [(0, (None, 8, False)), (4096, (32768, 8, False)), (8192, (32768, 4, False)), (20000, (20000, 8, True))],
)
def test_positions(n_ctx: int, expected: tuple[int | None, int, bool]) -> None:
    """A request can always have ``n_ctx``; where that takes much memory, requests share it."""
    found = model("--n_ctx", str(n_ctx))
    assert (found.n_ctx, found.n_parallel, found.engine["kv_unified"]) == expected


@pytest.mark.usefixtures("file")
def test_values_that_stand_for_others() -> None:
    """-1 layers are as many as fit; a seed of 0 or -1 is none; a step has room for each request; mmap alone."""
    found = model("--n_gpu_layers", "-1", "--seed", "-1", "--n_batch", "1", "--use_mmap", "1", "--flash_attn", "0")
    assert (found.n_gpu_layers, found.engine["n_batch"], found.load) == (None, 9, {"load_mode": "mmap"})
    assert found.engine["flash_attn_type"] == "disabled"
    assert "seed" not in {**found.sampling, **model("--seed", "0").sampling}
    assert model("--use_mlock", "1").load == {"load_mode": "mmap_mlock"}
    assert model("--use_mmap", "0").load == {"load_mode": "none"}


def test_a_cache_on_disk(file: Path) -> None:
    """In llama-cpp-python's folder, which is made."""
    engine = model("--cache", "1", "--cache_type", "disk", "--cache_size", "100").engine
    assert (engine["cache_dir"], engine["cache_dir_bytes"]) == (str(file.parent / ".cache" / "llama_cache"), 100)
    assert Path(engine["cache_dir"]).is_dir()


def test_kv_types_are_ggmls() -> None:
    """Each type that a KV cache can have, by ggml's number."""
    assert {name: number for number, name in KV_TYPES.items()} == enums.KV_TYPES


@pytest.mark.usefixtures("file")
def test_hosts_and_keys() -> None:
    """Other machines may come where the host is theirs, and pages of all origins where a key is needed."""
    opened, keyed = settings("--host", "0.0.0.0"), settings("--api_key", "secret-key", "--port", "0")
    assert (opened.insecure, opened.allowed_hosts, opened.cors_origins) == (True, ("*",), ())
    assert (keyed.api_keys, keyed.allowed_hosts, keyed.cors_origins) == (("secret-key",), ("*",), ("*",))
    assert (keyed.insecure, keyed.port) == (False, 0)
    with pytest.raises(SettingsError, match="at least 8 characters"):
        settings("--api_key", "short")


@pytest.mark.usefixtures("file")
def test_several_models() -> None:
    """The first is loaded at the start, and answers for unknown names; the others are loaded when they are named."""
    first = {"model": "my model.gguf", "model_alias": "a"}
    found = settings_of(Given({}, [first, {"model": "my model.gguf", "model_alias": "b", "n_ctx": 64}]))
    assert [(each.name, each.n_ctx, each.preload) for each in found.models] == [("a", 16384, True), ("b", 512, False)]
    with pytest.raises(SettingsError, match="two models"):
        settings_of(Given({}, [first, first]))


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--clip_model_path", "x"], "--clip_model_path: there is no file"),
        (["--chat_format", "llava-1-5"], "--chat_format llava-1-5 needs --clip_model_path"),
        (["--ssl_keyfile", "x"], "--ssl_keyfile: .* proxy"),
        (["--ssl_certfile", "x"], "--ssl_certfile: .* proxy"),
        (["--vocab_only", "1"], "--vocab_only"),
        (["--hf_pretrained_model_name_or_path", "x"], "--hf_pretrained_model_name_or_path: .* of the GGUF"),
        (["--chat_template_kwargs", "{}"], "--chat_template_kwargs: .* in the requests"),
        (["--yarn_orig_ctx", "9"], "--yarn_orig_ctx: .* --kv_overrides"),
        (["--yarn_ext_factor", "1"], "--yarn_ext_factor: .* leave it out"),
        (
            ["--chat_format", "functionary"],
            "functionary needs Python code in the worker, .*: leave it out, and the model",
        ),
        (["--chat_format", "hf-tokenizer-config"], "needs --hf_tokenizer_config_path"),
        (["--chat_format", "nothing"], "nothing is none of llama-cpp-python's"),
        (["--split_mode", "9"], r"--split_mode: it must be one of 0 \(none\)"),
        (["--type_k", "12"], "--type_k: .* not 12"),
        (["--rope_scaling_type", "-2"], "--rope_scaling_type"),
        (["--kv_overrides", "a=1"], "--kv_overrides: 'a=1' must be KEY=TYPE:VALUE"),
        (["--kv_overrides", "a=int:b"], "'a=int:b' has no int"),
        (["--lora_path", "nowhere"], "--lora_path: there is no file nowhere"),
        (["--host", ""], "--host is empty"),
    ],
)
def test_what_is_refused(arguments: list[str], told: str) -> None:
    """By name, with what to do instead."""
    with pytest.raises(SettingsError, match=told):
        settings(*arguments)


@pytest.mark.usefixtures("file")
def test_defaults_of_refused_fields_are_taken() -> None:
    """A flag that says what is so anyway does no harm."""
    values = {field.name: field.default for field in FIELDS if field.refused and field.default is not None}
    assert set(values) >= {"yarn_ext_factor", "vocab_only"}
    assert settings(*(f"--{name}={value}" for name, value in values.items())) == settings()


def test_fields_without_effect_are_told() -> None:
    """Only where they were set to something that would have changed an answer."""
    given = read(["--model", "m", "--root_path", "/a", "--disable_ping_events", "1", "--numa", "1", "--n_ctx", "0"], {})
    assert [note.partition(" ")[0] for note in notes_of(given)] == ["disable_ping_events", "root_path", "n_ctx"]
    assert list(notes_of(read(["--model", "m", "--root_path", "", "--disable_ping_events", "0"], {}))) == []


def test_chat_formats(file: Path) -> None:
    """chatml, the template of a tokenizer's file, and the model's own."""
    assert "<|im_start|>" in str(model("--chat_format", "chatml").template)
    assert model("--chat_format", "chat_template.default").template is None
    config = file.with_name("tokenizer_config.json")
    flags = ["--chat_format", "hf-tokenizer-config", "--hf_tokenizer_config_path", str(config)]
    templates = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": "{{ 2 }}"}]
    for content, expected in (("{{ 3 }}", "{{ 3 }}"), (templates, "{{ 2 }}")):
        config.write_text(json.dumps({"chat_template": content}), encoding="utf-8")
        assert model(*flags).template == expected
    for text, told in (("{}", "no chat_template"), ("[1]", "no chat_template"), ("{", "no JSON")):
        config.write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match=told):
            model(*flags)
    assert not {"chatml", "hf-tokenizer-config", "vicuna"} & set(CHAT_FORMATS)
    snoozy = model("--chat_format", "snoozy")
    assert "### Prompt" in str(snoozy.template)
    assert snoozy.stop == ("###",)


def test_models_of_repositories(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole name is the store's; a pattern must fit one file of the cache, for the store lists no repositories."""
    cached = ["hf:org/repo/a.Q4_0.gguf", "hf:org/repo/a.Q8_0.gguf", "hf:org/other/b.Q4_0.gguf", "tiny"]
    monkeypatch.setattr(store, "cached", lambda: dict.fromkeys(cached))
    monkeypatch.setattr(store, "resolve", lambda name, **_: file)

    def named(pattern: str) -> str | None:
        given = read(["--hf_model_repo_id", "org/repo", "--model", pattern], {})
        return settings_of(given).models[0].model

    assert named("a.Q5_0.gguf") == "hf:org/repo/a.Q5_0.gguf"
    assert named("*Q4_0.gguf") == "hf:org/repo/a.Q4_0.gguf"
    with pytest.raises(SettingsError, match="2 cached files of org/repo fit"):
        named("*.gguf")
    with pytest.raises(SettingsError, match=r"0 cached files .* \(cached are a.Q4_0.gguf, a.Q8_0.gguf\)"):
        named("*Q2_K.gguf")
    with pytest.raises(UnknownModelError):
        named("../x.gguf")


def test_a_model_that_is_not_there() -> None:
    """Nothing starts: neither for a file, nor for a name that the store does not have."""
    with pytest.raises(SettingsError, match=r"there is no file nowhere/m\.gguf"):
        settings_of(Given({}, [{"model": "nowhere/m.gguf"}]))
    with pytest.raises(UnknownModelError):
        settings_of(Given({}, [{"model": "no-such-model"}]))


# The program ------------------------------------------------------------------------------------------------------------


def test_help_has_a_line_for_each_flag_and_imports_little() -> None:
    """Nothing of a server, and no library but the standard one, is needed to print it."""
    heavy = (
        "{'numpy', 'cffi', 'typer', 'rich', 'pydantic', 'fastapi', 'uvicorn', 'msgspec', 'jinja2', 'yaml', 'asyncio'}"
    )
    code = (
        f"import sys; from {MODULE}.__main__ import main; code = main(['--help']);"
        f"print(code, {heavy} & {{name.partition('.')[0] for name in sys.modules}})"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[-1] == "0 set()"
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    assert flags == [*(f"--{field.name}" for field in FIELDS), "--config_file"]


def test_an_error_is_a_line_and_a_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong usage is 2, and a model that is not there 1."""
    for name in (*BY_NAME, "config_file"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert main([]) == 2
    assert main(["--model", "no-such-model"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("llama_cpp.server: error: there is no model: give it with --model")
    assert "unknown model 'no-such-model'" in second


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[Served]:
    """A server that is started as llama-cpp-python's."""
    flags = [
        "--model",
        str(smollm2_path),
        "--model_alias",
        "smol",
        "--chat_format",
        "chatml",
        "--seed",
        "7",
        "--n_ctx=1024",
    ]
    environment = {"HOST": "127.0.0.1", "PORT": "0", "ROOT_PATH": "/llm", "API_KEY": "secret-key"}
    with serving(*flags, module=MODULE, environment=environment) as served:
        yield served


def test_a_server_answers(server: Served) -> None:
    """Conversations, prompts, vectors and the list of models, under the alias and under any other name."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret-key") as client:
        assert next(iter(client.models.list())).id == "smol"
        messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
        for name in ("smol", "gpt-3.5-turbo"):
            reply = client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=16)
            assert "Paris" in str(reply.choices[0].message.content)
            assert reply.model == name
        text = client.completions.create(
            model="any", prompt="The capital of France is", temperature=0, max_tokens=4, extra_body={"unknown": 1}
        )
        assert "Paris" in text.choices[0].text
        assert len(client.embeddings.create(model="any", input="Hello").data[0].embedding) == 576
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="any", input="Hello", dimensions=8)


def test_a_server_takes_its_settings(server: Served) -> None:
    """Each request has ``n_ctx`` positions, the seed is that of requests without one, and the key is asked for."""
    with server.client(headers={"Authorization": "Bearer secret-key"}) as client:
        assert client.get("/v1/models").json()["data"][0]["meta"]["n_ctx"] == 1024
        asked = {"prompt": "Once upon a time", "max_tokens": 8}
        texts = {client.post("/v1/completions", json=asked).json()["choices"][0]["text"] for _ in range(2)}
        assert len(texts) == 1
        assert client.post("/v1/completions", json={**asked, "seed": 8}).json()["choices"][0]["text"] not in texts
    with server.client() as client:
        assert client.post("/v1/completions", json=asked).status_code == 401
    assert any("root_path has no effect" in line for line in server.log)


def test_a_server_counts_tokens(server: Served) -> None:
    """Under llama-cpp-python's own paths, for any name of a model; the key is asked for."""
    asked = {"model": "any", "input": "<|im_start|>Hello, wörld"}
    paths = {"/extras/tokenize": asked, "/extras/tokenize/count": asked, "/extras/detokenize": {"tokens": [1]}}
    with server.client(headers={"Authorization": "Bearer secret-key"}) as client:
        tokens = client.post("/extras/tokenize", json=asked).json()["tokens"]
        assert client.post("/extras/tokenize/count", json=asked).json() == {"count": len(tokens)}
        assert client.post("/extras/detokenize", json={"tokens": tokens}).json() == {"text": "Hello, wörld"}
    with server.client() as client:
        assert {client.post(path, json=body).status_code for path, body in paths.items()} == {401}
