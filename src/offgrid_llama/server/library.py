"""Library: the models of the store that clients pull, copy and delete."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from offgrid_llama import store
from offgrid_llama.errors import StoreError, UnknownModelError

from .admission import Admission
from .api_error import ApiError, stopping
from .downloads import Download, DownloadCancelledError, Downloads
from .model_events import ModelEvent
from .setting_checks import MODEL_NAME
from .settings import ModelSettings, Settings
from .supervision.served_model import ServedModel
from .supervision.supervisor import Supervisor

__all__ = ["Library"]

_HUB_PLACES = ("hf.co/", "huggingface.co/")
_SETTING = "manage_models"


class Library:
    """Pulls, copies and deletes models, if the server's settings allow it.

    Args:
        settings: of the server.
        supervisor: offers the models.
        admission: counts their requests.

    Attributes:
        downloads: those under way.
    """

    def __init__(self, settings: Settings, supervisor: Supervisor, admission: Admission) -> None:
        self._is_allowed = settings.manage_models
        self._supervisor = supervisor
        self._events = supervisor.events
        self._admission = admission
        self._added: set[ServedModel] = set()
        self.downloads = Downloads(supervisor.events, admission, self._offer)

    def offer_cached(self) -> None:
        """Offer the models of the store's cache, if clients may manage models."""
        if self._is_allowed:
            with suppress(StoreError, OSError):
                for name in store.cached():
                    self._offer(name.removeprefix("hf:").partition("@")[0], name)

    async def reload(self) -> None:
        """Offer what the store's cache has by now, and no longer what was added and is gone, if clients may manage models.

        Of a model that is gone, running requests may end.
        """
        self.offer_cached()
        gone = [model for model in self._added if model.fetching is None and _file_name(model) is None]
        self._added.difference_update(gone)
        for model in gone:
            self._events.publish(ModelEvent(model.name, "model_remove"))
        await asyncio.gather(*(self._supervisor.remove(model) for model in gone))

    def check_allowed(self, what: str) -> None:
        """Raise ApiError unless clients may manage models."""
        if not self._is_allowed:
            message = (
                f"this server does not let clients {what} models: its setting {_SETTING} allows that "
                f"({_SETTING} = true in its file of settings, or OFFGRID_LLAMA_{_SETTING.upper()}=1)"
            )
            raise ApiError(403, message, code="not_allowed")

    async def pull(self, name: str) -> AsyncGenerator[dict[str, Any], None]:
        """Download a model, unless the cache has it, and offer it. Yields Ollama's reports. Raises ApiError.

        The download ends when the iteration is left, unless others want it, too.
        """
        offered, known_as = name.partition("@")[0], _store_name(name)
        yield {"status": "pulling manifest"}
        reports = _Reports(known_as)
        with self._events.heard(offered) as events, self.downloads.held(offered, known_as) as download:
            while not download.is_over and not events.is_over:
                for event in await events.next():
                    if event.kind == "download_progress" and (report := reports.next(download)) is not None:
                        yield report
            if not download.is_over:
                raise stopping()
            if isinstance(download.error, UnknownModelError):
                raise ApiError(404, download.error.message, code="model_not_found", param="model")
            if isinstance(download.error, (StoreError, OSError, DownloadCancelledError)):
                raise ApiError(500, f"{name:.140} cannot be pulled: {download.error}", code="not_pulled")
            if download.error is not None:
                raise download.error
        yield {"status": "success"}

    def download(self, name: str) -> None:
        """Start to download a model, which is offered then. Raises ApiError for one that is here, and for an unknown one."""
        offered, known_as = name.partition("@")[0], _store_name(name)
        try:
            store.entry(known_as)
        except UnknownModelError as error:
            raise ApiError(400, error.message, code="model_not_found", param="model") from error
        if not MODEL_NAME.fullmatch(offered):
            raise ApiError(400, f"the name {offered!r:.140} is invalid", code="invalid_value", param="model")
        there = self._supervisor.names.find(offered)
        if (there is not None and _file_name(there) is not None) or self.downloads.find(offered) is not None:
            message = f"the model {offered!r:.140} is here already, or on its way"
            raise ApiError(400, message, code="model_exists", param="model")
        self.downloads.begin(offered, known_as)

    async def close(self) -> None:
        """Cancel all downloads."""
        await self.downloads.close()

    def cancel(self, name: str) -> bool:
        """Cancel the download that was asked for under a name; return whether there was one."""
        return self.downloads.cancel(name.partition("@")[0])

    def _offer(self, name: str, known_as: str) -> None:
        """Offer a model of the store under a name, unless there is one of this name."""
        if self._supervisor.names.find(name) is None and MODEL_NAME.fullmatch(name):
            self._add(ModelSettings(name, model=known_as))

    def _add(self, settings: ModelSettings) -> None:
        self._added.add(self._supervisor.add(settings))
        self._admission.offer(settings)
        self._events.reload()

    def can_delete(self, model: ServedModel) -> bool:
        """Return whether clients may delete a model: the server allows it, and it is none of the settings."""
        return self._is_allowed and model in self._added

    def copy(self, source: ServedModel, name: str) -> None:
        """Offer a model under a further name, as a model of its own. Raises ApiError."""
        if not MODEL_NAME.fullmatch(name):
            raise ApiError(400, f"destination {name!r:.140} is invalid", code="invalid_value", param="destination")
        if self._supervisor.names.find(name) is not None:
            raise ApiError(400, f"there is a model {name!r:.140} already", code="invalid_value", param="destination")
        self._add(replace(source.settings, name=name, model=source.settings.model or source.name, aliases=()))

    async def delete(self, model: ServedModel) -> None:
        """Offer a model no longer, and delete its file if no other model has the same. Raises ApiError."""
        if model not in self._added:
            message = f"{model.name} is a model of the server's settings; it is removed there"
            raise ApiError(403, message, code="not_allowed", param="model")
        self._added.remove(model)
        await self._supervisor.remove(model)
        self._events.publish(ModelEvent(model.name, "model_remove"))
        file = _file_name(model)
        if file is not None and all(_file_name(other) != file for other in self._supervisor.models.values()):
            try:
                await asyncio.to_thread(store.remove, model.settings.model or model.name)
            except (StoreError, OSError) as error:
                raise ApiError(500, f"{model.name} cannot be deleted: {error}", code="not_deleted") from error


class _Reports:
    """The reports of a download, in Ollama's form.

    Args:
        name: the store's.
    """

    def __init__(self, name: str) -> None:
        self._digest = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        self._told: tuple[int, int | None] | None = None

    def next(self, download: Download) -> dict[str, Any] | None:
        """Return how far it is, if that has changed since the last report."""
        now = (download.done, download.total)
        if now == self._told:
            return None
        self._told = now
        found = {"status": f"pulling {self._digest[7:19]}", "digest": self._digest, "completed": download.done}
        return found if download.total is None else {**found, "total": download.total}


def _store_name(name: str) -> str:
    """Return the store's name of a model, for one of Ollama's."""
    for place in _HUB_PLACES:
        if name.lower().startswith(place):
            return f"hf:{name[len(place) :]}"
    return name[: -len(":latest")] if name.lower().endswith(":latest") else name


def _file_name(model: ServedModel) -> str | None:
    """Return the path of a model's file; None where it is not there."""
    with suppress(StoreError, OSError):
        return str(store.resolve(model.settings.model or model.name, download=False))
    return None
