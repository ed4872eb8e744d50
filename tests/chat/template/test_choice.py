"""``template=``: names, Jinja text and ChatTemplates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.twin import LETTERS, write_tiny_llama
from offgrid_llama.chat.chat_formats import ChatFormats
from offgrid_llama.chat.template.choice import BUILT_IN, has_template, read_template
from offgrid_llama.worker.arguments import check_template

PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
WITH_TOOLS = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}Q" + PLAIN
ASKED = [{"role": "user", "content": "abc"}]


def look(place: str) -> str:
    """Look."""
    return place


def with_templates(path: Path, **templates: str) -> Path:
    """Write a tiny llama with these templates; ``default`` is the one without a name."""
    keys = {
        f"tokenizer.chat_template{'' if name == 'default' else f'.{name}'}": text for name, text in templates.items()
    }
    write_tiny_llama(path, more={**LETTERS, **keys})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """A model with a template for conversations with tools besides its default one."""
    path = with_templates(
        tmp_path_factory.mktemp("templates") / "two.gguf", default=PLAIN, tool_use=WITH_TOOLS, rag="R" + PLAIN
    )
    with og.Model(path) as model:
        yield model


@pytest.mark.parametrize(
    ("template", "source"),
    [
        (None, PLAIN), ("default", PLAIN), ("tool_use", WITH_TOOLS), ("rag", "R" + PLAIN), ("chatml", BUILT_IN["chatml"]),
        ("{{ messages[0].content }}", "{{ messages[0].content }}"), (og.ChatTemplate("x"), "x"),
    ],
)  # fmt: skip
def test_what_a_template_can_be(model: og.Model, template: Any, source: str) -> None:
    """A name of the model's or of ours, Jinja text, or a ChatTemplate."""
    assert read_template(model, template).source == source


def test_chatml(model: og.Model) -> None:
    """The template "chatml" renders the turns of ChatML."""
    messages = [{"role": "system", "content": "AAA"}, *ASKED]
    prompt = read_template(model, "chatml").render(messages)
    assert prompt == "<|im_start|>system\nAAA<|im_end|>\n<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "error", "text"),
    [
        ("chatlm", og.ChatTemplateError, r"no chat template 'chatlm'; of its own it has 'default', 'rag', 'tool_use'"),
        ("", og.ChatTemplateError, "no chat template ''"),
        ("{% if %}", og.ChatTemplateError, "line 1"),
        ("templates/x.jinja", og.ChatTemplateError, "looks like a file: pass its text"),
        (Path("x.jinja"), TypeError, r"not PosixPath: pass its text, path.read_text\(\)"),
        (["chatml"], TypeError, "template must be a ChatTemplate, a name or Jinja text, not list"),
    ],
)
def test_what_it_cannot_be(model: og.Model, template: Any, error: type[Exception], text: str) -> None:
    """Anything else is refused, with the names that are known."""
    with pytest.raises(error, match=text):
        ChatFormats(model).of(template)


def test_tools_choose_the_template(model: og.Model, tmp_path: Path) -> None:
    """With tools the model's "tool_use" is used, unless another one is asked for; without tools its default."""
    with og.Engine(model, n_seq_max=1, n_ctx=1024) as engine:
        assert engine.chat_format().template.source == PLAIN
        assert engine.chat_format(tools=True).template.source == WITH_TOOLS
        assert engine.chat_format("rag", tools=True).template.source == "R" + PLAIN
        assert engine.chat_format(tools=True) is engine.chat_format("tool_use")
        bare = engine.chat(ASKED, max_tokens=1).result().usage.prompt_tokens
        told = engine.chat(ASKED, max_tokens=1, tools=[look], tool_choice="none").result().usage.prompt_tokens
        assert told == bare + len("Q")
        assert engine.chat(ASKED, max_tokens=1, template="tool_use").result().usage.prompt_tokens == told
        parts = engine.chat_format(tools=True).parts(ASKED, {}, [og.Tool.of(look)])
        assert "".join(part.text for part in parts) == "lookQabc"
    with og.Model(with_templates(tmp_path / "one.gguf", default=PLAIN)) as other:
        assert ChatFormats(other).of(tools=True).template.source == PLAIN


@pytest.fixture(scope="module")
def only_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose only template is the one for conversations with tools, and one for others."""
    folder = tmp_path_factory.mktemp("templates")
    return with_templates(folder / "tools.gguf", tool_use=WITH_TOOLS, rag="R" + PLAIN)


def test_a_model_without_a_default_template(only_tools: Path) -> None:
    """Its template for tools is used without tools, too, by the library and by what asks whether there is one."""
    with og.Model(only_tools) as model, og.Engine(model, n_ctx=64, n_seq_max=1, n_threads=1) as engine:
        for tools in ([], [og.Tool("look")]):
            prompt = "".join(part.text for part in ChatFormats(model).of(tools=bool(tools)).parts(ASKED, {}, tools))
            assert prompt == f"{'look' if tools else ''}Qabc"
        assert engine.chat(ASKED, max_tokens=1).result().done
        assert has_template(model)
        check_template(model, None)
        with pytest.raises(
            og.ChatTemplateError, match=r"no chat template 'default'; of its own it has 'rag', 'tool_use'"
        ):
            read_template(model, "default")


def test_a_model_with_other_templates_only(tmp_path: Path) -> None:
    """None of them is chosen, and the error names them."""
    with og.Model(with_templates(tmp_path / "rag.gguf", rag="R" + PLAIN)) as model:
        with pytest.raises(og.ChatTemplateError, match=r"of its own it has 'rag'"):
            ChatFormats(model).of()
        assert not has_template(model)
