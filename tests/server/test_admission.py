"""Limits of the number of requests."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from helpers.keys import KEYS
from offgrid_llama.server.admission import Admission
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.settings import ModelSettings, Settings


def refused(admission: Admission, key: str = "a", model: str = "m", n: int = 1) -> ApiError:
    with pytest.raises(ApiError) as found, admission.request(key, model, n):
        pass
    return found.value


def test_how_many() -> None:
    """One key cannot take all the room; a request that ends makes room; a server that stops takes no request."""
    admission = Admission(Settings(max_queue=4, api_keys=KEYS))
    first, second, third = (admission.request(key, "m") for key in ("a", "a", "b"))
    with first, second:
        error = refused(admission)
        assert error.status == 429
        assert int(error.headers["Retry-After"]) >= 1
        with third, admission.request("c", "m"):
            assert refused(admission, "d").status == 503
    assert admission.n == 0
    admission.stopping = True
    assert refused(admission).code == "stopping"


def test_what_finds_a_free_sequence_does_not_wait() -> None:
    """With four sequences and a queue of one, five requests come in together; those of another model do not count."""
    admission = Admission(Settings(max_queue=1, models=[ModelSettings("m", n_parallel=4), ModelSettings("other")]))
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(admission.request("", "m"))
        assert refused(admission).status == 503
        for _ in range(8):
            stack.enter_context(admission.request("", "other"))
        assert refused(admission, model="other").status == 503
    assert admission.n == 0


def test_a_request_counts_by_its_completions() -> None:
    """A request of many prompts takes the room of as many; one that can never fit is an error of the client."""
    settings = Settings(max_queue=20, api_keys=KEYS, models=[ModelSettings("m", n_parallel=4)])
    admission = Admission(settings)
    assert (refused(admission, n=13).status, refused(admission, n=13).code) == (400, "too_many_completions")
    with admission.request("a", "m", 12):
        assert admission.n == 12
        assert refused(admission).status == 429
        with admission.request("b", "m", 12):
            assert refused(admission, "c").status == 503
    with admission.request("a", "m", 12):
        pass
