"""Both kinds of KV cache, for tests of each."""

from __future__ import annotations

import pytest

BOTH = pytest.mark.parametrize("unified", [False, True], ids=["separate", "unified"])
