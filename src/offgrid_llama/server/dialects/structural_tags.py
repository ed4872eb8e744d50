"""Structural tags as vLLM has them: free text with parts between tags, each of which is JSON of a schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from offgrid_llama.server.strict import Strict, refused

__all__ = ["StructuralTags", "TagFields"]

MAX_TAGS = 128
Mark = Annotated[str, Field(max_length=1000)]
Triggers = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]],
    Field(min_length=1, max_length=MAX_TAGS, fail_fast=True),
]


class Structure(Strict):
    """A tag, with the schema of what is in it."""

    begin: Mark
    schema_: dict[str, Any] = Field(alias="schema")
    end: Mark

    def neutral(self) -> dict[str, Any]:
        """Return the tag as ``Grammar.structural_tags`` takes it."""
        return {"begin": self.begin, "schema": self.schema_, "end": self.end}


class JsonContent(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any]


class Tag(Strict):
    """A tag, with its content."""

    type: Literal["tag"] | None = None
    begin: Mark
    content: JsonContent
    end: Mark

    def neutral(self) -> dict[str, Any]:
        """Return the tag as ``Grammar.structural_tags`` takes it."""
        return {"begin": self.begin, "schema": self.content.json_schema, "end": self.end}


class TriggeredTags(Strict):
    """Free text, and tags where a trigger comes."""

    type: Literal["triggered_tags"]
    triggers: Triggers
    tags: Annotated[list[Tag], Field(min_length=1, max_length=MAX_TAGS, fail_fast=True)]
    at_least_one: bool | None = None
    stop_after_first: bool | None = None

    def neutral(self) -> dict[str, Any]:
        """Return the tags as ``Grammar.structural_tags`` takes them."""
        flags = {"at_least_one": self.at_least_one, "stop_after_first": self.stop_after_first}
        return {
            "structures": [tag.neutral() for tag in self.tags], "triggers": self.triggers,
            **{name: True for name, is_set in flags.items() if is_set},
        }  # fmt: skip


class TagFields(Strict):
    """The tags of a request, in one of two forms."""

    structures: Annotated[list[Structure], Field(min_length=1, max_length=MAX_TAGS, fail_fast=True)] | None = None
    triggers: Triggers | None = None
    format: TriggeredTags | None = None

    def tags(self) -> dict[str, Any] | None:
        """Return the tags as ``Grammar.structural_tags`` takes them, or None without any. Raises the error of a check."""
        if self.format is not None:
            if self.structures is not None or self.triggers is not None:
                raise refused("format", "not allowed together with structures and triggers")
            return self.format.neutral()
        if (self.structures is None) != (self.triggers is None):
            raise refused("triggers" if self.triggers is None else "structures", "structures and triggers go together")
        if self.structures is None:
            return None
        return {"structures": [each.neutral() for each in self.structures], "triggers": self.triggers}


class StructuralTags(TagFields):
    """The value of vLLM's ``structural_tag``."""

    type: Literal["structural_tag"]

    @model_validator(mode="after")
    def _check_tags(self) -> StructuralTags:
        if self.tags() is None:
            raise refused("structures", "required, with triggers; or give a format")
        return self
