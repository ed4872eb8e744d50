"""Enums: llama.h's own values, by name in any case."""

from __future__ import annotations

import re
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import get_args

import pytest

from offgrid_llama._capi import lib
from offgrid_llama.native import enums
from offgrid_llama.native.enums import member

ENUMS: dict[str, tuple[type[IntEnum | IntFlag], str]] = {
    "llama_split_mode": (enums.SplitMode, "LLAMA_SPLIT_MODE_"),
    "llama_load_mode": (enums.LoadMode, "LLAMA_LOAD_MODE_"),
    "llama_lazy_mode": (enums.LazyMode, "LLAMA_LAZY_MODE_"),
    "llama_rope_type": (enums.RopeType, "LLAMA_ROPE_TYPE_"),
    "llama_rope_scaling_type": (enums.RopeScaling, "LLAMA_ROPE_SCALING_TYPE_"),
    "llama_pooling_type": (enums.PoolingType, "LLAMA_POOLING_TYPE_"),
    "llama_attention_type": (enums.AttentionType, "LLAMA_ATTENTION_TYPE_"),
    "llama_flash_attn_type": (enums.FlashAttention, "LLAMA_FLASH_ATTN_TYPE_"),
    "llama_vocab_type": (enums.VocabType, "LLAMA_VOCAB_TYPE_"),
    "llama_token_attr": (enums.TokenAttr, "LLAMA_TOKEN_ATTR_"),
}
# Names for the end of a list, and for no flag at all, which a flag enum has by itself; RoPE's bounds are no kinds.
NO_MEMBERS = {"LLAMA_ROPE_SCALING_TYPE_MAX_VALUE", "LLAMA_TOKEN_ATTR_UNDEFINED"}


@pytest.mark.parametrize("name", ENUMS)
def test_enums_have_llama_hs_members(name: str, llama_cpp_dir: Path) -> None:
    """An enum has exactly the members of llama.h's, under the same names, with the compiler's values."""
    enum, prefix = ENUMS[name]
    header = re.sub(r"//[^\n]*", "", (llama_cpp_dir / "include" / "llama.h").read_text(encoding="utf-8"))
    match = re.search(rf"enum {name} {{(.*?)}}", header, re.DOTALL)
    assert match
    constants = set(re.findall(r"\bLLAMA_\w+(?=\s*(?:=|,|$))", match[1], re.MULTILINE)) - NO_MEMBERS
    assert {f"{prefix}{member}" for member in enum.__members__} == constants
    for key, value in enum.__members__.items():
        assert int(value) == getattr(lib, prefix + key)


def test_every_enum_is_tried() -> None:
    """The table above has every enum of the package."""
    there = {
        thing for thing in vars(enums).values() if isinstance(thing, type) and issubclass(thing, (IntEnum, IntFlag))
    }
    assert there - {IntEnum, IntFlag} == {enum for enum, _ in ENUMS.values()}


def test_members_by_name() -> None:
    """A member's name in any case stands for it; other values are refused with the list of names."""
    flash = enums.FlashAttention
    for value in ("enabled", "ENABLED", "Enabled", flash.ENABLED):
        assert member("flash_attn_type", value, flash) is flash.ENABLED
    with pytest.raises(ValueError, match=r"flash_attn_type must be one of 'auto', 'disabled', 'enabled', not 'on'"):
        member("flash_attn_type", "on", flash)
    for wrong in (1, None, True, b"auto", enums.PoolingType.CLS):
        with pytest.raises(TypeError, match="flash_attn_type"):
            member("flash_attn_type", wrong, flash)


NAMES = {
    enums.SplitMode: enums.SplitModeName, enums.LoadMode: enums.LoadModeName, enums.LazyMode: enums.LazyModeName,
    enums.RopeScaling: enums.RopeScalingName, enums.PoolingType: enums.PoolingName,
    enums.AttentionType: enums.AttentionName, enums.FlashAttention: enums.FlashAttentionName,
}  # fmt: skip


def test_names_for_type_checkers() -> None:
    """The Literal beside an enum has its members in lower case; KVType has the types of KV_TYPES."""
    for enum, names in NAMES.items():
        assert get_args(names) == tuple(key.lower() for key in enum.__members__)
    assert get_args(enums.KVType) == tuple(enums.KV_TYPES)
