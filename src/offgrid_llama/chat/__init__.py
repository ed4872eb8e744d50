"""Chat: conversations to prompts, and what models write to messages."""

from offgrid_llama.chat.template import ChatTemplate, Part
from offgrid_llama.chat.tool import Tool, ToolCall

__all__ = ["ChatTemplate", "Part", "Tool", "ToolCall"]
