"""State: the parts of a running server."""

from __future__ import annotations

from dataclasses import dataclass

from .admission import Admission
from .metrics import Metrics
from .settings import Settings
from .supervisor import Supervisor

__all__ = ["State"]


@dataclass(frozen=True)
class State:
    """What the routes work with."""

    settings: Settings
    supervisor: Supervisor
    admission: Admission
    metrics: Metrics
