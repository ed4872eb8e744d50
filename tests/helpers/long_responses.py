"""A response in the background that does not end by itself within a test."""

from __future__ import annotations

from typing import Any

from helpers.serving import MODEL

ENDS = ("0", "2")
"""The tokens with which SmolLM2 ends an answer."""
LONG: Any = {
    "model": MODEL, "input": "Tell a long story about a harbour.", "max_output_tokens": 6000, "background": True,
    "extra_body": {"logit_bias": dict.fromkeys(ENDS, -100)},
}  # fmt: skip
