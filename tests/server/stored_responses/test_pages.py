"""Pages of a list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.stored_responses.pages import page_of


def items() -> Iterator[dict[str, Any]]:
    return ({"id": id_} for id_ in "abcd")


@pytest.mark.parametrize(
    ("after", "limit", "ids", "has_more"),
    [(None, 2, "ab", True), ("b", 2, "cd", False), ("b", 1, "c", True), ("d", 2, "", False), (None, 9, "abcd", False)],
)
def test_pages(after: str | None, limit: int, ids: str, has_more: bool) -> None:
    """Each begins behind the last item of the one before, and says whether there are more."""
    found = page_of(items(), after, limit)
    assert ("".join(item["id"] for item in found["data"]), found["has_more"]) == (ids, has_more)
    assert (found["first_id"], found["last_id"]) == (ids[:1], ids[-1:])


def test_an_item_that_is_not_there() -> None:
    """There is no page behind it."""
    with pytest.raises(ApiError, match="no item 'x'"):
        page_of(items(), "x", 1)
