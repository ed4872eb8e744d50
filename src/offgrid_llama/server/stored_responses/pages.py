"""Pages: lists as OpenAI's clients walk through them, page by page (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import dropwhile, islice
from typing import Any

from offgrid_llama.server.api_error import ApiError

__all__ = ["page_of"]


def page_of(items: Iterable[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """Return the page of a list.

    Args:
        items: of the whole list, each with its "id". No more of them are made than the page needs.
        after: the id of the last item of the page before; None is the first page.
        limit: items of the page, at most.

    Raises ApiError where no item has the id ``after``.
    """
    found = iter(items)
    if after is not None:
        found = dropwhile(lambda item: item["id"] != after, found)
        if next(found, None) is None:
            raise ApiError(400, f"after: there is no item {after!r}", code="invalid_value", param="after")
    page = list(islice(found, limit))
    ids = [item["id"] for item in page]
    return {
        "object": "list", "data": page, "first_id": ids[0] if ids else "", "last_id": ids[-1] if ids else "",
        "has_more": next(found, None) is not None,
    }  # fmt: skip
