"""Inspector: what the files of models say, read by a process of its own, and kept until the files change."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from offgrid_llama import start, store
from offgrid_llama.errors import StoreError
from offgrid_llama.server.settings import ModelSettings
from offgrid_llama.worker.frames import Facts, FactsOf

from .launch import worker_environment
from .specs import projector_file, template_text

__all__ = ["Inspector"]

_logger = logging.getLogger("offgrid_llama.server")

START_SECONDS, FILE_SECONDS = 30.0, 10.0
"""Time for the process to start, and for each header that it reads."""
MAX_KNOWN = 1024
"""Files whose facts are kept, at most; there are more where files change again and again."""


@dataclass(frozen=True)
class _File:
    """A model's first file as it is now, the chat template to use instead of its own, and its projector."""

    path: str
    n_bytes: int
    modified: int
    template: str | None
    projector: str | None


class Inspector:
    """Tells the Facts of models. A file is read once, also where that fails."""

    def __init__(self) -> None:
        self._known: dict[_File, Facts | None] = {}
        self._reading = asyncio.Lock()

    async def facts(self, models: Sequence[ModelSettings]) -> list[Facts | None]:
        """Return the Facts of models; None for one whose file is not there, or is no model."""
        files = await asyncio.to_thread(lambda: [_file_of(model) for model in models])
        wanted = dict.fromkeys(file for file in files if file is not None)
        async with self._reading:
            if len(self._known) > MAX_KNOWN:
                self._known.clear()
            while unknown := [file for file in wanted if file not in self._known]:
                found = await asyncio.to_thread(_read, unknown)
                # The process has ended with the first file of which it tells nothing.
                self._known |= zip(unknown, [*found, None], strict=False)
            return [None if file is None else self._known[file] for file in files]


def _file_of(model: ModelSettings) -> _File | None:
    with suppress(StoreError, OSError):
        path = store.resolve(model.model or model.name, download=False)
        template = None if model.template is None else template_text(model.template)
        stat = path.stat()
        projector = None if model.projector is None else str(projector_file(model, download="never"))
        return _File(str(path), stat.st_size, stat.st_mtime_ns, template, projector)
    return None


def _read(files: Sequence[_File]) -> list[Facts | None]:
    """Return what a process tells of files, in their order; of fewer of them where it ends early."""
    asked = msgspec.json.encode([FactsOf(file.path, file.template, file.projector) for file in files])
    try:
        told = subprocess.run(
            start.command("offgrid_llama.worker.facts"), input=asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=worker_environment(), timeout=START_SECONDS + FILE_SECONDS * len(files), check=False,
        ).stdout  # fmt: skip
    except subprocess.TimeoutExpired as late:
        told = late.output or b""
    found = [_told(line, file) for line, file in zip(told.splitlines(), files, strict=False)]
    if len(found) < len(files):
        _logger.error("the header of %s cannot be read", files[len(found)].path)
    return found


def _told(line: bytes, file: _File) -> Facts | None:
    try:
        told = msgspec.json.decode(line, type=Facts | str)
    except msgspec.DecodeError:
        told = "its process has ended"
    if isinstance(told, str):
        _logger.warning("%s is no model that can be described: %s", file.path, told)
        return None
    return told
