"""What the components of LlamaIndex have in common: a model, which copies share, and which they are written down with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from llama_index.core.schema import BaseComponent
from pydantic import ConfigDict, field_serializer, field_validator, model_validator

from offgrid_llama.engine.engine import Engine
from offgrid_llama.integrations.asking import checked, name_of

__all__ = ["OfModel"]

_SAYS_NOTHING = {
    "api_base", "api_key", "base_url", "class_name", "default_headers", "max_retries", "request_timeout", "timeout",
}  # fmt: skip
"""Arguments that models of services have in common, and the class's name that LlamaIndex writes down with a component."""


class OfModel(BaseComponent):  # type: ignore[misc]  # LlamaIndex is not there for mypy
    """A component with a model of this process.

    ``to_dict``, ``to_json`` and pickle write the name or path of the model, from which another process makes it again; a
    copy by ``copy`` or ``deepcopy`` has the same object.

    Attributes:
        model: the name or path of a model, or an object of the class's kind.
    """

    model: Any

    _kind: ClassVar[type] = Engine
    """What ``model`` may be besides a name or path."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex writes it down."""
        return cls.__name__

    @model_validator(mode="before")
    @classmethod
    def _without_what_says_nothing(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if key not in _SAYS_NOTHING}

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: Any) -> Any:
        return checked(model, cls._kind)

    @field_serializer("model")
    def _written_model(self, model: Any) -> str:
        return name_of(model)

    def __getstate__(self) -> dict[str, Any]:
        named = self.model_copy(update={"model": name_of(self.model)})
        found: dict[str, Any] = super(OfModel, named).__getstate__()
        return found

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Any:
        known = {} if memo is None else memo
        known[id(self.model)] = self.model
        return super().__deepcopy__(known)
