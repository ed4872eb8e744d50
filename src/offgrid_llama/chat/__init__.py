"""Chat: conversations to prompts, and a model's text to messages."""

from __future__ import annotations

from typing import Any

from .template.template import ChatTemplate, PromptPart
from .tools.tool import Tool, ToolCall

__all__ = ["ChatTemplate", "PromptPart", "Tool", "ToolCall"]


def __getattr__(name: str) -> Any:
    if name == "Part":
        import warnings

        warnings.warn("offgrid_llama.chat.Part is now PromptPart", DeprecationWarning, stacklevel=2)
        return PromptPart
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
