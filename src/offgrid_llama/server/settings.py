"""Settings: what a server is told, by its caller, a TOML file and the environment; checked before anything starts."""

from __future__ import annotations

import dataclasses
import importlib
import ipaddress
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

__all__ = ["DEFAULT_PORT", "ModelSettings", "Settings", "SettingsError"]

DEFAULT_PORT = 11611
MODEL_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
ENVIRONMENT = "OFFGRID_LLAMA_"
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class SettingsError(ValueError):
    """A setting that is not possible; the message names it."""


def _seconds(default: float, what: str) -> Any:
    return field(default=default, metadata={"least": 0.001, "what": what})


def _number(default: int, what: str, least: int = 1) -> Any:
    return field(default=default, metadata={"least": least, "what": what})


@dataclass(frozen=True)
class ModelSettings:
    """A model that the server has.

    Attributes:
        name: what clients call it.
        model: a name of the store, or a path; None is ``name``.
        aliases: other names of it.
        template: a file with a chat template in place of the model's.
        n_ctx: positions of all requests together; None is 4,096 for each, or what the model was trained for.
        n_parallel: most requests that generate at once.
        n_threads: None is all cores.
        n_gpu_layers: None is as many as fit.
        draft: a small model that guesses, as ``model`` is named.
        loras: files of LoRA adapters that are in use, each with its scale.
        sampling: SamplingParams where a request says nothing.
        engine, load: further arguments of Engine and Model.
        preload: whether to load it at once, and again whenever its worker has died.
        keep: whether it stays, whatever else is asked for.
    """

    name: str
    model: str | None = None
    aliases: Sequence[str] = ()
    template: str | None = None
    n_ctx: int | None = None
    n_parallel: int = 8
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    draft: str | None = None
    loras: Mapping[str, float] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)
    preload: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        for name in (self.name, *self.aliases):
            if not MODEL_NAME.fullmatch(str(name)):
                raise SettingsError(f"models: the name {name!r} must be of letters, digits and ._:/- , 128 at most")
        if not 1 <= self.n_parallel <= 256:
            raise SettingsError(f"models.{self.name}: n_parallel must be from 1 to 256, not {self.n_parallel}")
        for path, scale in self.loras.items():
            if not _fits(scale, float) or not math.isfinite(scale):
                raise SettingsError(f"models.{self.name}: loras: the scale of {path} must be a number, not {scale!r}")


@dataclass(frozen=True)
class Settings:
    """What a server is told. In a TOML file the same names; in the environment each with ``OFFGRID_LLAMA_`` before it.

    Attributes:
        host, port: where it listens.
        models: what it has; the first is the one for requests that name none.
        api_keys: one of which each request must show, as ``Authorization: Bearer KEY``; none is no key.
        api_key_file: a file with one on each line.
        insecure: allow other addresses than this machine's without a key.
        allowed_hosts: what the Host header may be, besides this machine's names and ``host``; ``*`` is anything.
        cors_origins: origins of pages whose scripts may ask.
        memory_budget: most bytes of all workers together; 0 is three quarters of what the machine has.
        idle_seconds: a model that nobody has asked for so long leaves; 0 is never.
        max_queue: most requests that run or wait. max_queue_share: most of them of one key, as a share.
        max_body_bytes, max_header_bytes, max_json_depth: of a request.
        header_seconds, body_seconds, write_seconds: most time for a request's head, its body, and for a client to take
            what was written to it.
        load_seconds, worker_seconds: most time to load a model, and for a worker to give no sign of life.
        grace_seconds: most time for answers that are under way when the server is to stop.
        page: whether to serve the chat page at ``/``.
        log_format: "text" or "json".
    """

    host: str = "127.0.0.1"
    port: int = _number(DEFAULT_PORT, "a TCP port", 0)
    models: Sequence[ModelSettings] = ()
    api_keys: Sequence[str] = field(default=(), repr=False)
    api_key_file: str | None = None
    insecure: bool = False
    allowed_hosts: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    memory_budget: int = _number(0, "bytes", 0)
    idle_seconds: float = 0.0
    max_queue: int = _number(1024, "requests")
    max_queue_share: float = 0.5
    max_body_bytes: int = _number(8 * 2**20, "bytes", 1024)
    max_header_bytes: int = _number(16 * 2**10, "bytes", 1024)
    max_json_depth: int = _number(64, "levels")
    header_seconds: float = _seconds(10, "for a request's head")
    body_seconds: float = _seconds(30, "for a request's body")
    write_seconds: float = _seconds(30, "for a client to take what was written")
    load_seconds: float = _seconds(600, "to load a model")
    worker_seconds: float = _seconds(30, "without a sign of life")
    grace_seconds: float = _seconds(30, "to end what is under way")
    page: bool = True
    log_format: str = "text"

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value, least = getattr(self, each.name), each.metadata.get("least")
            if least is not None and value < least:
                raise SettingsError(
                    f"{each.name} must be a number ({each.metadata['what']}) from {least}, not {value!r}"
                )
        if self.port > 65535:
            raise SettingsError(f"port must be at most 65535, not {self.port}")
        if not 0 < self.max_queue_share <= 1:
            raise SettingsError(f"max_queue_share must be over 0, and 1 at most, not {self.max_queue_share}")
        if self.log_format not in ("text", "json"):
            raise SettingsError(f"log_format must be 'text' or 'json', not {self.log_format!r}")
        if self.idle_seconds < 0:
            raise SettingsError(f"idle_seconds must not be negative, as {self.idle_seconds} is")
        known: set[str] = set()
        for model in self.models:
            for name in (model.name, *model.aliases):
                if name in known:
                    raise SettingsError(f"models: two of them are called {name!r}")
                known.add(name)
        keys = [*self.api_keys, *_keys_of(self.api_key_file)]
        object.__setattr__(self, "api_keys", tuple(keys))
        if any(len(key) < 8 for key in keys):
            raise SettingsError("api_keys must have 8 characters at least")
        if not keys and not self.insecure and not _is_loopback(self.host):
            raise SettingsError(
                f"host: {self.host} can be reached from other machines, and there is no API key. Give one with "
                "--api-key-file or OFFGRID_LLAMA_API_KEYS, or say --insecure"
            )

    @property
    def hosts(self) -> frozenset[str]:
        """What the Host header may be, in small letters, without ports."""
        own = f"[{self.host}]" if ":" in self.host else self.host
        return frozenset(name.lower() for name in (*_LOOPBACK_NAMES, own, *self.allowed_hosts))

    @classmethod
    def load(
        cls,
        file: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        **given: Any,
    ) -> Settings:
        """Return what a TOML file says, with the environment and then ``given`` (but for those of None) in its place.

        Raises SettingsError that names what is wrong, and OSError for a file that cannot be read.
        """
        environment = os.environ if environment is None else environment
        said = _read_toml(file) if file is not None else {}
        unknown = set(said) - {each.name for each in dataclasses.fields(cls)}
        if unknown:
            raise SettingsError(f"{file}: there is no setting {', '.join(sorted(unknown))}")
        kinds = get_type_hints(cls)
        for each in dataclasses.fields(cls):
            text = environment.get(ENVIRONMENT + each.name.upper())
            if text is not None:
                said[each.name] = _of_text(each.name, kinds[each.name], text)
        said.update({name: value for name, value in given.items() if value is not None})
        models = [_model_of(model) for model in said.get("models", ())]
        made: Settings = _made(cls, {**said, "models": tuple(models)}, "settings")
        return made


