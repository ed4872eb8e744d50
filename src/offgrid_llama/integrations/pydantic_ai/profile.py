"""What our models can do, as a profile of Pydantic AI says it: a TypedDict since its version 2, a dataclass before."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic_ai.profiles import ModelProfile

__all__ = ["profile_of"]

_USUAL: Mapping[str, Any] = {
    "supports_tools": True,
    "supports_json_schema_output": True,
    "supports_json_object_output": True,
    "native_output_requires_schema_in_instructions": True,  # a grammar does not tell the model
    "supports_inline_system_prompts": True,  # the engine fits them to the template
    "supports_thinking": True,  # no effect on a template without reasoning
    "supports_image_input": False,
    "supports_document_input": False,
    "supports_audio_file_input": False,
    "supports_video_input": False,
}
"""The values that differ from Pydantic AI's own. Earlier versions do not have all of them."""


def profile_of(context_window: int | None, change: Any) -> Any:
    """Return a profile, or a function that makes one, as ``Model`` takes it.

    Args:
        context_window: the most tokens of one request, prompt and answer together; None is unknown.
        change: a profile with what differs from the usual one, or a function that makes one, as ``Model`` takes it; or None.
    """
    values = {**_USUAL, "context_window": context_window}
    usual = ModelProfile(**{name: value for name, value in values.items() if name in ModelProfile.__annotations__})
    return partial(_made, usual, change) if callable(change) else _changed(usual, change)


def _made(usual: Any, make: Any, given: Any) -> Any:
    """Return what a user's function makes: of the profile so far, or, before version 2, of a model's name."""
    return make({**given, **usual}) if isinstance(usual, dict) else _changed(usual, make(given))


def _changed(usual: Any, change: Any) -> Any:
    if change is None:
        return usual
    return {**usual, **change} if isinstance(usual, dict) else usual.update(change)
