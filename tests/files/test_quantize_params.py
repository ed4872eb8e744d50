"""QuantizeParams: what it takes, what it refuses, and the struct that it becomes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from offgrid_llama._capi import lib
from offgrid_llama.files.quantize_params import FTYPES, TENSOR_TYPES, QuantizeParams, tensor_type


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ftype": "Q4_K_X"}, ValueError, "ftype must be one of F32, F16, "),
        ({"ftype": None}, TypeError, "ftype must be one of"),
        ({"n_threads": 0}, ValueError, "n_threads"),
        ({"n_threads": 1.5}, TypeError, "n_threads"),
        ({"output_tensor_type": "i8"}, ValueError, "output_tensor_type must be one of f32, "),
        ({"token_embedding_type": 8}, TypeError, "token_embedding_type must be one of"),
        ({"allow_requantize": 1}, TypeError, "allow_requantize must be True or False, not int"),
        ({"quantize_output_tensor": None}, TypeError, "quantize_output_tensor must be True or False"),
        ({"only_copy": "yes"}, TypeError, "only_copy must be True or False"),
        ({"pure": 0}, TypeError, "pure must be True or False"),
        ({"keep_split": []}, TypeError, "keep_split must be True or False"),
        ({"tensor_types": {"(": "q8_0"}}, ValueError, "no regular expression"),
        ({"tensor_types": {"x": "q8_1"}}, ValueError, r"tensor_types\['x'\] must be one of"),
        ({"max_buf_size": -1}, ValueError, "max_buf_size"),
        ({"max_buf_size": 2**62 + 1}, ValueError, "max_buf_size"),
    ],
)
def test_each_parameter_is_checked(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """A wrong value is an error that names the parameter."""
    with pytest.raises(error, match=message):
        QuantizeParams(**arguments)


def test_the_defaults() -> None:
    """The defaults are llama.h's, but for the mixture; 0 bytes of a buffer stand for its 8 GiB."""
    c = lib.llama_model_quantize_default_params()
    params = QuantizeParams()
    assert params.switches() == {name: getattr(c, name) for name in params.switches()}
    assert params.ftype_number == lib.LLAMA_FTYPE_MOSTLY_Q4_K_M
    assert (params.max_buf_size, c.max_buf_size) == (0, 8 * 2**30)
    assert params.types_of_tables() == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.pure = True  # type: ignore[misc]


def test_names_in_any_case() -> None:
    """Upper and lower case are alike in names of mixtures and of types."""
    assert QuantizeParams("q4_k_m").ftype_number == FTYPES["Q4_K_M"]
    assert tensor_type("x", "Q4_K") == TENSOR_TYPES["q4_k"] == lib.GGML_TYPE_Q4_K
    params = QuantizeParams(token_embedding_type="Q8_0")
    assert params.types_of_tables() == {"token_embedding_type": "Q8_0"}
