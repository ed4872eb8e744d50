"""The formats in which models with pictures were trained, as Jinja.

In most, the pictures of a message come first, then its texts.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FORMATS", "PictureFormat"]


class PictureFormat(NamedTuple):
    """A format: a template, and the system message of conversations without one; None is none."""

    template: str
    system: str | None


_URL = "{{ part.image_url if part.image_url is string else part.image_url.url }}"


def _content(after_picture: str = "", before_text: str = "", after_text: str = "") -> str:
    """Return what writes the content of a message, a text or parts, with what belongs around each."""
    text = before_text + "{{ %s }}" + after_text
    return (
        "{% if message.content is string %}" + text % "message.content" + "{% elif message.content %}"
        "{% for part in message.content if part.type == 'image_url' %}" + _URL + after_picture + "{% endfor %}"
        "{% for part in message.content if part.type == 'text' %}" + text % "part.text" + "{% endfor %}{% endif %}"
    )  # fmt: skip


def _format(system: str | None, user: str, assistant: str, answer: str) -> str:
    """Return a format: what is written for each message of a role, and where the answer begins."""
    roles = {"system": system, "user": user, "assistant": assistant}
    cases = [
        "{% " + ("elif" if at else "if") + f" message.role == '{role}' %}}" + text
        for at, (role, text) in enumerate((role, text) for role, text in roles.items() if text is not None)
    ]
    turns = "{% for message in messages %}" + "".join(cases) + "{% endif %}{% endfor %}"
    return turns + "{% if add_generation_prompt %}" + answer + "{% endif %}"


def _with_heads(head: str, end: str, content: str) -> str:
    """Return a format in which each message stands between a head with its role and an end."""
    turns = "{% for message in messages %}" + head % "{{ message.role }}" + content + end + "{% endfor %}"
    return turns + "{% if add_generation_prompt %}" + head % "assistant" + "{% endif %}"


_SAID = "{{ message.content }}"
_IN_ORDER = (
    "{% if message.content is string %}" + _SAID + "{% elif message.content %}{% for part in message.content %}"
    "{% if part.type == 'image_url' %}" + _URL + "{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
)  # fmt: skip
_HEAD = "<|im_start|>%s\n"

_LLAVA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the human's questions."
)
_HELPFUL = "You are a helpful assistant."

FORMATS = {
    "llama-3-vision-alpha": PictureFormat(
        _with_heads("<|start_header_id|>%s<|end_header_id|>\n\n", "<|eot_id|>", _content()), None
    ),
    "llava-1-5": PictureFormat(
        _format(_SAID, "\nUSER: " + _content(), f"\nASSISTANT: {_SAID}", "\nASSISTANT: "), _LLAVA_SYSTEM
    ),
    "llava-1-6": PictureFormat(
        _format(_SAID, _content(after_picture="\n"), _SAID, "Answer:"), f"{_LLAVA_SYSTEM} "
    ),
    "minicpm-v-2.6": PictureFormat(_with_heads(_HEAD, "<|im_end|>\n", _content()), _HELPFUL),
    "moondream": PictureFormat(
        _format(
            None, _content(after_picture="\n\n", before_text="Question: ", after_text="\n\n"),
            f"Answer:{_SAID}\n\n", "Answer:",
        ),
        _LLAVA_SYSTEM,
    ),
    "nanollava": PictureFormat(_with_heads(_HEAD, "<|im_end|>", _content()), "Answer the question"),
    "obsidian": PictureFormat(
        _format(
            f"{_HEAD % 'system'}{_SAID}\n###\n", f"{_HEAD % 'user'}{_content()}###\n",
            f"{_HEAD % 'assistant'}{_SAID}###\n", _HEAD % "assistant",
        ),
        _LLAVA_SYSTEM,
    ),
    "qwen2.5-vl": PictureFormat(_with_heads(_HEAD, "<|im_end|>\n", _IN_ORDER), _HELPFUL),
}  # fmt: skip
"""The formats by llama-cpp-python's names for them."""
