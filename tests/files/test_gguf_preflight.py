"""The rules on GGUF headers: each refuses its hazard by itself, and lets through the values next to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.hazards import HAZARDS
from helpers.twin import write_gguf
from offgrid_llama.files.gguf_header import Overridden, Tensor, Value
from offgrid_llama.files.gguf_preflight import RULES, Header, Rule, check

NAMES = {rule.name: rule for rule in RULES}
MOE = {"expert_count": 8, "expert_used_count": 2}

# Hyperparameters of a llama by the rule that they break, and others that break none.
BROKEN: dict[str, list[dict[str, Any]]] = {
    "block_count": [{"block_count": 0}, {"block_count": 513}, {"block_count": 2**32 - 1}],
    "nextn_predict_layers": [{"nextn_predict_layers": 3}, {"nextn_predict_layers": -1}],
    "vocab_size": [{"vocab_size": 2**24 + 1}],
    "expert_count": [{"expert_count": 1025, "expert_used_count": 1}],
    "expert_used_count": [{"expert_used_count": 1}, MOE | {"expert_used_count": 9}, MOE | {"expert_used_count": 0}],
    "expert_group_count": [
        {"expert_group_count": 1}, MOE | {"expert_group_count": 8, "expert_group_used_count": 1},
        MOE | {"expert_group_count": 3, "expert_group_used_count": 1},
    ],
    "expert_group_used_count": [
        MOE | {"expert_group_count": 4}, MOE | {"expert_group_count": 4, "expert_group_used_count": 4},
    ],
    "attention.head_count": [{"attention.head_count": 2**16}, {"attention.head_count": [1, 2**16]}],
    "attention.head_count_kv": [{"attention.head_count_kv": 2**31 + 1}],
    "attention.key_length": [{"attention.key_length": 2**16}],
    "attention.value_length": [{"attention.value_length": 2**16}],
    "pooling_type": [{"pooling_type": 5}, {"pooling_type": 99}],
    "rope.scaling.type": [{"rope.scaling.type": "nonlinear"}, {"rope.scaling.type": ""}],
    "attention.sliding_window_pattern": [
        {"attention.sliding_window_pattern": 1}, {"attention.sliding_window_pattern": [0, 0]},
        {"attention.sliding_window": 8, "attention.sliding_window_pattern": 1},
    ],
}  # fmt: skip
SOUND: list[dict[str, Any]] = [
    {}, {"block_count": 1}, {"block_count": 512}, {"nextn_predict_layers": 2}, {"vocab_size": 2**24},
    {"expert_count": 1024, "expert_used_count": 1024}, MOE, MOE | {"expert_group_count": 1},
    MOE | {"expert_group_count": 4, "expert_group_used_count": 3},
    {"attention.head_count": 2**16 - 1}, {"attention.key_length": [0, 2**16 - 1]},
    {"pooling_type": 4}, {"pooling_type": 2**32 - 1}, {"rope.scaling.type": "yarn"}, {"rope.scaling.type": 5},
    {"attention.sliding_window_pattern": [0, 1]}, {"attention.sliding_window_pattern": 2}, {"wkv.head_size": 0},
    {"attention.sliding_window": 0, "attention.sliding_window_pattern": 1},
]  # fmt: skip


def llama(values: Mapping[str, Any], *tensors: tuple[str, str], repeated_token: int | None = None) -> Header:
    """Return the header of a llama of two layers with other hyperparameters, and tensors by name and type."""
    keys: dict[str, Value] = {"general.architecture": "llama", "llama.block_count": 2}
    keys |= {f"llama.{name}": value for name, value in values.items()}
    return with_keys(keys, *tensors, repeated_token=repeated_token)


def with_keys(keys: Mapping[str, Value], *tensors: tuple[str, str], repeated_token: int | None = None) -> Header:
    """Return a header of these keys."""
    table = [Tensor(name, kind, (32, 32), 4096, 4096) for name, kind in tensors]
    return Header(Overridden(keys, {}), table, repeated_token)


def broken(header: Header) -> list[str]:
    """Return the names of the rules that a header breaks."""
    return [rule.name for rule in RULES if rule.offence(header)]


@pytest.mark.parametrize(
    ("name", "values"), [(name, values) for name, rows in BROKEN.items() for values in rows], ids=str
)
def test_a_hyperparameter_out_of_its_range(name: str, values: dict[str, Any]) -> None:
    """It breaks the rule of its name and no other, and the error has the key, the value and the reason."""
    assert broken(llama(values)) == [name]
    with pytest.raises(og.GGUFError) as caught:
        check(Path("x.gguf"), llama(values))
    assert str(caught.value).startswith(f"x.gguf: llama.{name} = ")
    assert str(caught.value).endswith(f" is not possible. {NAMES[name].reason}")


@pytest.mark.parametrize("values", SOUND, ids=str)
def test_hyperparameters_within_their_ranges(values: dict[str, Any]) -> None:
    """Values at the edge of a range, and values of which llama.cpp makes no use, break no rule."""
    assert broken(llama(values)) == []


def test_a_file_that_is_no_model() -> None:
    """A header without any key breaks no rule: vocabularies and adapters have no layers."""
    assert broken(with_keys({})) == []


@pytest.mark.parametrize(
    ("architecture", "size", "sound"),
    [("rwkv6", 0, False), ("rwkv6", 7, True), ("rwkv7", 32, False), ("arwkv7", 128, True), ("mamba", 0, True)],
)
def test_heads_of_rwkv(architecture: str, size: int, sound: bool) -> None:
    """A head of RWKV has a size, that of RWKV-7 a multiple of 64."""
    header = with_keys(
        {"general.architecture": architecture, f"{architecture}.block_count": 1, f"{architecture}.wkv.head_size": size}
    )
    assert broken(header) == ([] if sound else ["wkv.head_size"])


@pytest.mark.parametrize(
    ("name", "tensor", "kind"),
    [
        ("weight types", "blk.0.ffn_gate.weight", "i32"),
        ("weight types", "output.weight", "q8_1"),
        ("norm types", "output_norm.weight", "f16"),
        ("norm types", "blk.0.attn_q.bias", "bf16"),
        ("", "output.weight", "q4_K"),
        ("", "output_norm.weight", "f32"),
        ("", "d2t", "i64"),
    ],
)
def test_types_of_tensors(name: str, tensor: str, kind: str) -> None:
    """Weights have a type that ggml multiplies by, norms and biases are f32; tables of ids are integers."""
    assert broken(llama({}, ("token_embd.weight", "f16"), (tensor, kind))) == ([name] if name else [])


def test_vocabularies() -> None:
    """Two tokens of one text break a rule, and so do tokens for bytes in a WordPiece vocabulary."""
    assert broken(llama({}, repeated_token=7)) == ["repeated token"]
    with pytest.raises(og.GGUFError, match="token 7 of tokenizer"):
        check(Path("x.gguf"), llama({}, repeated_token=7))
    kinds: dict[str, Value] = {"tokenizer.ggml.token_type": [1, 6]}
    assert broken(with_keys({"tokenizer.ggml.model": "bert", **kinds})) == ["byte token of bert"]
    assert broken(with_keys({"tokenizer.ggml.model": "llama", **kinds})) == []


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_epsilons(value: float) -> None:
    """An epsilon of a norm is finite and not negative."""
    assert broken(llama({"attention.layer_norm_rms_epsilon": value})) == ["epsilon"]
    assert broken(llama({"attention.layer_norm_rms_epsilon": 0.0})) == []


def test_repeated_tokens_of_a_file(tmp_path: Path) -> None:
    """The tokens of a file are compared; a list that is none of strings has no text."""
    keys: dict[str, Any] = {"general.architecture": "x", "tokenizer.ggml.tokens": ["a", "b", "", "", "b"]}
    write_gguf(tmp_path / "twice.gguf", keys, {})
    with og.GGUF(tmp_path / "twice.gguf") as file, pytest.raises(og.GGUFError, match="token 4 of tokenizer"):
        file.check()
    for tokens in (["a", "b"], [1, 1], "a"):
        write_gguf(tmp_path / "once.gguf", keys | {"tokenizer.ggml.tokens": tokens}, {})
        with og.GGUF(tmp_path / "once.gguf") as file:
            file.check()


def test_overrides_are_checked_in_place_of_the_file(tmp_path: Path) -> None:
    """The value that a load takes is the one that a rule looks at."""
    write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama", "llama.block_count": 0}, {})
    with og.GGUF(tmp_path / "x.gguf") as file:
        with pytest.raises(og.GGUFError, match="block_count = 0"):
            file.check()
        file.check({"llama.block_count": 1})
        with pytest.raises(og.GGUFError, match=r"rope\.scaling\.type = x"):
            file.check({"llama.block_count": 1, "llama.rope.scaling.type": "x"})


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_can_be_understood(rule: Rule) -> None:
    """A rule has a name of its own and a reason that is a sentence."""
    assert sum(each.name == rule.name for each in RULES) == 1
    assert rule.reason.endswith(".")
    assert rule.reason.startswith(("llama.cpp ", "ggml "))
    assert len(rule.reason) <= 100


def test_hazards_name_their_rules() -> None:
    """A row of the table of hazards that a rule stands against has the rule's name, and its error is the rule's."""
    rows = [hazard for section in HAZARDS.values() for hazard in section if hazard.rule]
    assert len(rows) >= 9
    for hazard in rows:
        assert hazard.rule in NAMES, hazard.row
        assert [kind for _, kind, _ in hazard.ours] == ["GGUFError"], hazard.row
