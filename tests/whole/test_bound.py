"""Pickle and copy: objects of this process say that they are, and what to do; data survive both."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

import offgrid_llama as og
from helpers.projectors import picture, tone, write_meaning

TEMPLATE = og.ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}", name="plain")
WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
}


@pytest.fixture(scope="module")
def things(smollm2: og.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One of each: of what is bound to the process, and of what is data."""
    with ExitStack() as stack:
        context = stack.enter_context(og.Context(smollm2, n_ctx=64))
        batch = og.Batch(8)
        batch.add_sequence([1, 2, 3])
        context.decode(batch)
        engine = stack.enter_context(og.Engine(smollm2, n_seq_max=2, n_ctx=512))
        completion = engine.generate("One, two,", max_tokens=2, logprobs=1)
        grammar = og.Grammar.regex("a+")
        write_meaning(path := tmp_path_factory.mktemp("projector") / "mmproj.gguf", smollm2)
        projector = stack.enter_context(og.Projector(smollm2, path))
        image, sound = og.Image(picture(" dog")), og.Audio(tone(" dog"), sample_rate=16000)
        chunk = stack.enter_context(projector.tokenize([image])).media[0]
        sampler = stack.enter_context(closing(og.FastSampler(smollm2.vocab, og.SamplingParams())))
        yield {
            "Model": smollm2, "Vocab": smollm2.vocab, "Context": context, "Memory": context.memory, "Batch": batch,
            "Logits": context.logits(-1), "Snapshot": context.snapshot(0), "Engine": engine, "Completion": completion,
            "Answer": completion.answers[0], "Chat": og.Chat(engine), "ChatFormat": engine.chat_format(),
            "ChatCompletion": engine.chat([{"role": "user", "content": "Hi"}], max_tokens=1).result(),
            "SamplerChain": stack.enter_context(og.SamplerChain([og.samplers.greedy()])),
            "Sampler": stack.enter_context(og.samplers.greedy()), "FastSampler": sampler,
            "CustomSampler": stack.enter_context(og.samplers.custom(lambda ids, logits: None)),
            "ThreadPool": stack.enter_context(og.ThreadPool(1)), "GGUF": stack.enter_context(og.GGUF(smollm2.path)),
            "Embedder": stack.enter_context(og.Embedder(smollm2, pooling_type="mean")),
            "Generation": stack.enter_context(og.generate(smollm2, "Hi", max_tokens=1)),
            "Guide": grammar.guide(smollm2.vocab),
            "Projector": projector, "MediaChunk": chunk,
            "EmbeddingBatch": og.EmbeddingBatch(projector.embed(image), chunk.positions(0)),
            "a picture": image, "a sound": sound,
            "a state": context.save_state(0), "a template": TEMPLATE, "a grammar": grammar,
            "options": og.RequestOptions(seed=3, stop="x"), "parameters": og.SamplingParams(top_k=3),
            "chat options": og.ChatOptions(template=TEMPLATE), "usage": completion.usage, "timings": completion.timings,
            "a piece": next(iter(completion)), "statistics": engine.stats(), "a tool": og.Tool("look"),
            "a call": og.ToolCall("1", "look", "{}"), "a stream": og.TextStream(["stop"]),
        }  # fmt: skip


BOUND = [
    "Model", "Vocab", "Context", "Memory", "Batch", "Logits", "Snapshot", "Engine", "Completion", "Answer", "Chat",
    "ChatFormat", "ChatCompletion", "SamplerChain", "Sampler", "FastSampler", "CustomSampler", "ThreadPool", "GGUF",
    "Embedder", "Generation", "Guide", "Projector", "MediaChunk", "EmbeddingBatch",
]  # fmt: skip
DATA = [
    "a state", "a template", "a grammar", "options", "parameters", "chat options", "usage", "timings", "a piece",
    "a picture", "a sound", "statistics", "a tool", "a call", "a stream",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BOUND)
def test_what_is_bound(things: dict[str, Any], name: str, way: str) -> None:
    """It cannot be pickled or copied; the error names it, says why, and what to do instead."""
    pattern = rf"^{re.escape(name)}( .*)? cannot be pickled or copied, because it is bound to .* of this process: \w+"
    with pytest.raises(TypeError, match=pattern):
        WAYS[way](things[name])
    with pytest.raises(TypeError, match=pattern):
        WAYS["deepcopy"]([{"deep inside": things[name]}])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DATA)
def test_data_survive(things: dict[str, Any], name: str, way: str) -> None:
    """Data come back of their type, with what they hold."""
    thing = things[name]
    again = WAYS[way](thing)
    assert type(again) is type(thing)
    if name == "a state":
        assert bytes(again) == bytes(thing)
    elif name == "a template":
        assert (again.name, again.source) == (thing.name, thing.source)
        assert again.render([{"role": "user", "content": "abc"}]) == "abc"
    elif name not in ("a grammar", "chat options", "a stream"):
        assert again == thing


def test_the_model_is_named(smollm2: og.Model) -> None:
    """An object with a file has its name in the error."""
    with pytest.raises(TypeError, match=r"^Model smollm2.*gguf cannot be pickled"):
        pickle.dumps(smollm2)
