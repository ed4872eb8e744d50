"""The chat formats of texts as templates: the same prompts, for any conversation of theirs."""

from __future__ import annotations

from itertools import product

import pytest

import offgrid_llama as og
from offgrid_llama.compat.llama_cpp.jinja_formats import jinja_format
from offgrid_llama.compat.llama_cpp.text_formats import TEXT_FORMATS

SAID = {"system": 'Be "brief".\nAlways. {x}', "user": " What's 2+2? ", "assistant": "4\n"}


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_the_same_prompts(name: str) -> None:
    """With and without a system message, with several turns, and with an empty message."""
    template, stop = jinja_format(name)
    compiled = og.ChatTemplate(template)
    user, assistant = ("User", "Assistant") if name == "open-orca" else ("user", "assistant")
    for system, n, empty in product((False, True), range(1, 6), (False, True)):
        messages = [{"role": "system", "content": SAID["system"]}] * system
        for at in range(n):
            role = (user, assistant)[at % 2]
            messages.append({"role": role, "content": "" if empty and at == n - 1 else SAID[role.lower()]})
        theirs = TEXT_FORMATS[name](messages=messages)
        assert compiled.render(messages, add_generation_prompt=True) == theirs.prompt, (system, n, empty)
        assert list(stop) == ([theirs.stop] if isinstance(theirs.stop, str) else theirs.stop or [])
