"""The chat formats of texts as Jinja templates, which a server's models can have."""

from __future__ import annotations

import json

from . import text_formats
from .text_formats import SYSTEM, TEXT_FORMATS, TextFormat

__all__ = ["jinja_format"]

_TURNS = (
    "{%- for message in messages if message.role in roles -%}{{- roles[message.role] -}}"
    "{%- if message.content -%}{{- between -}}{{- message.content -}}{{- ends[loop.index0 % (ends | length)] -}}"
    "{%- else -%}{{- empty -}}{%- endif -%}{%- endfor -%}"
)
_SYSTEM = (
    "{%- for message in messages if message.role == 'system' -%}{%- if loop.first and message.content -%}"
    "{%- set found.system = message.content -%}{%- endif -%}{%- endfor -%}"
)
_LLAMA_2 = (
    "{%- set found = namespace(system='') -%}"
    + _SYSTEM
    + "{%- if found.system -%}{{- '[INST] <<SYS>>\\n' -}}{{- found.system -}}{{- '\\n<</SYS>> ' -}}"
    "{%- else -%}{{- ' ' -}}{%- endif -%}"
    "{%- for message in messages if message.role in ('user', 'assistant') -%}"
    "{%- if loop.first and found.system -%}{{- message.content -}}{{- ' ' -}}"
    "{%- else -%}{{- '<s>[INST]' if message.role == 'user' else '[/INST]' -}}"
    "{%- if message.content -%}{{- message.content -}}{{- '  ' if loop.index0 % 2 == 0 else ' </s>' -}}"
    "{%- else -%}{{- ' ' -}}{%- endif -%}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[/INST]' -}}{%- endif -%}"
)
_MISTRAL = (
    "{%- for message in messages -%}{%- if message.role == 'user' -%}{{- '[INST] ' -}}{{- message.content -}}"
    "{%- elif message.role == 'assistant' -%}{{- ' [/INST]' -}}{{- message.content -}}{{- '</s>' -}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- ' [/INST]' -}}{%- endif -%}"
)


def jinja_format(name: str) -> tuple[str, tuple[str, ...]]:
    """Return a format of TEXT_FORMATS as a template, and the texts that end an answer."""
    found = TEXT_FORMATS[name]
    if found is text_formats.format_llama2:
        return _LLAMA_2, ()
    if found is text_formats.format_mistral_instruct:
        return _MISTRAL, ("</s>",)
    if not isinstance(found, TextFormat):
        raise KeyError(name)
    return _template(found), () if found.stop is None else (found.stop,)


def _template(known: TextFormat) -> str:
    begin, has_system, rest = known.head.partition(SYSTEM)
    names = {"roles": dict(known.roles), "between": known.between, "ends": known.ends, "empty": known.empty}
    sets = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in names.items())
    head = _written(begin)
    if has_system:
        default = f"{{%- set found = namespace(system={json.dumps(known.default)}) -%}}"
        head = default + _SYSTEM + head + "{{- found.system -}}" + _written(rest)
    answer = known.roles[known.answers] + known.empty if known.answers else ""
    return sets + head + _TURNS + "{%- if add_generation_prompt -%}" + _written(answer + known.tail) + "{%- endif -%}"


def _written(text: str) -> str:
    return f"{{{{- {json.dumps(text)} -}}}}" if text else ""
