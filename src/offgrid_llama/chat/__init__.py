"""Chat: conversations to prompts."""

from offgrid_llama.chat.template import ChatTemplate, Part

__all__ = ["ChatTemplate", "Part"]
