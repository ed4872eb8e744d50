"""DSPy on an engine of its own process: signatures, modules, many at once, and an embedder.

python docs/integrations/with_dspy.py
"""

from __future__ import annotations

from typing import Literal

import dspy

from offgrid_llama.integrations.dspy import embedder, language_model

NAME = "smollm2-135m-instruct"


class Mood(dspy.Signature):  # type: ignore[misc]
    """Tell the mood of a sentence."""

    sentence: str = dspy.InputField()
    mood: Literal["good", "bad"] = dspy.OutputField()


def main() -> None:
    """Ask, classify, do several at once, embed."""
    model = language_model(NAME, temperature=0, max_tokens=100, cache=False)
    print(model("What is 2+2?"))
    with dspy.context(lm=model, adapter=dspy.JSONAdapter()):
        classify = dspy.Predict(Mood)
        sentences = ("I love this song.", "The food was awful.", "What a day!", "I am sad.")
        examples = [dspy.Example(sentence=sentence).with_inputs("sentence") for sentence in sentences]
        moods = classify.batch(examples, num_threads=4)  # they share the engine's steps
    print([each.mood for each in moods])
    assert all(each.mood in ("good", "bad") for each in moods)

    vectors = embedder(NAME)(["A cat is on the mat.", "It rains in Oslo."])
    assert vectors.shape[0] == 2


if __name__ == "__main__":
    main()
