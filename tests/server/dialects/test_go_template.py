"""Templates of Ollama's clients, as Jinja."""

from __future__ import annotations

import time
from typing import Any

import pytest

from offgrid_llama.chat import ChatTemplate
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.go_template import MAX_ACTIONS, as_jinja

MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "{{ 1 }}"}]

CLASSIC = """{{ if .System }}<|system|>
{{ .System }}<|end|>
{{ end }}{{ if .Prompt }}<|user|>
{{ .Prompt }}<|end|>
{{ end }}<|assistant|>
{{ .Response }}<|end|>
"""


def rendered(template: str, **variables: str) -> str:
    given: dict[str, Any] = {"system": "S", "prompt": "{{ 1 }}", "response": "", **variables}
    return ChatTemplate(as_jinja(template)).render(MESSAGES, **given)


def test_a_classic_template() -> None:
    """Texts and newlines stay as they are, and the prompt ends where the answer begins."""
    assert rendered(CLASSIC) == "<|system|>\nS<|end|>\n<|user|>\n{{ 1 }}<|end|>\n<|assistant|>\n"
    assert rendered(CLASSIC, system="") == "<|user|>\n{{ 1 }}<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{- range .Messages }}[{{ .Role }}]{{ .Content }}\n{{- end }}", "[system]S[user]{{ 1 }}"),
        ('{{ range $.Messages }}{{ if eq .Role "user" }}U{{ else if ne .Role "x" }}V{{ end }}{{ end }}', "VU"),
        ("{{ if and .System (not .Response) }}a{{ else }}b{{ end }}{{.Prompt}}", "a{{ 1 }}"),
        ("{{ if or .Response .System }}a{{ end }}", "a"),
        ("a  {{- .System -}}  b", "aSb"),
        ("{% raw %} {# {{ .System }} \\ \" '", "{% raw %} {# S \\ \" '"),
        ("{{/* a note */}}{{ .System }}", "S"),
        ("{{ if .System }}a{{ .Response }}b{{ end }}c", "a"),
    ],
)
def test_what_is_translated(template: str, text: str) -> None:
    """Fields, conditions, comparisons and the messages; nothing in the template's own text is Jinja's."""
    assert rendered(template) == text


def test_jinja_stays() -> None:
    """A template without a field is Jinja."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[0].role }}"
    assert as_jinja(template) == template


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ .Tools }}", ".Tools"), ("{{ slice .Messages 1 }}", "slice"), ("{{ if .System.Name }}", "System.Name"),
        ("{{ end }}{{ .System }}", "end"), ("{{ if (.System }}{{ end }}", ".System"), ("{{ if eq .Role }}", "not supported"),
        ("{{ .System | json }}", "json"), ("{{ range $i, $m := .Messages }}", "range"),
        ('{{ if eq .Role "\\x" }}', "x"), (f"{{{{ if {'(' * 5000} .System }}}}", "not supported"),
        ("{{ .System }}" * (MAX_ACTIONS + 1), "actions"),
    ],
)  # fmt: skip
def test_what_is_refused(template: str, says: str) -> None:
    """A part that cannot be translated is named, and never half translated."""
    with pytest.raises(ApiError, match="template") as caught:
        as_jinja(template)
    assert (caught.value.status, says in caught.value.message) == (400, True)


def test_long_templates() -> None:
    """Translating takes time that grows with the length, not with its square."""

    def seconds(n: int) -> float:
        begin = time.thread_time()  # what other programs take does not count
        for _ in range(20):
            as_jinja("{{" * (MAX_ACTIONS - 1) + " ." * n + "{{ .System")
        return time.thread_time() - begin

    seconds(1000)
    assert seconds(16_000) < 16 * 10 * seconds(1000)
