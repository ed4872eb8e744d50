"""Settings of presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offgrid_llama.server import ModelSettings, PresetSettings, Settings, SettingsError

TOML = """
[[models]]
name = "a"
aliases = ["b"]
loras = { "x.gguf" = 0.5 }

[[presets]]
name = "poet"
model = "a"
template = "{{ messages }}"
system = "Rhyme."
sampling = { temperature = 1.2, logit_bias = { "5" = -1 } }
loras = { "y.gguf" = 1, "x.gguf" = 0.25 }

[[presets]]
name = "plain"
model = "b"
"""


def test_a_file(tmp_path: Path) -> None:
    """Presets are tables. Their model has their adapters behind its own, and does not use them by itself."""
    file = tmp_path / "settings.toml"
    file.write_text(TOML, encoding="utf-8")
    settings = Settings.load(file, {})
    poet, plain = settings.presets
    assert (poet.name, poet.model, poet.template, poet.system) == ("poet", "a", "{{ messages }}", "Rhyme.")
    assert plain == PresetSettings("plain", "b")
    (model,) = settings.models
    assert list(model.loras.items()) == [("x.gguf", 0.5), ("y.gguf", 0.0)]
    again = Settings(models=settings.models, presets=settings.presets)
    assert again.models == settings.models


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ({"name": "c"}, "a table with a name and a model"), ({"model": "a"}, "a table with a name"), (5, "a table"),
        ({"name": "c", "model": "x"}, "presets.c: there is no model 'x'"), ({"name": "a", "model": "a"}, "'a' is taken"),
        ({"name": "b", "model": "a"}, "'b' is taken"), ({"name": "c d", "model": "a"}, "presets: the name 'c d'"),
        ({"name": "c", "model": "a", "n_ctx": 5}, "presets.c: there is no setting n_ctx"),
        ({"name": "c", "model": "a", "template": 5}, "presets.c: template"),
        ({"name": "c", "model": "a", "sampling": {"temprature": 1}}, "presets.c: sampling: .*temprature"),
        ({"name": "c", "model": "a", "sampling": {"temperature": "hot"}}, "presets.c: sampling"),
        ({"name": "c", "model": "a", "sampling": {"temperature": -1}}, "presets.c: sampling: temperature must be 0 or more"),
        ({"name": "c", "model": "a", "sampling": {"top_p": 1.5}}, "presets.c: sampling: top_p must be from 0 to 1, not 1.5"),
        ({"name": "c", "model": "a", "loras": {"x": "y"}}, "presets.c: loras"),
    ],
)  # fmt: skip
def test_what_is_refused(preset: Any, names: str) -> None:
    """A preset that is not possible is named."""
    models = [ModelSettings("a", aliases=["b"])]
    with pytest.raises(SettingsError, match=names):
        Settings.load(None, {}, models=models, presets=[preset])


def test_two_of_one_name_and_no_list() -> None:
    """Each name is there once, and presets are a list."""
    models, twice = [ModelSettings("a")], [PresetSettings("c", "a"), PresetSettings("c", "a")]
    with pytest.raises(SettingsError, match="'c' is taken"):
        Settings(models=models, presets=twice)
    for wrong in ("ab", {"c": "a"}, 5):
        with pytest.raises(SettingsError, match="presets: expected a list"):
            Settings.load(None, {}, models=models, presets=wrong)
