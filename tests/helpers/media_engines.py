"""What a prompt with pictures and sound gives alone, and an engine that has ended its work with such prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import offgrid_llama as og
from helpers.engines import N_CTX_SEQ, loop_of, runner_of
from helpers.twin import EXACT
from offgrid_llama.engine.planning.media_tokens import position_at

Parts: TypeAlias = Sequence["int | str | og.Image | og.Audio"]


def alone_with_media(
    projector: og.Projector, parts: Parts, max_tokens: int, params: og.SamplingParams
) -> tuple[list[int], str]:
    """Return the tokens that a loop over the nouns gives, and why they end."""
    model = projector.model
    said: list[int] = []
    sizes: dict[str, Any] = {"n_ctx": N_CTX_SEQ, "n_batch": N_CTX_SEQ, "n_ubatch": N_CTX_SEQ}
    with og.Context(model, **sizes, **EXACT) as context, projector.tokenize(parts) as chunks:
        sampler = og.FastSampler(model.vocab, params)
        pos, batch = 0, og.Batch(N_CTX_SEQ)
        for chunk in chunks:
            if isinstance(chunk, list):
                batch.clear()
                batch.add_sequence(chunk, pos)
                context.decode(batch)
                pos += len(chunk)
            else:
                pos = projector.decode(context, chunk, pos)
        while True:
            token = sampler.sample(context, -1)
            if model.vocab.is_eog(token):
                return said, "stop"
            said.append(token)
            if len(said) == max_tokens or chunks.n_tokens + len(said) > N_CTX_SEQ:
                return said, "length"
            batch.clear()
            batch.add(token, pos, [0], logits=True)
            context.decode(batch)
            pos += 1


def idle_with_media(engine: og.Engine) -> None:
    """Check that nothing is left behind: no request, no picture that one waits for, and memory holds what the slots say."""
    stats = engine.stats()
    assert (stats.n_waiting, stats.n_running) == (0, 0)
    loop = loop_of(engine)
    slots, lengths = loop.scheduler.slots, runner_of(engine).lengths()
    assert stats.n_free + stats.n_cached == len(lengths)
    for seq, length in enumerate(lengths):
        text = slots.tokens(seq)
        assert len(text) == slots.n_computed(seq)
        if loop.scheduler.slots._limits.has_sections:
            assert position_at(text, len(text)) >= length > position_at(text, len(text)) - max(len(text), 1)
        else:
            assert length == len(text)
    encoder = loop._encoder
    assert encoder is not None
    assert not encoder._wanted
    assert not encoder._failed
