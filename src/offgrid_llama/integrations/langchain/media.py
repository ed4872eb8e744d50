"""LangChain's blocks of pictures and sound, of which there are three kinds, as an Engine takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offgrid_llama.errors import MediaError
from offgrid_llama.integrations.contents import media_part
from offgrid_llama.media.data_url import from_base64, from_data_url

__all__ = ["MEDIA", "media_of"]

MEDIA = ("image", "image_url", "audio", "input_audio")
"""The kinds of blocks with a picture or a sound."""


def media_of(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a block as a part of a message.

    OpenAI's blocks are taken as they are. LangChain's own have the file in base64 as "base64", or before version 1 as "data"
    beside the "source_type" "base64"; Anthropic's have it in a "source".

    Raises ValueError for one without a file, such as one that names it by a URL: a model fetches none.
    """
    kind = block["type"]
    if kind in ("image_url", "input_audio"):
        return {"type": kind, kind: block.get(kind)}
    source = block.get("source")
    data = block.get("base64") or block.get("data") or (source.get("data") if isinstance(source, Mapping) else None)
    url = block.get("url")
    if isinstance(url, str) and url[:5].lower() == "data:":
        data = url
    if not isinstance(data, str):
        raise ValueError(f"{where} must have its file in base64: a model of this process fetches none")
    try:
        return media_part(kind, from_data_url(data) if data == url else from_base64(data))
    except MediaError as error:
        raise ValueError(f"{where}: {error}") from error
