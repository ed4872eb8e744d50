"""Chat templates that llama-server knows by name, as Jinja; and texts that it takes for templates."""

from __future__ import annotations

import json

from .exits import UsageError

__all__ = ["template_text"]

_LOOP = "{%- for message in messages -%}"
_END = "{%- endfor -%}"
_BY_NAME = {
    "chatml": (
        _LOOP + "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}" + _END
        + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    ),
    "llama3": (
        _LOOP + "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim"
        " + '<|eot_id|>' }}" + _END
        + "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
    ),
    "command-r": (
        _LOOP + "{%- if message.role == 'system' -%}{%- set name = 'SYSTEM' -%}{%- elif message.role == 'user' -%}"
        "{%- set name = 'USER' -%}{%- else -%}{%- set name = 'CHATBOT' -%}{%- endif -%}"
        "{{ '<|START_OF_TURN_TOKEN|><|' + name + '_TOKEN|>' + message.content | trim + '<|END_OF_TURN_TOKEN|>' }}" + _END
        + "{%- if add_generation_prompt -%}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif -%}"
    ),
    "phi3": (
        _LOOP + "{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}" + _END
        + "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
    ),
    "gemma": (
        _LOOP + "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n'"
        " + message.content | trim + '<end_of_turn>\n' }}" + _END
        + "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
    ),
    "zephyr": (
        _LOOP + "{{ '<|' + message.role + '|>\n' + message.content + '<|endoftext|>\n' }}" + _END
        + "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
    ),
}  # fmt: skip
_MARKS = ("{{", "{%", "{#")
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._")


def template_text(given: str) -> str:
    """Return the Jinja text of what ``--chat-template`` names, or is.

    Raises UsageError for a name of llama-server's that this server has no template for.
    """
    if given in _BY_NAME:
        return _BY_NAME[given]
    if any(mark in given for mark in _MARKS):
        return given
    if _NAME_CHARACTERS.issuperset(given):
        raise UsageError(f"--chat-template {given}: by name this server has {', '.join(_BY_NAME)}; or give a template")
    return "{{ " + json.dumps(given) + " }}"  # llama-server takes any text
