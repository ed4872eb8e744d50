"""Requests with pictures and sound to an engine: each gets what it gets alone, whatever comes beside it."""

from __future__ import annotations

import base64
import math
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import offgrid_llama as og
from helpers.architectures import ARCHITECTURES, N_EMBD
from helpers.engines import GREEDY, N_CTX_SEQ, driven, loop_of, runner_of, turns
from helpers.estimates import MadeUpChunkPace, MadeUpPace
from helpers.media_engines import Parts, alone_with_media, idle_with_media
from helpers.projectors import COLOURS, MARKED, TONES, picture, tone, write_patches, write_random
from offgrid_llama.engine import FinishReason
from offgrid_llama.engine.planning.lookup import Lookup
from offgrid_llama.engine.submission import discard
from offgrid_llama.tasks.request_options import RequestOptions

SYSTEM = {"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}
RNG = np.random.default_rng(1)
PICTURES = [og.Image(RNG.integers(0, 256, shape, dtype=np.uint8)) for shape in ((50, 90, 3), (20, 20, 3), (64, 33, 3))]
SOUNDS = [og.Audio(0.1 * RNG.standard_normal(n).astype(np.float32), sample_rate=16000) for n in (16000, 9000)]
KINDS: dict[str, list[Any]] = {
    "idefics3": PICTURES,
    "qwen2vl_merger": PICTURES,
    "qwen2a": SOUNDS,
    "patches": [og.Image(picture(" dog", 8, 12))],
}
"""A projector with tiles, one for M-RoPE, one that hears, and one whose pictures are not causal; with what they take."""


@pytest.fixture(scope="module")
def projectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, og.Projector]]:
    """A tiny random projector of each kind, on a tiny model."""
    folder = tmp_path_factory.mktemp("projectors")
    models: dict[str, og.Model] = {}
    for name in ("llama", "qwen2vl"):
        ARCHITECTURES[name].write(folder / f"{name}.gguf", MARKED)
        models[name] = og.Model(folder / f"{name}.gguf")
    made = {}
    for kind in KINDS:
        path = folder / f"{kind}-mmproj.gguf"
        if kind == "patches":
            write_patches(path, N_EMBD)
        else:
            write_random(path, kind, N_EMBD)
        made[kind] = og.Projector(
            models["qwen2vl" if kind == "qwen2vl_merger" else "llama"], path, image_min_tokens=1, image_max_tokens=64
        )
    yield made
    for model in models.values():
        model.close()


@pytest.fixture
def engine(meaning: og.Projector) -> Iterator[og.Engine]:
    """An engine that sees and hears."""
    with og.Engine(meaning.model, projector=meaning, n_ctx=4096, n_seq_max=4) as made:
        yield made


def asked(*media: Any, text: str = "Repeat this word once:") -> list[dict[str, Any]]:
    return [SYSTEM, {"role": "user", "content": [{"type": "text", "text": text}, *media]}]


# What it says -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", COLOURS)
def test_chat_sees(engine: og.Engine, word: str) -> None:
    """A picture in a message is seen; cold and from the prefix cache the answer is the same, and it is encoded once."""
    image = og.Image(picture(word))
    cold = engine.chat(asked(image), max_tokens=12, **GREEDY).result()
    cached = engine.chat(asked(image), max_tokens=12, **GREEDY).result()
    assert word.strip() in cold.content
    assert cached.content == cold.content
    assert cached.usage.cached_tokens == cold.usage.prompt_tokens - 1
    assert engine.stats().n_encoded == 1


@pytest.mark.parametrize("word", TONES)
def test_chat_hears(engine: og.Engine, word: str) -> None:
    """So is a sound heard."""
    audio = og.Audio(tone(word), sample_rate=16000)
    assert word.strip() in engine.chat(asked(audio), max_tokens=12, **GREEDY).result().content


