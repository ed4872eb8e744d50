"""Settings of the server, from its caller, the environment and a TOML file. They are checked before anything starts."""

from __future__ import annotations

import dataclasses
import importlib
import ipaddress
import logging
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from .llama_server import LlamaServer
from .log import KIND
from .preset_settings import PresetSettings, read_presets
from .setting_checks import SettingsError, check_known, check_loras, check_name, checked

__all__ = ["DEFAULT_PORT", "ModelSettings", "Settings", "SettingsError"]

DEFAULT_PORT = 11611
MAX_PORT = 65535
MAX_PARALLEL = 256
"""Requests that one model can generate for at the same time: llama.cpp's limit of sequences."""
MIN_KEY_CHARACTERS = 8
ENVIRONMENT = "OFFGRID_LLAMA_"
KEY_VARIABLES = (f"{ENVIRONMENT}API_KEYS", f"{ENVIRONMENT}API_KEY_FILE")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")
_logger = logging.getLogger("offgrid_llama.server")


def _at_least(least: float, default: float, unit: str) -> Any:
    return field(default=default, metadata={"least": least, "unit": unit})


def _seconds(default: float) -> Any:
    return _at_least(0.001, default, "seconds")


@dataclass(frozen=True)
class ModelSettings:
    """A model that the server offers.

    Attributes:
        name: the name that clients use.
        model: a name of the store, or a path; None is ``name``.
        aliases: further names that clients may use.
        template: a file with a chat template to use instead of the model's, or its text.
        stop: texts that end an answer to a conversation, besides those of a request.
        n_ctx: positions of all requests together; None is 4,096 for each, or what the model was trained for.
        n_parallel: requests that generate at the same time, up to 256.
        n_threads: CPU threads; None is all cores.
        n_gpu_layers: layers on the GPU; None is as many as fit.
        draft: a small model for speculative decoding, named as ``model`` is.
        projector: what sees, hears or speaks for the model (an mmproj), named as ``model`` is; "auto" is the one beside it.
        image_min_tokens, image_max_tokens: bounds for the tokens of a picture; None is what the projector's file says.
        voices: files of sounds to speak like, by the names that requests use; without them any name is the model's own.
        loras: files of LoRA adapters to use, each with its scale.
        matryoshka: whether the model was trained for vectors that are cut, which the ``dimensions`` of a request asks for:
            true for any number of values, or a list of the numbers.
        sampling: SamplingParams for requests that do not set them.
        engine: further arguments of Engine.
        load: further arguments of Model.
        preload: load the model when the server starts, instead of with its first request.
        keep: never unload the model for another one, or when it is idle.
    """

    name: str
    model: str | None = None
    aliases: Sequence[str] = ()
    template: str | None = None
    stop: Sequence[str] = ()
    n_ctx: int | None = None
    n_parallel: int = 8
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    draft: str | None = None
    projector: str | None = None
    image_min_tokens: int | None = None
    image_max_tokens: int | None = None
    voices: Mapping[str, str] = field(default_factory=dict)
    loras: Mapping[str, float] = field(default_factory=dict)
    matryoshka: bool | Sequence[int] = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)
    preload: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        for name in (self.name, *self.aliases):
            check_name(name, "models")
        if not 1 <= self.n_parallel <= MAX_PARALLEL:
            raise SettingsError(
                f"models.{self.name}: n_parallel must be from 1 to {MAX_PARALLEL}, not {self.n_parallel}"
            )
        if not isinstance(self.matryoshka, bool) and any(n < 1 for n in self.matryoshka):
            raise SettingsError(
                f"models.{self.name}: matryoshka must have numbers from 1 on, not {min(self.matryoshka)}"
            )
        if self.voices and self.projector is None:
            raise SettingsError(f"models.{self.name}: voices are for a model that speaks, with a projector")
        check_loras(self.loras, f"models.{self.name}")


