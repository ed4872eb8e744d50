"""The LM Evaluation Harness in process and against a server: three small tasks, and the same numbers both ways.

python docs/integrations/with_lm_eval.py http://127.0.0.1:11611
"""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

from offgrid_llama.integrations.lm_eval import OffgridLlamaLM

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt":
    "Cairo", "Norway": "Oslo", "Canada": "Ottawa", "Greece": "Athens", "Russia": "Moscow", "China": "Beijing",
    "Cuba": "Havana", "Peru": "Lima", "Austria": "Vienna", "Poland": "Warsaw", "Iran": "Tehran",
}  # fmt: skip
TEXTS = ["Water boils at one hundred degrees and freezes at zero. " * 20, "A fox, a dog and a cat went to sea.", "Oslo"]
CLOSE = 1e-3  # rounding, where other rows share a step


def tasks(folder: Path) -> list[dict[str, Any]]:
    """Return the tasks: choices, whole texts, and answers."""
    names = list(CAPITALS)
    rows = [
        {"country": name, "choices": [CAPITALS[names[(i + k) % len(names)]] for k in range(4)], "answer": 0}
        for i, name in enumerate(names)
    ]
    (folder / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    capitals = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": str(folder / "capitals.jsonl")}, "test_split": "train",
        "doc_to_text": "The capital of {{country}} is",
    }  # fmt: skip
    return [
        {
            **capitals, "task": "capitals", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        {
            **capitals, "task": "answers", "output_type": "generate_until", "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": [".", ",", "\n"], "max_gen_toks": 8}, "metric_list": [{"metric": "exact_match"}],
        },
        {
            "task": "texts", "dataset_path": "json", "dataset_kwargs": {"data_files": str(folder / "texts.jsonl")},
            "test_split": "train", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    ]  # fmt: skip


def evaluated(model: Any, folder: Path) -> dict[str, Any]:
    """Return what the harness says of a model."""
    found: dict[str, Any] = simple_evaluate(
        model=model, tasks=tasks(folder), task_manager=TaskManager(), log_samples=True, bootstrap_iters=0
    )
    return found


def values(found: Any) -> list[Any]:
    """Return all answers of a model in one list."""
    if isinstance(found, (list, tuple)):
        return list(chain.from_iterable(values(each) for each in found))
    return [found]


def main(url: str, name: str = "smollm2-135m-instruct") -> None:
    """Compare all answers, one by one."""
    with TemporaryDirectory() as folder:
        here = evaluated(OffgridLlamaLM(name, max_length=2047), Path(folder))
        api = LocalCompletionsAPI(base_url=f"{url}/v1/completions", model=name, num_concurrent=4, max_length=2047)
        there = evaluated(api, Path(folder))
    n, n_texts, n_alike = 0, 0, 0
    for task, samples in here["samples"].items():
        for one, other in zip(samples, there["samples"][task], strict=True):
            for a, b in zip(values(one["resps"]), values(other["resps"]), strict=True):
                if task == "answers":  # rounding may decide between two tokens
                    n_texts, n_alike = n_texts + 1, n_alike + (a == b)
                    continue
                assert abs(float(a) - float(b)) < CLOSE * max(1, abs(float(a))), (task, one["doc"], a, b)
                n += 1
    assert n_alike >= 0.8 * n_texts
    print(
        n,
        "scores and",
        n_alike,
        "of",
        n_texts,
        "texts alike;",
        {task: found.get("acc,none") for task, found in here["results"].items()},
    )
    assert here["results"]["capitals"]["acc,none"] > 0.5


if __name__ == "__main__":
    main(*sys.argv[1:])
