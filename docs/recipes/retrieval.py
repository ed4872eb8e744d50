"""Answer from documents, with citations: vectors find the paragraphs, and a grammar lets the answer cite only these.

    python docs/recipes/retrieval.py EMBEDDER.gguf [--model NAME] [QUESTION]

EMBEDDER is an embedding model. The paragraphs are of this file; put yours in their place.
"""

from __future__ import annotations

import argparse

import numpy as np

import offgrid_llama as og

PARAGRAPHS = {
    "opening": "The museum is open from 10 to 18 o'clock, and closed on Mondays.",
    "tickets": "A ticket costs 12 euros. Children under 12 years do not pay.",
    "way": "The museum is in Mill Street 7. Tram 4 stops in front of it.",
    "cloakroom": "Large bags have to stay in the cloakroom, which is free.",
    "cafe": "The cafe in the garden serves lunch from 12 to 15 o'clock.",
}
N_FOUND = 3
MAX_CHARACTERS = 200


def nearest(embedder: og.Embedder, question: str, n: int) -> list[str]:
    """Return the names of the paragraphs that are nearest to a question, the best one first."""
    vectors = embedder.embed(list(PARAGRAPHS.values()))  # of length 1, so that their products are their likeness
    likeness = vectors @ embedder.embed(question)
    return [list(PARAGRAPHS)[i] for i in np.argsort(-likeness)[:n]]


def shape(names: list[str]) -> dict[str, object]:
    """Return the answer's shape: a text, and which of these paragraphs say so."""
    cited = {"type": "array", "items": {"enum": names}, "minItems": 1, "maxItems": len(names)}
    return {
        "type": "object",
        "properties": {"answer": {"type": "string", "maxLength": MAX_CHARACTERS}, "cited": cited},
        "required": ["answer", "cited"],
    }


def main() -> None:
    """Find the paragraphs, and let the model answer from them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embedder")
    parser.add_argument("question", nargs="?", default="When is the museum closed?")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    args = parser.parse_args()
    with og.Model(args.embedder) as vectors, og.Embedder(vectors) as embedder:
        found = nearest(embedder, args.question, N_FOUND)
    print("found:", ", ".join(found))
    sources = "\n".join(f"[{name}] {PARAGRAPHS[name]}" for name in found)
    messages = [
        {"role": "system", "content": f"Answer from these paragraphs only, and cite them by name.\n{sources}"},
        {"role": "user", "content": args.question},
    ]
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": shape(found)}}
    with og.Engine(args.model, n_ctx=2048, n_seq_max=1) as engine:
        reply = engine.chat(messages, response_format=schema, temperature=0, max_tokens=512).parsed()
    print("answer:", reply["answer"])
    for name in dict.fromkeys(reply["cited"]):
        print(f"  [{name}] {PARAGRAPHS[name]}")


if __name__ == "__main__":
    main()