def test_parts_of_other_libraries(engine: og.Engine) -> None:
    """OpenAI's parts, a file as bytes, a path and an array are the same picture to the model."""
    import io

    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(picture(" cat")).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    answers = [
        engine.chat(asked(part), **GREEDY)
        for part in (
            {"type": "image_url", "image_url": {"url": url}}, {"type": "image_url", "image_url": url},
            {"type": "input_image", "image_url": url}, {"type": "image", "image": buffer.getvalue()},
            {"type": "image", "image": picture(" cat")}, {"type": "image", "image": og.Image(picture(" cat"))},
        )
    ]  # fmt: skip
    contents = {answer.result().content for answer in answers}
    assert len(contents) == 1
    assert "cat" in contents.pop()
    assert engine.stats().n_encoded == 2  # the file, and the array


def test_several_pictures_and_turns(meaning: og.Projector) -> None:
    """A conversation with a picture in each turn: the earlier ones are neither encoded nor computed again."""
    with og.Engine(meaning.model, projector=meaning, n_ctx=2048, n_seq_max=1) as engine:
        chat = og.Chat(engine, str(SYSTEM["content"]), max_tokens=12, **GREEDY)
        for n, word in enumerate(COLOURS, 1):
            content: Any = [{"type": "text", "text": "Repeat this word once:"}, og.Image(picture(word))]
            reply = chat.say(content).result()
            assert engine.stats().n_encoded == n
            if n > 1:
                assert reply.usage.cached_tokens > 30
        both = engine.chat(asked(*(og.Image(picture(word)) for word in COLOURS)), **GREEDY).result()
        assert engine.stats().n_encoded == 3
    assert any(word.strip() in both.content for word in COLOURS)


def test_eight_that_arrive_together(meaning: og.Projector) -> None:
    """Eight requests with one picture: it is encoded once, and its prompt computed once."""
    with og.Engine(meaning.model, projector=meaning, n_ctx=8192, n_seq_max=8) as engine:
        image = og.Image(picture(" dog", 32, 32))
        chats = [engine.chat(asked(image), max_tokens=4, **GREEDY) for _ in range(8)]
        contents = {chat.result().content for chat in chats}
        stats = engine.stats()
        assert len(contents) == 1
        assert stats.n_encoded == 1
        assert stats.prompt_tokens - stats.prompt_tokens_cached == chats[0].usage.prompt_tokens + 7


def test_raw_prompts(engine: og.Engine, meaning: og.Projector) -> None:
    """A prompt of texts and pictures gives what ``generate`` gives."""
    parts: list[Any] = ["The word is", og.Image(picture(" fish")), " and", meaning.model.vocab.tokenize(" so")[-1]]
    expected = og.generate(meaning.model, parts, projector=meaning, max_tokens=10, temperature=0)
    assert engine.generate(parts, max_tokens=10, **GREEDY).text == expected.text


def test_a_picture_in_another_place(engine: og.Engine) -> None:
    """A picture that comes behind another text is computed, but not encoded again."""
    image = og.Image(picture(" dog"))
    first, second = (engine.generate([text, image], max_tokens=2, **GREEDY) for text in ("One:", "Something else:"))
    assert second.usage.cached_tokens < first.usage.prompt_tokens
    assert engine.stats().n_encoded == 1


def test_no_picture_is_guessed(projectors: dict[str, og.Projector]) -> None:
    """Prompt lookup guesses from the text of a prompt alone, and processors get that alone."""
    parts: list[Any] = [7, 8, PICTURES[0], 9, 10]
    seen: list[list[int]] = []
    with driven(projectors["idefics3"].model, 1, projector=projectors["idefics3"]) as made:
        (request,) = made._submitter.make(parts, RequestOptions(max_tokens=3), 0.0)
        assert isinstance(request.guesser, Lookup)
        assert max(request.guesser._text) < made.model.vocab.n_tokens
        discard([request])
        completion = made.submit(
            parts, max_tokens=3, logits_processors=[lambda tokens, _: seen.append([*tokens])], **GREEDY
        )
        turns(made)
    assert [len(tokens) for tokens in seen] == [len(seen[0]), len(seen[0]) + 1, len(seen[0]) + 2]
    assert max(map(max, seen)) < made.model.vocab.n_tokens
    assert seen[-1][-2:] == completion.tokens[:2]