@dataclass(frozen=True)
class Settings:
    """Settings of the server. A TOML file has the same names; the environment has ``OFFGRID_LLAMA_`` before each.

    Attributes:
        host: the address to listen on, or several with commas between them.
        port: the TCP port to listen on; 0 is any free one.
        models: the models that the server offers; requests that name none get the first.
        presets: further names of these models, with defaults of their own.
        api_keys: keys of which each request must show one, as ``Authorization: Bearer KEY``. Without keys none is needed.
        api_key_file: a file with further keys, one on each line.
        insecure: allow a ``host`` that other machines can reach, without a key.
        allowed_hosts: allowed values of the Host header, besides this machine's names and ``host``; ``*`` allows any.
        image_hosts: hosts of which pictures are fetched that requests name by URLs: names, ``*.example.org``, addresses.
        cors_origins: origins of web pages that may use the server, besides its own; ``*`` allows all.
        memory_budget: bytes that all workers together may take; 0 is three quarters of this machine's memory.
        idle_seconds: unload a model after this time without a request; 0 is never.
        max_queue: requests that wait at the same time, at most; what finds a free sequence of its model does not wait. A
            request counts by its prompts and its ``n``.
        max_queue_share: the share of them, and of ``max_held_body_bytes``, that one key may have.
        max_connections: connections that are open at the same time, at most, as far as the limit of open files allows.
        max_body_bytes: size of a request's body, at most.
        max_audio_bytes: size of a sound that is uploaded to be transcribed, at most.
        max_held_body_bytes: bytes of all bodies together, at most: of requests until they are answered, and of large answers
            until they are sent.
        max_header_bytes: size of a request's head, at most.
        max_json_depth: levels of a request's JSON, at most.
        header_seconds: time for a client to send a request's head.
        body_seconds: time for a client to send a request's body.
        write_seconds: time that an answer may wait for its client, and as long again for each MiB that it has taken.
        load_seconds: time for a worker to load its model.
        worker_seconds: time after which a worker that does not respond is killed and restarted.
        grace_seconds: time for running requests to end when the server stops.
        any_model: the first model answers requests that name a model which is not here, instead of 404.
        ignore_unknown: ignore parameters of requests that are not known, instead of 400.
        batch_dir: a folder for files that clients upload, and for the batches of their requests; None takes none.
        max_files_bytes: bytes of these files together, at most.
        responses_file: a file of SQLite for responses of ``/v1/responses``, which are then there after a restart; None keeps
            them in memory.
        max_responses: responses that are kept in memory, at most.
        max_responses_bytes: bytes of all responses, at most; 0 is 64 MiB in memory, and 16 GiB in a file.
        responses_days: how long responses are kept; 0 is forever.
        max_streams_bytes: bytes of all streams that clients can come back for, at most; 0 offers none.
        manage_models: offer all models of the store's cache, and let clients pull, copy and delete models by Ollama's API.
        page: serve the chat page at ``/``.
        log_format: "text" or "json".
        llama_server: how to answer in llama-server's manner; None is this server's own. No file or variable sets it.
    """

    host: str = "127.0.0.1"
    port: int = _at_least(0, DEFAULT_PORT, "a TCP port")
    models: Sequence[ModelSettings] = ()
    presets: Sequence[PresetSettings] = ()
    api_keys: Sequence[str] = field(default=(), repr=False)
    api_key_file: str | None = None
    insecure: bool = False
    allowed_hosts: Sequence[str] = ()
    image_hosts: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    memory_budget: int = _at_least(0, 0, "bytes")
    idle_seconds: float = _at_least(0, 0.0, "seconds")
    max_queue: int = _at_least(1, 1024, "requests")
    max_queue_share: float = 0.5
    max_connections: int = _at_least(1, 2048, "connections")
    max_body_bytes: int = _at_least(1024, 8 * 2**20, "bytes")
    max_audio_bytes: int = _at_least(1024, 25 * 2**20, "bytes")
    max_held_body_bytes: int = _at_least(1024, 64 * 2**20, "bytes")
    max_header_bytes: int = _at_least(1024, 16 * 2**10, "bytes")
    max_json_depth: int = _at_least(1, 64, "levels")
    header_seconds: float = _seconds(10)
    body_seconds: float = _seconds(30)
    write_seconds: float = _seconds(30)
    load_seconds: float = _seconds(600)
    worker_seconds: float = _seconds(30)
    grace_seconds: float = _seconds(30)
    any_model: bool = False
    ignore_unknown: bool = False
    batch_dir: str | None = None
    max_files_bytes: int = _at_least(1024, 2**30, "bytes")
    responses_file: str | None = None
    max_responses: int = _at_least(1, 4096, "responses")
    max_responses_bytes: int = _at_least(0, 0, "bytes")
    responses_days: float = _at_least(0, 30.0, "days")
    max_streams_bytes: int = _at_least(0, 64 * 2**20, "bytes")
    manage_models: bool = False
    page: bool = True
    log_format: str = "text"
    llama_server: LlamaServer | None = None

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check_names(self.models, self.presets)
        object.__setattr__(self, "models", tuple(_with_adapters(model, self.presets) for model in self.models))
        keys = [*self.api_keys, *_read_keys(self.api_key_file)]
        if any(len(key) < MIN_KEY_CHARACTERS for key in keys):
            raise SettingsError(f"api_keys: a key must have at least {MIN_KEY_CHARACTERS} characters")
        if not keys and not self.insecure and not _is_loopback(self.host):
            raise SettingsError(
                f"host: other machines can reach {self.host}, and there is no API key. Give one with --api-key-file or "
                f"{ENVIRONMENT}API_KEYS, or allow access without a key with --insecure"
            )
        object.__setattr__(self, "api_keys", tuple(keys))

    @property
    def share_of_one_key(self) -> float:
        """The share of the server's room that one key may have."""
        # Without keys, or with one, all requests come from the same client as far as the server knows.
        return self.max_queue_share if len(self.api_keys) > 1 else 1.0

    @property
    def hosts(self) -> frozenset[str]:
        """Allowed values of the Host header, in lower case, without ports."""
        own = [f"[{host}]" if ":" in host else host for host in self.host.split(",")]
        return frozenset(name.lower() for name in (*_LOOPBACK_NAMES, *own, *self.allowed_hosts))

    @classmethod
    def load(
        cls,
        file: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        **given: Any,
    ) -> Settings:
        """Return the settings of a TOML file, overridden by the environment, overridden by ``given``.

        Args:
            file: None is no file.
            environment: None is ``os.environ``.
            given: settings by name; one that is None counts as not given.

        Raises SettingsError that names the setting, and OSError for a file that cannot be read.
        """
        values = {} if file is None else _read_toml(file)
        check_known(cls, values, f"{file}: ")
        values |= _read_environment(os.environ if environment is None else environment)
        values |= {name: value for name, value in given.items() if value is not None}
        models = values.pop("models", ())
        if isinstance(models, str) or not isinstance(models, Sequence):
            raise SettingsError(f"models: expected a list, got `{type(models).__name__}`")
        presets = read_presets(values.pop("presets", ()))
        return checked(cls, values, "", models=tuple(_model(each) for each in models), presets=presets)


