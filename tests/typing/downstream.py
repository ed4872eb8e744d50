"""A program that uses all of the public face, typed strictly; pyright checks it, nothing runs it.

``assert_type`` states what a user's editor shows. Each block is one noun of the README.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack, assert_type

import offgrid_llama as og


@dataclass
class City:
    name: str
    size: Literal["village", "town", "city"]


def weather(place: str) -> str:
    """Tell the weather of a place."""
    return f"sunny in {place}"


def louder(tokens: object, logits: npt.NDArray[np.float32]) -> None:
    """Double the logits."""
    del tokens
    logits *= 2


def nouns(path: Path) -> None:
    with og.Model(path, n_gpu_layers="auto", load_mode="mmap") as model:
        vocab = model.vocab
        assert_type(vocab, og.Vocab)
        tokens = vocab.tokenize("Hello", add_special=True)
        assert_type(tokens, list[int])
        assert_type(model.metadata, dict[str, str])
        assert_type(model.rope_type, og.RopeType)
        with og.Context(model, n_ctx=4096, type_k="q8_0", flash_attn_type="enabled") as context:
            batch = og.Batch(512)
            for i, token in enumerate(tokens):
                batch.add(token, i, [0], logits=i == len(tokens) - 1)
            context.decode(batch)
            assert_type(context.logits(-1), og.Logits)
            assert_type(context.logits(-1).copy(), npt.NDArray[np.float32])
            assert_type(context.memory, og.Memory)
            assert_type(context.memory.positions(0), range)
            assert_type(context.save_state(0), og.State)
            assert_type(context.snapshot(0), og.Snapshot)
            sampler = og.SamplerChain([og.samplers.top_k(40), og.samplers.temp(0.8), og.samplers.dist(seed=7)])
            token = sampler.sample(context, -1)
            assert_type(vocab.piece(token), bytes)
            assert_type(og.TextStream(["stop"]).push(vocab.piece(token)), str)
            assert_type(sampler.clone(), og.SamplerChain)
            assert_type(og.FastSampler(vocab, og.SamplingParams(top_k=1)).sample(context, -1), int)


def tasks(model: og.Model) -> None:
    generation = og.generate(model, "Hello", max_tokens=8, temperature=0, stop=["\n"])
    for piece in generation:
        assert_type(piece, str)
    assert_type(generation.finish_reason, og.FinishReason | None)
    assert_type(og.infill(model, "a", "b", temperature=0).text, str)
    assert_type(og.fim_prompt(model.vocab, "a", "b"), list[int])
    assert_type(og.Embedder(model).embed(["a", "b"]), npt.NDArray[np.float32])
    assert_type(og.Reranker(model).rank("query", ["document"]), list[og.Ranked])
    assert_type(og.memory_plan(model.path), og.MemoryPlan)
    assert_type(og.devices(), tuple[og.Device, ...])
    with og.GGUF(model.path) as file:
        assert_type(file.architecture, str)


def media(model: og.Model) -> None:
    with og.Projector(model, "mmproj.gguf", image_max_tokens=256) as projector:
        assert_type(projector.sample_rate, int | None)
        assert_type(projector.speech_rate, int | None)
        synthesizer = og.Synthesizer(model, projector)
        assert_type(synthesizer.speak("Hello", seed=1), og.Speech)
        assert_type(synthesizer.speak("Hello").samples, npt.NDArray[np.float32])
        image, sound = og.Image("dog.png"), og.Audio(np.zeros(16000, np.float32), sample_rate=16000)
        assert_type(image.pixels, npt.NDArray[np.uint8])
        assert_type(projector.n_tokens(image), int)
        assert_type(projector.embed(sound), npt.NDArray[np.float32])
        with og.Context(model) as context, projector.tokenize(["What is this?", image]) as parts:
            for part in parts:
                assert_type(part, list[int] | og.MediaChunk)
                if isinstance(part, og.MediaChunk):
                    context.decode(og.EmbeddingBatch(projector.encode(part), part.positions(0)))
                    assert_type(projector.decode(context, part, 0), int)
        try:
            assert_type(og.generate(model, ["What is this?", image], projector=projector).text, str)
        except og.MediaError as error:
            assert_type(error.message, str)


def handed_on(engine: og.Engine, prompt: str, **options: Unpack[og.RequestArguments]) -> og.Completion:
    """Options can be handed on with their types."""
    return engine.submit(prompt, **options)


def talk(engine: og.Engine, question: str, **options: Unpack[og.ChatArguments]) -> og.ChatCompletion[City]:
    """So can those of a chat."""
    return engine.chat([{"role": "user", "content": question}], response_format=City, **options)


def many(model: og.Model) -> None:
    with og.Engine(model, n_seq_max=4, n_threads=2, type_k="f16") as engine:
        completion = handed_on(engine, "Hello", max_tokens=4, logits_processors=[louder], logprobs=2, n=2)
        assert_type(completion.result(), og.Completion)
        assert_type(completion.usage, og.Usage)
        assert_type(completion.timings, og.Timings)
        assert_type(completion.answers, list[og.Answer])
        for piece in engine.stream("Hello"):
            assert_type(piece, og.Piece)
        assert_type(engine.infill("a", "b", files={"util.py": "c"}, n=2), og.Completion)
        assert_type(engine.stats(), og.EngineStats)
        reply = talk(engine, "Where?", tools=[weather], reasoning_budget=16)
        assert_type(reply.parsed(), City)
        for delta in reply:
            assert_type(delta, og.Delta)
            for call in delta.tool_calls:
                assert_type(call, og.CallDelta)
        assert_type(reply.tool_calls, list[og.ToolCall])
        assert_type(engine.chat([], response_format=list[int]).parsed(), list[int])
        chat = og.Chat(engine, "You are terse.", temperature=0)
        assert_type(chat.say("Which city?", response_format=City), og.ChatCompletion[City])
        chat.add_tool_result(reply.tool_calls[0], weather("Rome"))
        chat.run("And now?", tools=[og.Tool.of(weather)], max_turns=2).result()


async def clock(city: str) -> str:
    """Return the time of a city."""
    return f"noon in {city}"


async def asynchronously(path: Path) -> None:
    async with og.Engine(path) as engine:
        chat = og.Chat(engine, tools=[clock])
        assert_type(await chat.run_async("What time is it?", response_format=City), og.ChatCompletion[City])
        reply = await chat.say_async("And now?", response_format=City)
        assert_type(reply, og.ChatCompletion[City])
        async for delta in reply:
            assert_type(delta, og.Delta)
        print(await (await chat.reply_async()))
        await on_a_loop(engine)


async def on_a_loop(engine: og.Engine) -> None:
    assert_type(await engine.generate_async("Hello", max_tokens=4), og.Completion)
    async for piece in engine.stream_async("Hello"):
        assert_type(piece, og.Piece)
    assert_type(await engine.chat([{"role": "user", "content": "Hi"}], response_format=City), og.ChatCompletion[City])


def typos(path: Path, engine: og.Engine, chat: og.Chat) -> None:
    """A keyword that does not exist is an error to the type checker, wherever options are taken."""
    og.Engine(path, n_thread=2)  # type: ignore[call-arg]
    og.Model(path, n_gpu_layer=2)  # type: ignore[call-arg]
    og.generate(engine.model, "Hi", temprature=0)  # type: ignore[call-arg]
    engine.submit("Hi", temprature=0)  # type: ignore[call-arg]
    engine.infill("a", "b", temprature=0)  # type: ignore[call-arg]
    engine.score("a", [" b"], tennant="c")  # type: ignore[call-arg]
    engine.chat([], temprature=0)  # type: ignore[call-overload]
    og.Chat(engine, temprature=0)  # type: ignore[call-arg]
    chat.say("Hi", temprature=0)  # type: ignore[call-overload]
    chat.run("Hi", max_turn=2)  # type: ignore[call-overload]


def catalog() -> list[str]:
    return [entry.name for entry in og.store.catalog()]


def grammars() -> list[og.Grammar]:
    return [
        og.Grammar.json_schema(City), og.Grammar.gbnf('root ::= "a"'), og.Grammar.regex("[a-z]+"), og.Grammar.choices(["a", "b"]),
        og.Grammar.lark('start: "a"'),
    ]  # fmt: skip


def files(path: Path, target: Path) -> None:
    assert_type(og.quantize(path, target, "Q4_0"), og.Quantized)
    assert_type(og.store.resolve("smollm2-135m-instruct"), Path)


def enums_and_parts(path: Path) -> None:
    """Every enum may be given by name or as a member."""
    with (
        og.Model(
            path, split_mode=og.SplitMode.LAYER, load_mode=og.LoadMode.AUTO, lazy_mode=og.LazyMode.AUTO, devices=og.devices()
        ) as model,
        og.ThreadPool(2) as pool,
        og.Context(
            model, threadpool=pool, flash_attn_type=og.FlashAttention.AUTO, pooling_type=og.PoolingType.NONE, perf=True,
            rope_scaling_type=og.RopeScaling.NONE, attention_type=og.AttentionType.CAUSAL,
        ) as context,
        og.LoRA(model, path) as lora,
    ):  # fmt: skip
        assert_type(model.vocab.type, og.VocabType)
        assert_type(model.vocab.attr(0), og.TokenAttr)
        context.set_loras({lora: 0.5})
        context.set_control_vector(og.ControlVector({1: [0.0, 1.0]}))
        assert_type(context.perf(), og.ContextPerf)
        assert_type(og.SamplerChain(perf=True).perf(), og.SamplerPerf)
        sampler = og.samplers.custom(lambda ids, logits: None, name="nothing")
        assert_type(sampler, og.Sampler)
    og.numa_init("distribute")
    print(og.build_info(), og.rpc, og.load_imatrix(path))


def prepared() -> None:
    """Options may be checked before there is an engine; the TypedDicts type what is handed on."""
    common: og.GenerationArguments = {"max_tokens": 4}
    request: og.RequestArguments = {"max_tokens": 4, "n": 2}
    turn: og.TurnArguments = {"temperature": 0, "response_format": City}
    processor: og.LogitsProcessor = louder
    assert_type(og.RequestOptions(**request).params, og.SamplingParams)
    print(og.ChatOptions(tools=[weather]), og.RequestOptions(logits_processors=[processor]), turn, common)


def watched(model: og.Model) -> None:
    def look(view: og.StepView) -> None:
        assert_type(view.logits, npt.NDArray[np.float32])
        assert_type(view.answers, list[og.Answer])

    with og.Engine(model, on_step=look) as engine:
        logprobs: list[og.TokenLogprobs] = engine.generate("Hello", logprobs=1).logprobs
        options: og.ScoreArguments = {"tenant": "a", "loras": {"style": 0.5}}
        scores: list[og.Score] = engine.score("Hello", [" world", [7, 8]], **options)
        best: float = max(each.mean_logprob for each in scores)
        template = og.ChatTemplate.of(model)
        print(logprobs, best, engine.chat([{"role": "user", "content": "Hi"}], template=template).content)
        engine.chat([{"role": "user", "content": "Hi"}], template="chatml")


async def transcribed(engine: og.Engine, sound: Path) -> None:
    with og.transcribe(engine, sound, language="en", temperature=0.2) as transcription:
        assert_type(transcription, og.Transcription)
        for segment in transcription:
            assert_type(segment, og.Segment)
            print(segment.start, segment.text, segment.mean_logprob)
        assert_type(transcription.result(), og.Transcript)
    assert_type(await og.transcribe(engine, og.Audio(sound)), og.Transcript)


def downloads(name: str) -> None:
    """A name may be downloaded, may not, or is watched."""

    def watch(done: int, total: int | None) -> None:
        print(done, total)

    og.Model(name, download=watch)
    og.Engine(name, draft_model=name, download="never")
    og.memory_plan(name, download="auto")
    assert_type(og.store.resolve(name, download=watch), Path)


def failures(model: og.Model) -> og.Generation | None:
    try:
        return og.generate(model, "Hello")
    except (og.NoKVSlot, og.Aborted, og.InvalidBatch, og.DecodeFailed) as error:
        assert isinstance(error, og.DecodeError)
    except og.ContextLengthError as error:
        assert_type(error.n_tokens, int)
    except og.QueueFullError as error:
        assert_type(error.n_waiting, int)
    except (og.UnknownModelError, og.DownloadError, og.ChecksumError) as error:
        assert isinstance(error, og.StoreError)
    except (og.LoadCancelled, og.ModelLoadError, og.ModelSaveError, og.GGUFError, og.AdapterError) as error:
        print(error)
    except (og.ClosedError, og.ForkError, og.BackendError, og.ContextError, og.TokenizeError, og.StateError) as error:
        print(error)
    except (og.StaleLogitsError, og.GrammarError, og.SamplerError, og.ChatTemplateError, og.ToolError) as error:
        print(error)
    except og.NativeError as error:
        print(error)
    except og.OffgridLlamaError as error:
        print(error)
    return None
