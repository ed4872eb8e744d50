"""ModelEvents: what happens to models, told to all subscribers, none of which can hold it up.

The words are those of llama-server's ``/models/sse``: "model_status", "download_progress", "download_finished",
"download_failed", "model_remove", and "models_reload" of the model "*", which is a change of the list of models.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from .api_error import busy

__all__ = ["ALL_MODELS", "ModelEvent", "ModelEvents", "Subscription"]

ALL_MODELS = "*"
"""The model of an event that is about the list of models."""
MAX_SUBSCRIBERS = 256
"""Clients that subscribe at the same time, at most."""
MAX_WAITING_EVENTS = 256
"""Events that wait for one subscriber, at most. One that reads more slowly is dropped."""
RETRY_SECONDS = 30


@dataclass(frozen=True)
class ModelEvent:
    """An event in the life of a model.

    Attributes:
        model: its name.
        kind: one of the words above.
        data: of the event, or None.
        replaces: whether the event says anew what the last one of this kind has said, as progress does.
    """

    model: str
    kind: str
    data: Mapping[str, Any] | None = None
    replaces: bool = False

    @cached_property
    def as_bytes(self) -> bytes:
        """The event as one of a stream, written once for all subscribers."""
        told: dict[str, Any] = {"model": self.model, "event": self.kind}
        if self.data is not None:
            told["data"] = self.data
        return b"data: " + msgspec.json.encode(told) + b"\n\n"


class Subscription:
    """The events that wait for one subscriber.

    Args:
        model: whose events these are; None is all models.

    Attributes:
        is_over: whether no further event will come: the server stops, or too many have waited.
    """

    def __init__(self, model: str | None = None) -> None:
        self.is_over = False
        self._model = model
        self._waiting: list[ModelEvent] = []
        self._news = asyncio.Event()

    def put(self, event: ModelEvent) -> None:
        """Take an event. Progress takes the place of progress that waits, if it is the last that waits for its model."""
        if self.is_over or self._model not in (None, event.model):
            return
        at = next((i for i in reversed(range(len(self._waiting))) if self._waiting[i].model == event.model), None)
        if at is not None and event.replaces and self._waiting[at].replaces and self._waiting[at].kind == event.kind:
            self._waiting[at] = event
        elif len(self._waiting) < MAX_WAITING_EVENTS:
            self._waiting.append(event)
        else:
            self.is_over = True
        self._news.set()

    def end(self) -> None:
        """Take no further event."""
        self.is_over = True
        self._news.set()

    async def next(self, seconds: float | None = None) -> list[ModelEvent]:
        """Wait for events, and return all that wait: none after this time, and none when it is over."""
        if not self._waiting and not self.is_over:
            try:
                await asyncio.wait_for(self._news.wait(), seconds)
            except asyncio.TimeoutError:
                return []
        self._news.clear()
        waiting, self._waiting = self._waiting, []
        return waiting


class ModelEvents:
    """Gives each event to each subscriber.

    Args:
        share: of all subscriptions that one key may have.
    """

    def __init__(self, share: float = 1.0) -> None:
        self._max_of_key = max(1, int(share * MAX_SUBSCRIBERS))
        self._subscriptions: set[Subscription] = set()
        self._by_key: Counter[str] = Counter()
        self._is_closed = False

    def publish(self, event: ModelEvent) -> None:
        """Give an event to all subscribers."""
        for subscription in self._subscriptions:
            subscription.put(event)

    def status(self, model: str, data: Mapping[str, Any]) -> None:
        """Tell the status of a model. Progress replaces earlier progress."""
        self.publish(ModelEvent(model, "model_status", data, replaces="progress" in data))

    def reload(self) -> None:
        """Tell that the list of models has changed."""
        self.publish(ModelEvent(ALL_MODELS, "models_reload"))

    @contextmanager
    def subscribed(self, key: str) -> Iterator[Subscription]:
        """Give a client its subscription, until the block ends. Raises ApiError 429 or 503 where there are too many."""
        if self._by_key[key] >= self._max_of_key:
            raise busy(429, "this key has too many streams of events", "too_many_requests", RETRY_SECONDS)
        if sum(self._by_key.values()) >= MAX_SUBSCRIBERS:
            raise busy(503, "the server has too many streams of events", "server_full", RETRY_SECONDS)
        self._by_key[key] += 1
        try:
            with self.heard(None) as subscription:
                yield subscription
        finally:
            self._by_key[key] -= 1
            if not self._by_key[key]:
                del self._by_key[key]

    @contextmanager
    def heard(self, model: str | None) -> Iterator[Subscription]:
        """Give a part of the server the events of a model, or of all, until the block ends."""
        subscription = Subscription(model)
        if self._is_closed:
            subscription.end()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)

    def close(self) -> None:
        """End all subscriptions: the server stops."""
        self._is_closed = True
        for subscription in self._subscriptions:
            subscription.end()
