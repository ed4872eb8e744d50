"""Models as Anthropic's API describes and lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from offgrid_llama.server.api_error import ApiError

__all__ = ["model_info", "models_page"]

DEFAULT_LIMIT, MAX_LIMIT = 20, 1000
MAX_LIMIT_DIGITS = 4


def model_info(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model, given as the server describes it, in Anthropic's shape. Its limits are known once it is loaded."""
    n_ctx = model.get("meta", {}).get("n_ctx")
    created = datetime.fromtimestamp(model["created"], timezone.utc).isoformat().replace("+00:00", "Z")
    return {
        "type": "model", "id": model["id"], "display_name": model["id"], "created_at": created, "lifecycle": "active",
        "max_input_tokens": n_ctx, "max_tokens": n_ctx,
    }  # fmt: skip


def models_page(models: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Return a page of models.

    Args:
        models: all of them, as the server describes them.
        query: "limit", from 1 to 1000, 20 by default; "after_id" or "before_id", next to which the page is.

    Raises ApiError.
    """
    limit = _limit(query.get("limit"))
    ids = [model["id"] for model in models]
    begin, end = 0, len(models)
    if "after_id" in query:
        begin = _place(ids, query, "after_id") + 1
    if "before_id" in query:
        end = _place(ids, query, "before_id")
    backwards = "before_id" in query
    page = models[max(begin, end - limit) : end] if backwards else models[begin : min(end, begin + limit)]
    return {
        "data": [model_info(model) for model in page], "has_more": len(page) < end - begin,
        "first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None,
    }  # fmt: skip


def _limit(given: str | None) -> int:
    if given is None:
        return DEFAULT_LIMIT
    is_number = given.isascii() and given.isdigit() and len(given) <= MAX_LIMIT_DIGITS
    limit = int(given) if is_number else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise ApiError(
            400, f"limit: it must be from 1 to {MAX_LIMIT}, not {given!r:.40}", code="invalid_value", param="limit"
        )
    return limit


def _place(ids: Sequence[str], query: Mapping[str, str], param: str) -> int:
    if query[param] not in ids:
        raise ApiError(400, f"{param}: there is no model {query[param]!r:.130}", code="invalid_value", param=param)
    return ids.index(query[param])
