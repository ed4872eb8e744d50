"""Where settings come from, as in llama-cpp-python: a command line or a settings file, and the environment for the rest.

The environment's ``HOST`` and ``PORT`` come before all else, and its ``CONFIG_FILE`` before the flag. With a settings file
no other flag counts.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from offgrid_llama.server import SettingsError

from .fields import BY_NAME, FIELDS, KINDS, Field

__all__ = ["Given", "read"]

_LISTS = ("numbers", "texts")
_FIRST = ("HOST", "PORT")
"""Variables that come before flags and files."""


@dataclass(frozen=True)
class Given:
    """What was set, by the names of the fields. What is not here has its default.

    Attributes:
        server: fields of the server.
        models: fields of each model; the first is the one that is loaded at the start.
        ignored: flags that do not count because there is a settings file.
    """

    server: Mapping[str, Any]
    models: Sequence[Mapping[str, Any]]
    ignored: Sequence[str] = ()


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Given:
    """Return what a command line, the environment and the settings file set.

    Raises SettingsError for a field that is not known, and for a value that it cannot have; and OSError for a file that
    cannot be read.
    """
    words = _words(arguments)
    file = environment.get("CONFIG_FILE", words.pop("config_file", None))
    found = _read_environment(environment)
    if file:
        server, models = _read_file(Path(file), environment)
        ignored = [f"--{name}" for name in words]
    else:
        flags = {name: _value(f"--{name}", BY_NAME[name], value) for name, value in words.items()}
        server, models, ignored = _part(flags, of_server=True), [_part(flags, of_server=False)], []
    server = {**_part(found, of_server=True), **server}
    server |= {name.lower(): found[name.lower()] for name in _FIRST if name in environment}
    models = [{**_part(found, of_server=False), **model} for model in models]
    if not models:
        raise SettingsError(f"{file}: models: there is none")
    for model in models:
        if "model" not in model:
            raise SettingsError("there is no model: give it with --model, the variable MODEL or the settings file")
    return Given(server, models, ignored)


def _part(values: Mapping[str, Any], *, of_server: bool) -> dict[str, Any]:
    """Return the values of the server's fields, or those of a model's."""
    return {name: value for name, value in values.items() if BY_NAME[name].of_server == of_server}


class _Parser(argparse.ArgumentParser):
    """Reads the forms that flags have, and leaves the values as they are."""

    def error(self, message: str) -> NoReturn:
        """Raise SettingsError instead of ending the process."""
        raise SettingsError(message)


def _words(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the words after each flag that is given; of a flag that is given twice the last ones."""
    parser = _Parser(add_help=False)
    for field in FIELDS:
        parser.add_argument(f"--{field.name}", nargs="*" if field.kind in _LISTS else None)
    parser.add_argument("--config_file")
    return {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields that variables set. Their names are in upper case, lower case or a mixture."""
    return {
        field.name: _value(variable, field, text)
        for variable, text in environment.items()
        if (field := BY_NAME.get(variable.lower())) is not None
    }


def _read_file(file: Path, environment: Mapping[str, str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the server's fields and each model's."""
    content = _fields(str(file), _content(file))
    models = content.pop("models", None)
    if models is None:
        models = _parsed_json("MODELS", environment.get("MODELS", "[]"))
    if not isinstance(models, list):
        raise SettingsError(f"{file}: models: it must be a list of objects")
    server = _checked(f"{file}: ", content, of_server=True)
    places = (f"{file}: models[{i}]" for i in range(len(models)))
    return server, [
        _checked(f"{place}.", _fields(place, each), of_server=False)
        for place, each in zip(places, models, strict=False)
    ]


def _content(file: Path) -> object:
    """Return what a file of JSON has, or one of YAML, which has ``.yaml`` or ``.yml`` at the end of its name."""
    text = file.read_bytes()
    if file.suffix not in (".yaml", ".yml"):
        return _parsed_json(str(file), text)
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise SettingsError(
            f"{file}: YAML needs the package yaml: pip install pyyaml, or write the file in JSON"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{file}: it is no YAML: {' '.join(str(error).split())}") from error


def _parsed_json(where: str, text: str | bytes) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{where}: it is no JSON: {error}") from error


def _fields(where: str, content: object) -> dict[str, Any]:
    """Return an object's values by names in lower case."""
    if not isinstance(content, dict):
        raise SettingsError(f"{where}: it must be an object")
    return {str(name).lower(): value for name, value in content.items()}


def _checked(where: str, content: Mapping[str, Any], *, of_server: bool) -> dict[str, Any]:
    """Return the fields of an object that are set. A null is as if it were absent, where there is no default."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        field = BY_NAME.get(name)
        if field is None or field.of_server != of_server:
            raise SettingsError(f"{where}{name}: there is no such setting{_elsewhere(field)}")
        if value is not None or field.default is not None:
            found[name] = _value(f"{where}{name}", field, value)
    return found


def _elsewhere(field: Field | None) -> str:
    if field is None:
        return ""
    return " of a model; it is the server's" if field.of_server else " of the server; it is a model's, below models"


def _value(where: str, field: Field, value: object) -> Any:
    """Return the value of a field. An error has no text in it that may be a key."""
    try:
        found = KINDS[field.kind](value)
    except ValueError as error:
        shown = f" {value!r:.80}" if field.kind != "text" else ""
        raise SettingsError(f"{where}:{shown} cannot be used: {error}") from error
    if found == -1 and field.name in ("n_threads", "n_threads_batch"):
        return os.cpu_count() or 1
    if field.least is not None and found < field.least:
        raise SettingsError(f"{where}: {found} cannot be used: it must be at least {field.least}")
    return found
