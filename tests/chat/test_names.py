"""chat/__init__.py: names that have changed work for one release more."""

from __future__ import annotations

import pytest

import offgrid_llama.chat
from offgrid_llama.chat import PromptPart


def test_part_is_prompt_part() -> None:
    """The old name warns at the line of its use."""
    with pytest.warns(DeprecationWarning, match="is now PromptPart") as caught:
        assert offgrid_llama.chat.Part is PromptPart
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="has no attribute 'Parts'"):
        _ = offgrid_llama.chat.Parts