def _made(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    kinds = get_type_hints(cls)
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            raise SettingsError(f"{where}: {name} is {value!r}, which is no {_plain(kinds[name])}")
    return cls(**values)


def _fits(value: object, kind: Any) -> bool:
    text = str(kind)
    if value is None:
        return "None" in text
    if kind is bool or isinstance(value, bool):
        return isinstance(value, bool) and "bool" in text
    if isinstance(value, str):
        return kind is str or text == "str | None"
    if isinstance(value, int):
        return kind in (int, float) or text == "int | None"
    if isinstance(value, float):
        return kind is float
    return "Mapping" in text if isinstance(value, Mapping) else "Sequence" in text


def _plain(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind)).replace("collections.abc.", "")


def _model_of(said: object) -> ModelSettings:
    if isinstance(said, ModelSettings):
        return said
    if isinstance(said, str):
        name, _, model = said.partition("=")
        if not model and (os.sep in name or name.endswith(".gguf")) and not name.startswith("hf:"):
            return ModelSettings(Path(name).name.removesuffix(".gguf"), model=name)
        return ModelSettings(name.removeprefix("hf:").split("@")[0], model=model or name)
    if not isinstance(said, Mapping) or not isinstance(said.get("name"), str):
        raise SettingsError("models: each must be a table with a name")
    unknown = set(said) - {each.name for each in dataclasses.fields(ModelSettings)}
    if unknown:
        raise SettingsError(f"models.{said['name']}: there is no setting {', '.join(sorted(unknown))}")
    return _made(ModelSettings, said, f"models.{said['name']}")  # type: ignore[no-any-return]


def _of_text(name: str, kind: Any, text: str) -> Any:
    """Return a variable of the environment as a setting; several are parted by commas."""
    if kind is bool:
        if text.lower() not in ("0", "1", "false", "true", "no", "yes"):
            raise SettingsError(f"{ENVIRONMENT}{name.upper()} must be 0 or 1, not {text!r}")
        return text.lower() in ("1", "true", "yes")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise SettingsError(f"{ENVIRONMENT}{name.upper()} must be a number, not {text!r}") from None
    if "Sequence" in str(kind):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _read_toml(file: str | os.PathLike[str]) -> dict[str, Any]:
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        found: dict[str, Any] = toml.loads(Path(file).read_text(encoding="utf-8"))
        return found
    except ValueError as error:  # of TOML, and of UTF-8
        raise SettingsError(f"{file}: {error}") from error


def _keys_of(file: str | None) -> list[str]:
    if file is None:
        return []
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"api_key_file: there is no key in {file}")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
