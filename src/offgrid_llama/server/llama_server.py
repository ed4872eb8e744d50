"""LlamaServer: what a server in llama-server's manner offers beyond its models' settings."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LlamaServer"]


@dataclass(frozen=True)
class LlamaServer:
    """How ``offgrid-llama llama-server`` answers; its attributes are llama-server's flags.

    Attributes:
        model_path: the file of the model; "" with several models.
        router: whether requests name one of several models, as with llama-server's router.
        tags: of the model, for ``/models``.
        seeded: whether requests that set no seed have that of the command line.
        n_predict: most tokens of an answer; -1 is no limit.
        n_keep: tokens that a context shift keeps.
        context_shift: whether a full sequence goes on without its oldest tokens.
        cache_prompt: whether requests that do not say use what was computed before.
        verbose: whether OpenAI's answers have a field ``__verbose``.
        slots, metrics, props: whether these endpoints are there.
        slot_save_path: a folder for the files of slots; None offers none.
        embeddings, reranking: whether the model computes these.
        pooling: of embeddings; None is the model's.
        reasoning: "on", "off" or "auto".
        reasoning_format: "none" leaves the reasoning in the content.
        reasoning_budget: most tokens of reasoning; -1 is no limit.
        prefill_assistant: whether a conversation that ends with the assistant's message continues it.
        gcp: whether ``/predict`` answers as Vertex AI wants it.
    """

    model_path: str = ""
    router: bool = False
    tags: tuple[str, ...] = ()
    seeded: bool = False
    n_predict: int = -1
    n_keep: int = 0
    context_shift: bool = False
    cache_prompt: bool = True
    verbose: bool = False
    slots: bool = True
    metrics: bool = False
    props: bool = False
    slot_save_path: str | None = None
    embeddings: bool = False
    reranking: bool = False
    pooling: str | None = None
    reasoning: str = "auto"
    reasoning_format: str = "auto"
    reasoning_budget: int = -1
    prefill_assistant: bool = True
    gcp: bool = False
