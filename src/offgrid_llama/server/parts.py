"""Parts: the parts of a running server, as its routes use them, and what a request holds of them."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from .admission import Admission
from .background import Background
from .batches.batches import Batches
from .body_bytes import BodyBytes
from .kept_streams import KeptStreams
from .library import Library
from .metrics import Metrics
from .security import HELD
from .settings import Settings
from .stored_responses.stored_chats import StoredChats
from .stored_responses.stored_responses import StoredResponses
from .supervision.supervisor import Supervisor

__all__ = ["Parts", "admit", "parts_of"]


@dataclass(frozen=True)
class Parts:
    """The parts of one server, as its routes use them."""

    settings: Settings
    supervisor: Supervisor
    admission: Admission
    body_bytes: BodyBytes
    metrics: Metrics
    stored: StoredResponses
    chats: StoredChats
    background: Background
    batches: Batches | None
    library: Library
    streams: KeptStreams


def parts_of(request: Request) -> Parts:
    """Return the parts of the server that a request came to."""
    parts: Parts = request.app.state.server
    return parts


def admit(request: Request, model: str, n: int = 1) -> None:
    """Count a request until its answer is sent. The arguments and the errors are those of ``Admission.request``."""
    held = request.scope[HELD]
    held.enter_context(parts_of(request).admission.request(request.scope["key"], model, n))
