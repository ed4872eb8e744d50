"""A server with two keys, of which one asks for much: the other has its turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.keys import KEYS
from helpers.serving import Served, serving, wait_until

LIKELY = {str(token): 30.0 for token in range(7, 33)}
"""A bias with which the tiny model goes on to ``max_tokens``."""


@pytest.fixture(scope="module")
def shared(coder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of a tiny model for two keys."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("\n".join(KEYS))
    with serving(f"coder={coder}", "--n-parallel", "2", "--api-key-file", str(keys), ready=False) as served:
        wait_until(lambda: httpx.get(f"{served.url}/health", headers=of(0)).status_code == 200, 60)
        yield served


def of(key: int) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[key]}"}


def post(served: Served, key: int, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body, headers=of(key), timeout=120)


def n_requests(served: Served) -> int:
    found = httpx.get(f"{served.url}/v1/models", headers=of(0), timeout=10).json()["data"][0]
    return int(found["requests"])


def test_many_prompts_of_one_key_do_not_hold_up_another(shared: Served) -> None:
    """While many prompts of one key wait, five requests of another are answered one after the other."""
    many = {"prompt": ["ab"] * 150, "max_tokens": 4000, "logit_bias": LIKELY, "stream": True}
    with httpx.stream("POST", f"{shared.url}/v1/completions", json=many, headers=of(0), timeout=120) as much:
        parts = much.iter_raw()  # which ends its request as soon as nothing refers to it
        next(parts)
        for _ in range(5):
            assert post(shared, 1, "/v1/completions", prompt="abc", max_tokens=4, logit_bias=LIKELY).status_code == 200
        wait_until(lambda: n_requests(shared) == 1)  # the many still wait
    many |= {"max_tokens": 2, "stream": False}
    assert len(post(shared, 0, "/v1/completions", **many).json()["choices"]) == 150


def test_a_request_that_can_never_fit(shared: Served) -> None:
    """More prompts than a key's share of the queue are refused as the client's error, not for later."""
    for body in ({"prompt": ["a"] * 514}, {"prompt": ["a"] * 100, "n": 6}):
        refused = post(shared, 0, "/v1/completions", max_tokens=1, **body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_completions")
