"""``template=``: a ChatTemplate, the name of a template, or Jinja text, read in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offgrid_llama.errors import ChatTemplateError

from .template import ChatTemplate

if TYPE_CHECKING:
    from offgrid_llama.model.model import Model

__all__ = ["BUILT_IN", "DEFAULT", "TOOL_USE", "has_template", "name_for", "read_template"]

DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of a model's templates: the one without a name, and the one for conversations with tools."""

BUILT_IN = {
    "chatml": """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""
}
"""Templates that any model can be given by name."""

_JINJA = ("{{", "{%", "{#")
_FILE_ENDINGS = (".jinja", ".jinja2", ".j2", ".txt")
_KEY = "tokenizer.chat_template"


def name_for(model: Model, template: ChatTemplate | str | None, *, tools: bool) -> ChatTemplate | str | None:
    """Return the template to use: as given, or else the model's own for conversations with tools, where it has one.

    Where that is all that it has, it is for conversations without tools, too.
    """
    if template is None and f"{_KEY}.{TOOL_USE}" in model.metadata and (tools or _KEY not in model.metadata):
        return TOOL_USE
    given: object = template
    if given is not None and not isinstance(given, (str, ChatTemplate)):
        hint = ": pass its text, path.read_text()" if hasattr(given, "read_text") else ""
        raise TypeError(f"template must be a ChatTemplate, a name or Jinja text, not {type(given).__name__}{hint}")
    return template


def has_template(model: Model) -> bool:
    """Whether a model has a template that is used where none is named."""
    return _KEY in model.metadata or name_for(model, None, tools=False) is not None


def read_template(model: Model, template: ChatTemplate | str | None) -> ChatTemplate:
    """Return the ChatTemplate that is meant, with the model's BOS and EOS.

    Args:
        model: the model.
        template: a ChatTemplate, as it is; None or "default" for the model's default; the name of one of the model's
            templates, or of ``BUILT_IN``; or Jinja text.

    Raises ChatTemplateError where there is none of this name, or it does not compile; TypeError for anything else.
    """
    if isinstance(template, ChatTemplate):
        return template
    own = names(model)
    if template is None:
        template = DEFAULT
    if template == DEFAULT and DEFAULT not in own[1:] and (_KEY in model.metadata or not own):
        return ChatTemplate.of(model)
    if template in own:
        return ChatTemplate.of(model, name=template)
    if template in BUILT_IN:
        return ChatTemplate.of(model, BUILT_IN[template], name=template)
    if any(mark in template for mark in _JINJA):
        return ChatTemplate.of(model, template)
    if template.endswith(_FILE_ENDINGS):
        raise ChatTemplateError(
            f"template {_short(template)!r} looks like a file: pass its text, Path(...).read_text()"
        )
    known = ", ".join(map(repr, own)) or "none"
    raise ChatTemplateError(
        f"{model.handle.name} has no chat template {_short(template)!r}; of its own it has {known}. template may also be "
        f"{' or '.join(map(repr, BUILT_IN))}, Jinja text, or a ChatTemplate"
    )


def names(model: Model) -> list[str]:
    """Return the names of a model's templates, the default one first."""
    own = [DEFAULT] if _KEY in model.metadata else []
    return own + sorted(key.removeprefix(f"{_KEY}.") for key in model.metadata if key.startswith(f"{_KEY}."))


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."