# Checks -----------------------------------------------------------------------------------------------------------------


def _check_ranges(settings: Settings) -> None:
    for each in dataclasses.fields(settings):
        value, least = getattr(settings, each.name), each.metadata.get("least")
        if least is not None and value < least:
            raise SettingsError(f"{each.name} must be at least {least} ({each.metadata['unit']}), not {value!r}")
    if settings.port > MAX_PORT:
        raise SettingsError(f"port must be at most {MAX_PORT}, not {settings.port}")
    if not 0 < settings.max_queue_share <= 1:
        raise SettingsError(f"max_queue_share must be over 0 and at most 1, not {settings.max_queue_share}")
    if settings.log_format not in ("text", "json"):
        raise SettingsError(f"log_format must be 'text' or 'json', not {settings.log_format!r}")


def _check_names(models: Sequence[ModelSettings], presets: Sequence[PresetSettings]) -> None:
    known: set[str] = set()
    for name in (name for model in models for name in (model.name, *model.aliases)):
        if name in known:
            raise SettingsError(f"models: two models have the name {name!r}")
        known.add(name)
    unknown = next((preset for preset in presets if preset.model not in known), None)
    if unknown is not None and models:  # without any, the command line adds one
        raise SettingsError(f"presets.{unknown.name}: there is no model {unknown.model!r}")
    for preset in presets:
        if preset.name in known:
            raise SettingsError(f"presets: the name {preset.name!r} is taken")
        known.add(preset.name)


