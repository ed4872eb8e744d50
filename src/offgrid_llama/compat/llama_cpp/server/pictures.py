"""Models that see: their formats, as templates of the server."""

from __future__ import annotations

import json

from offgrid_llama.compat.llama_cpp.picture_formats import FORMATS

__all__ = ["PICTURE_FORMATS", "picture_template"]

PICTURE_FORMATS = (*FORMATS, "mtmd")
"""Chat formats that need a projector; mtmd is the model's own template."""


def picture_template(name: str) -> str | None:
    """Return a format as a template, with its system message where a conversation has none; None is the model's own."""
    found = FORMATS.get(name)
    if found is None:
        return None
    if not found.system:
        return found.template
    return (
        "{% if messages and messages[0].role != 'system' %}"
        f"{{% set messages = [{{'role': 'system', 'content': {json.dumps(found.system)}}}] + messages %}}{{% endif %}}"
        f"{found.template}"
    )