# Errors -----------------------------------------------------------------------------------------------------------------


def test_without_a_projector(smollm2: og.Model) -> None:
    """A picture without a projector is refused, and the error says what is missing."""
    with og.Engine(smollm2, n_ctx=512, n_seq_max=1) as engine:
        for ask in (
            lambda: engine.chat(asked(og.Image(picture(" dog")))),
            lambda: engine.submit([og.Image(picture(" dog"))]),
        ):
            with pytest.raises(ValueError, match="no projector"):
                ask()


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, ValueError, r"\[1\].*\[0\].*data: URL"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, og.MediaError, r"\[1\].*\[0\].*no PNG"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}}, og.MediaError, "not base64"),
        ({"type": "image_url"}, TypeError, "must be a URL"),
        ({"type": "image_url", "image_url": "data:,\ud83d"}, ValueError, r"\[1\].*\[0\].*image_url"),
        ({"type": "image", "image": "/etc/passwd"}, TypeError, "not a str"),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, TypeError, "'data'"),
        ({"type": "audio", "audio": b"RIFF"}, og.MediaError, "no WAV"),
    ],
)  # fmt: skip
def test_broken_parts(engine: og.Engine, part: dict[str, Any], error: type[Exception], message: str) -> None:
    """What is no picture is a typed error that names its place."""
    with pytest.raises(error, match=message):
        engine.chat([SYSTEM, {"role": "user", "content": [part]}])


def test_a_damaged_picture_is_refused_at_once(engine: og.Engine) -> None:
    """A file whose header is whole, and whose pixels are not, ends before it is queued."""
    import io

    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    begin = data.index(b"IDAT") + 4
    data[begin : begin + 2] = bytes(2)  # no head of compressed data
    with pytest.raises(og.MediaError):
        engine.chat(asked(og.Image(bytes(data))))
    assert engine.stats().n_waiting == 0


@pytest.mark.parametrize("option", [{"n_keep": 0}, {"prompt_logprobs": 1}])
def test_what_does_not_go_with_pictures(engine: og.Engine, option: dict[str, Any]) -> None:
    """Options that pictures do not go with are refused by name."""
    with pytest.raises(ValueError, match=next(iter(option))):
        engine.submit(["a", og.Image(picture(" dog"))], **option)


def test_a_picture_larger_than_a_step(meaning: og.Projector) -> None:
    """A picture that is computed in one micro-batch, and does not fit into one, is refused with the way out."""
    with (
        og.Engine(meaning.model, projector=meaning, n_ctx=512, n_seq_max=1, n_batch=16) as engine,
        pytest.raises(og.MediaError, match="n_batch=64"),
    ):
        engine.submit([og.Image(picture(" dog", 32, 32))])


