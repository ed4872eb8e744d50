"""Child processes that may die, as the tests start them."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class RunChild(Protocol):
    """Type of the ``run_child`` fixture."""

    def __call__(
        self, source: str, *args: str | os.PathLike[str], timeout: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``source`` with ``args`` as ``sys.argv[1:]``; nothing is asserted about how it ends."""
