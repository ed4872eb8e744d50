"""RequestOptions: one place for what a caller can say about a request."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

import offgrid_llama as og
from offgrid_llama.engine.chat_options import ChatArguments, ChatOptions
from offgrid_llama.tasks.request_options import GenerationArguments, RequestArguments, RequestOptions


@pytest.mark.parametrize(
    ("arguments", "options", "base"),
    [(RequestArguments, RequestOptions, object), (ChatArguments, ChatOptions, RequestArguments)],
)
def test_arguments_are_the_options(arguments: type, options: Any, base: type) -> None:
    """Typed arguments and checked options have the same names and types, with a line in the docstring."""
    inherited = getattr(base, "__annotations__", {})
    typed = {name: hint.__forward_arg__ for name, hint in arguments.__annotations__.items() if name not in inherited}
    own = [each for each in fields(options) if each.init]
    assert typed == {each.name: each.type for each in own}
    assert all(each.name in (options.__doc__ or "") for each in own)


def test_generate_takes_some_of_them() -> None:
    """The arguments of generate() are some of those of an Engine."""
    assert GenerationArguments.__annotations__.items() <= RequestArguments.__annotations__.items()


def test_an_argument_that_a_function_does_not_take(tiny: og.Model) -> None:
    """The error names the function and the argument, and the function that takes it, if there is one."""
    with pytest.raises(TypeError, match=r"generate\(\) takes no argument 'n'; Engine.submit\(\) does"):
        og.generate(tiny, [1], n=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"infill\(\) takes no argument 'temprature'; did you mean 'temperature'\?$"):
        og.infill(tiny, "a", "b", temprature=0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"submit\(\) takes no argument 'temprature'; did you mean 'temperature'\?$"):
        RequestOptions.read("submit", {"temprature": 0})


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"n": 0}, ValueError, "n must be 1 or more, not 0"),
        ({"max_tokens": 0}, ValueError, "max_tokens must be 1 or more"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens must be an int"), ({"priority": "high"}, TypeError, "priority"),
        ({"n_keep": -2}, ValueError, "n_keep must be -1 or more"), ({"cache_salt": 1}, TypeError, "cache_salt must be str"),
        ({"logits_processors": [1]}, TypeError, "logits_processors must be callable"),
        ({"sampling": {"top_k": 1}}, TypeError, "sampling must be SamplingParams"),

        ({"temperature": -1}, ValueError, r"^temperature must be 0 or more, not -1$"),
        ({"grammar": "root"}, TypeError, "grammar must be"),
    ],
)  # fmt: skip
def test_options_check_themselves(given: dict[str, Any], error: type[Exception], says: str) -> None:
    """A wrong value is refused where it is given, by its name."""
    with pytest.raises(error, match=says):
        RequestOptions(**given)


def test_options_replace_those_of_sampling() -> None:
    """An option given beside ``sampling`` replaces its value; the others stay."""
    sampling = og.SamplingParams(temperature=0.5, top_k=7)
    params = RequestOptions(sampling=sampling, temperature=0, seed=3).params
    assert (params.temperature, params.top_k, params.seed) == (0, 7, 3)
    assert RequestOptions(sampling=sampling).params is sampling
    assert RequestOptions(stop="a").stop == ("a",)


@pytest.mark.parametrize("name", sorted({each.name for each in fields(og.SamplingParams)} & {*vars(RequestOptions)}))
def test_an_option_of_sampling_arrives(name: str) -> None:
    """Each option with the name of a sampling parameter sets it."""
    value: Any = og.Grammar.choices(["a"]) if name == "grammar" else 1
    assert getattr(RequestOptions(**{name: value}).params, name) == value
