"""ChatFormats: the chat templates that conversations with a model use, each with what was found out about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .chat_format import ChatFormat
from .template.choice import name_for, read_template

if TYPE_CHECKING:
    from offgrid_llama.model.model import Model

    from .template.template import ChatTemplate

__all__ = ["ChatFormats"]

MAX_CHAT_FORMATS = 64
"""The most templates that are kept."""


class ChatFormats:
    """The ChatFormats of one model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[ChatTemplate | str | None, ChatFormat] = {}

    def of(self, template: ChatTemplate | str | None = None, *, tools: bool = False) -> ChatFormat:
        """Return the ChatFormat of a template, which is computed once.

        Args:
            template: as ``read_template`` takes it.
            tools: whether the conversation has tools. Without a ``template``, the model's "tool_use" is used then.

        Raises as ``read_template`` does.
        """
        wanted = name_for(self._model, template, tools=tools)
        known = self._known.get(wanted)
        if known is None:
            made = ChatFormat(read_template(self._model, wanted), self._model)
            if len(self._known) >= MAX_CHAT_FORMATS:
                self._known.clear()
            known = self._known[wanted] = made
        return known
