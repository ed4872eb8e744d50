"""Errors as clients get them."""

from __future__ import annotations

import pytest

from offgrid_llama.server.api_error import ApiError, without_folders


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("GGUFError: /srv/a/bad.gguf is damaged", "GGUFError: bad.gguf is damaged"),
        ("the model file '/srv/a b/x.gguf' does not exist", "the model file 'a b/x.gguf' does not exist"),
        (r"C:\Users\me\x.gguf is damaged", "x.gguf is damaged"), ("/x.gguf and (/a/y.gguf)", "/x.gguf and (y.gguf)"),
        ("hf:a/b/c.gguf, a/b/c.gguf, 1/2", "hf:a/b/c.gguf, a/b/c.gguf, 1/2"), ("https://a.example/b/c", "https://a.example/b/c"),
    ],
)  # fmt: skip
def test_folders(message: str, told: str) -> None:
    """Files of this machine keep their names, and no folders; what is no path stays as it is, and so does the rest."""
    error = ApiError(503, message, code="model_not_loaded", param="model", headers={"Retry-After": "5"})
    found = without_folders(error)
    assert found.message == told
    assert (found.status, found.code, found.param, found.headers) == (503, "model_not_loaded", "model", error.headers)