def test_an_encoder_that_fails(meaning: og.Projector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests whose picture cannot be encoded end with the error; those that wait behind them, and later ones, do not."""
    image = og.Image(picture(" dog"))
    with og.Engine(meaning.model, projector=meaning, n_ctx=1024, n_seq_max=1) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(og.Projector, "encode", lambda *_: (_ for _ in ()).throw(og.MediaError("broken")))
            failing = [engine.chat(asked(image), max_tokens=4) for _ in range(3)]
            other = engine.submit("a", max_tokens=2)
            for each in failing:
                with pytest.raises(og.MediaError, match="broken"):
                    each.result()
            assert other.result().done
        assert "dog" in engine.chat(asked(image), max_tokens=12, **GREEDY).result().content


def test_a_picture_that_fails_amid_another(
    projectors: dict[str, og.Projector], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that cannot be prepared takes no other one with it, of which some tiles are still to be encoded."""
    projector, (good, bad, _) = projectors["idefics3"], PICTURES
    expected, _ = alone_with_media(projector, [3, good, 4], 8, og.SamplingParams(temperature=0))
    tokenize = og.Projector.tokenize
    engine = driven(projector.model, 2, projector=projector)
    encoder = loop_of(engine)._encoder
    assert encoder is not None

    def failing(of: og.Projector, parts: Any, **options: Any) -> Any:
        if options.get("decode", True) and parts == [bad]:
            deadline = time.monotonic() + 60
            while len(encoder._queued) < 2 and time.monotonic() < deadline:  # until the next tile of the other one
                time.sleep(0.001)
            raise og.MediaError("broken")
        return tokenize(of, parts, **options)

    monkeypatch.setattr(og.Projector, "tokenize", failing)
    with engine:
        seen = engine.submit([3, good, 4], max_tokens=8, **GREEDY)
        broken = engine.submit([3, bad, 4], max_tokens=8, **GREEDY)
        turns(engine)
        with pytest.raises(og.MediaError, match="broken"):
            broken.result()
        assert seen.result().tokens == expected


# Beside others ----------------------------------------------------------------------------------------------------------


def test_others_go_on_while_a_picture_is_encoded(meaning: og.Projector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waits for its encoder holds up no other, and can be cancelled; one that drains waits for it."""
    begun, go = threading.Event(), threading.Event()
    encode = og.Projector.encode

    def slow(projector: og.Projector, chunk: og.MediaChunk) -> Any:
        begun.set()
        assert go.wait(60)
        return encode(projector, chunk)

    monkeypatch.setattr(og.Projector, "encode", slow)
    with og.Engine(meaning.model, projector=meaning, n_ctx=2048, n_seq_max=3) as engine:
        first = engine.chat(asked(og.Image(picture(" dog"))), max_tokens=12, **GREEDY)
        second = engine.chat(asked(og.Image(picture(" cat"))), max_tokens=12, **GREEDY)
        assert begun.wait(60)
        assert len(engine.generate("Once upon a time", max_tokens=20, **GREEDY).tokens) == 20
        assert not first.done
        second.cancel()
        assert second.result().finish_reason is FinishReason.CANCELLED
        closing = threading.Thread(target=engine.close, kwargs={"drain": True})
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        go.set()
        assert "dog" in first.result().content
        closing.join(60)
        assert not closing.is_alive()


class Schedule:
    """Requests at random, with pictures and without, on an engine that is driven turn by turn."""

    cache: ClassVar[dict[Any, tuple[list[int], str]]] = {}

    def __init__(self, kind: str, projector: og.Projector, seed: int, folder: Path) -> None:
        self.kind, self.projector, self.media = kind, projector, KINDS[kind]
        self.rng = rng = random.Random(seed)
        n_seq_max = rng.randint(1, 4)
        unified = rng.random() < 0.3
        n_ctx = N_CTX_SEQ if unified else n_seq_max * N_CTX_SEQ
        n_batch = rng.choice([32, 64])
        more: dict[str, Any] = {"cache_bytes": 100_000, "cache_dir": folder} if rng.random() < 0.2 else {}
        if rng.random() < 0.2 and not unified:
            more = {"deterministic": True}
        self.engine = driven(
            projector.model, n_seq_max, n_batch=n_batch, n_ctx=n_ctx, kv_unified=unified, projector=projector, **more
        )
        loop = loop_of(self.engine)
        loop.scheduler.estimates.pace = MadeUpPace(lambda *_: rng.choice([0, 1, 7, n_batch]))
        loop.scheduler.estimates.chunks = MadeUpChunkPace()
        encoder = loop._encoder
        assert encoder is not None
        encoder._max_bytes = rng.choice([0, 2000, 2**20])
        self.said: list[tuple[Parts, int, og.SamplingParams, og.Completion]] = []
        self.cancelled: set[og.Completion] = set()

    def expected(self, parts: Parts, params: og.SamplingParams) -> tuple[list[int], str]:
        """Return what a prompt gives alone."""
        key = (self.kind, tuple(parts), params.seed)
        if key not in self.cache:
            self.cache[key] = alone_with_media(self.projector, parts, 12, params)
        return self.cache[key]

    def prompt(self) -> Parts:
        rng = self.rng
        parts: list[Any] = [[7 + i % 40 for i in range(rng.choice([1, 3, 20]))]]
        for _ in range(rng.choice((0, 1, 1, 2))):
            parts += [[rng.choice(self.media)], [rng.randrange(7, 30)] * rng.randint(0, 2)]
        if self.said and rng.random() < 0.3:  # the next turn of a conversation
            before = rng.choice(self.said)
            parts = [before[0], before[3].tokens, *parts[1:]]
        flat: list[Any] = [each for part in parts for each in part]
        return flat if any(isinstance(each, og.Image | og.Audio) for each in flat) else flat[:60]

    def disturb(self) -> None:
        rng = self.rng
        while rng.random() < 0.3:
            parts = self.prompt()
            with self.projector.tokenize(parts, decode=False) as counted:
                if counted.n_tokens > N_CTX_SEQ - 20:
                    continue
            seed = rng.randrange(2)
            params = og.SamplingParams(temperature=0) if seed == 0 else og.SamplingParams(seed=seed)
            max_tokens = rng.randint(1, 12)
            completion = self.engine.submit(list(parts), max_tokens=max_tokens, sampling=params)
            self.said.append((parts, max_tokens, params, completion))
        if self.said and rng.random() < 0.15:
            completion = rng.choice(self.said)[3]
            if not completion.done:
                self.cancelled.add(completion)
            completion.cancel()

    def run(self) -> None:
        for _ in range(12):
            self.disturb()
            runner_of(self.engine).contended_gil_seconds = self.rng.choice([math.inf, -1.0])
            turns(self.engine, 2)
        turns(self.engine)
        assert self.engine.stats().n_failed_steps == 0
        idle_with_media(self.engine)
        for parts, max_tokens, params, completion in self.said:
            tokens, reason = self.expected(parts, params)
            if completion in self.cancelled and completion.finish_reason is FinishReason.CANCELLED:
                assert completion.tokens == tokens[: len(completion.tokens)]
            else:
                assert completion.tokens == tokens[:max_tokens]
                assert completion.finish_reason == ("length" if len(tokens) >= max_tokens else reason)
        self.engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_any_schedule(
    projectors: dict[str, og.Projector], kind: str, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    """Whatever comes and goes, each request gives what it gives alone, and nothing is left."""
    for seed in range((pytestconfig.getoption("--hazard-cases") or 80) // 4):
        Schedule(kind, projectors[kind], seed, tmp_path).run()


def test_a_sound_that_cannot_fit(projectors: dict[str, og.Projector], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by its length, before it is decoded: a file of some kB may be an hour of silence."""
    projector = projectors["qwen2a"]
    hour = og.Audio(np.zeros(3500 * 8000, np.int16), sample_rate=8000)
    minute = og.Audio(np.zeros(61 * 8000, np.int16), sample_rate=8000)
    least = projector.least_tokens([1, "a", minute])
    assert 0.5 * projector.n_tokens(minute) < least < projector.n_tokens(minute)
    assert projector.least_tokens([SOUNDS[0]]) == 0
    with og.Engine(projector.model, projector=projector, n_ctx=1024, n_seq_max=1) as engine:
        monkeypatch.setattr(projector, "_sound", lambda _: pytest.fail("decoded"))
        with pytest.raises(og.ContextLengthError, match="no room to generate"):
            engine.submit([1, hour])
