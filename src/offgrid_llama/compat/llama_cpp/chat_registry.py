"""The chat handlers of a process, by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

__all__ = [
    "LlamaChatCompletionHandler", "LlamaChatCompletionHandlerNotFoundException", "LlamaChatCompletionHandlerRegistry",
    "get_chat_completion_handler", "register_chat_completion_handler",
]  # fmt: skip

_Handler = TypeVar("_Handler", bound="LlamaChatCompletionHandler")


class LlamaChatCompletionHandler(Protocol):
    """A function that answers a conversation: it returns a chat completion, or its chunks where ``stream`` is True."""

    def __call__(self, *, llama: Any, messages: Any, **kwargs: Any) -> Any:
        """Answer. The keywords are those of ``Llama.create_chat_completion``; unknown ones are for the formatter."""
        ...


class LlamaChatCompletionHandlerNotFoundException(Exception):  # noqa: N818 - their name
    """There is no chat handler of that name."""


class LlamaChatCompletionHandlerRegistry:
    """The chat handlers of the process. All instances are one."""

    _instance: LlamaChatCompletionHandlerRegistry | None = None
    _chat_handlers: ClassVar[dict[str, LlamaChatCompletionHandler]] = {}

    def __new__(cls) -> LlamaChatCompletionHandlerRegistry:  # noqa: D102 - the class says it
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def register_chat_completion_handler(
        self, name: str, chat_handler: LlamaChatCompletionHandler, overwrite: bool = False
    ) -> None:
        """Give a handler a name. Raises ValueError where another one has it, without ``overwrite``."""
        if not overwrite and name in self._chat_handlers:
            raise ValueError(f"there is a chat handler {name!r} already; overwrite=True takes its name")
        self._chat_handlers[name] = chat_handler

    def unregister_chat_handler(self, name: str) -> None:
        """Forget a handler. Raises ValueError where none has the name."""
        if name not in self._chat_handlers:
            raise ValueError(f"there is no chat handler {name!r}")
        del self._chat_handlers[name]

    def get_chat_completion_handler_by_name(self, name: str) -> LlamaChatCompletionHandler:
        """Return a handler. Raises LlamaChatCompletionHandlerNotFoundException, which lists the known names."""
        if name not in self._chat_handlers:
            names = ", ".join(self._chat_handlers)
            raise LlamaChatCompletionHandlerNotFoundException(f"there is no chat handler {name!r}, but {names}")
        return self._chat_handlers[name]


def get_chat_completion_handler(name: str) -> LlamaChatCompletionHandler:
    """Return the chat handler of a name. Raises LlamaChatCompletionHandlerNotFoundException."""
    return LlamaChatCompletionHandlerRegistry().get_chat_completion_handler_by_name(name)


def register_chat_completion_handler(name: str) -> Callable[[_Handler], _Handler]:
    """Return a decorator that gives a chat handler its name."""

    def decorator(handler: _Handler) -> _Handler:
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return handler

    return decorator