def _with_adapters(model: ModelSettings, presets: Sequence[PresetSettings]) -> ModelSettings:
    """Return a model with the adapters of its presets, which its own requests do not use."""
    loras = dict(model.loras)
    for preset in presets:
        if preset.model in (model.name, *model.aliases):
            loras |= {path: 0.0 for path in preset.loras or {} if path not in loras}
    return dataclasses.replace(model, loras=loras)


def _is_loopback(hosts: str) -> bool:
    return all(_is_loopback_host(host.strip()) for host in hosts.split(","))


def _is_loopback_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


# Sources ----------------------------------------------------------------------------------------------------------------


def _read_toml(file: str | os.PathLike[str]) -> dict[str, Any]:
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        found: dict[str, Any] = toml.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML, and of UTF-8
        raise SettingsError(f"{file}: {error}") from error
    if found.get("api_keys"):
        _warn_of_readers(file)
    return found


def _warn_of_readers(file: str | os.PathLike[str]) -> None:
    """Warn of a file of keys that every user of this machine can read."""
    if os.stat(file).st_mode & stat.S_IROTH:
        message = f"{file} has keys, and every user of this machine can read it: chmod o-rwx {file}"
        _logger.warning("%s", message, extra={KIND: message})


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    for variable, text in environment.items():
        if variable.startswith(f"{ENVIRONMENT}API_KEY"):
            # An empty or misspelt one would leave the server open to all.
            if variable not in KEY_VARIABLES:
                raise SettingsError(f"there is no variable {variable}; it is {' or '.join(KEY_VARIABLES)}")
            if not text.strip(", \t\r\n"):
                raise SettingsError(f"{variable} is empty; unset it for a server without keys")
    return {
        name: _parsed(ENVIRONMENT + name.upper(), kind, environment[ENVIRONMENT + name.upper()])
        for name, kind in get_type_hints(Settings).items()
        if ENVIRONMENT + name.upper() in environment
    }


def _parsed(variable: str, kind: Any, text: str) -> Any:
    """Return a variable of the environment as a setting. Items of a list are separated by commas."""
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise SettingsError(f"{variable} must be 0 or 1, not {text!r}")
        return text.lower() in _TRUE
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise SettingsError(f"{variable} must be a number, not {text!r}") from None
    if get_origin(kind) is Sequence:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _model(given: object) -> ModelSettings:
    """Return the settings of a model: given as such, as a table, or as a word of the command line."""
    if isinstance(given, ModelSettings):
        return given
    if isinstance(given, str):
        return _model_of_word(given)
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise SettingsError("models: each model must be a table with a name")
    return checked(ModelSettings, given, f"models.{given['name']}: ")


def _model_of_word(word: str) -> ModelSettings:
    """Return a model that is given as a NAME of the store, as NAME=MODEL, or as a file."""
    name, _, model = word.partition("=")
    if model:
        return ModelSettings(name.removeprefix("hf:").split("@")[0], model=model)
    is_file = (os.sep in name or name.endswith(".gguf")) and not name.startswith("hf:")
    if is_file:
        return ModelSettings(Path(name).name.removesuffix(".gguf"), model=name)
    return ModelSettings(name.removeprefix("hf:").split("@")[0], model=name)


def _read_keys(file: str | None) -> list[str]:
    if file is None:
        return []
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"api_key_file: there is no key in {file}")
    _warn_of_readers(file)
    return keys
