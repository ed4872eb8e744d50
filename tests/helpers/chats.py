"""A question, a template that thinks, and answers that are given beforehand."""

from __future__ import annotations

import json
from typing import Any

import offgrid_llama as og

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
ASKED = [{"role": "user", "content": "What is the capital of France?"}]
THINKING = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if open_thought %}<think>
{% endif %}{% endif %}"""


def said(text: str) -> og.Grammar:
    """Return a grammar that lets the model say this."""
    return og.Grammar.gbnf(f"root ::= {json.dumps(text)}")
