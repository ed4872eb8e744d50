"""The hazards of llama.h, row by row: what stands against each, and what the raw function does without it.

``ours`` runs through the public API, in a child: a statement, the exception that it raises, and what its message names.
``raw`` runs through ``_capi.lib``, in a fork of a child of its own, and ends as ``ends`` says:

======  =====================================================================================
dies    by a signal: abort(), SIGSEGV, SIGFPE
throws  a C++ exception, which the guard of _capi/guard.h catches; from plain C it ends the process
hangs   until its time is over
harm    it comes back as if all were well, and the row shows the damage
lives   the pinned llama.cpp refuses it by itself; the note says what was seen before
======  =====================================================================================

``tests`` are tests elsewhere that hold the row. ``rule`` is the rule of files/gguf_preflight.py that stands against it.
The names that the statements can use are in test_hazards.py.
"""

from __future__ import annotations

from helpers.hazards.batch import BATCH
from helpers.hazards.files import FILES
from helpers.hazards.peers import FIGURES, FOUND, PEERS
from helpers.hazards.sampling import SAMPLING
from helpers.hazards.silent import SILENT

HAZARDS = {
    "silent corruption and hangs": SILENT,
    "batch, context, memory": BATCH,
    "sampling, grammar, vocabulary": SAMPLING,
    "files and callbacks": FILES,
    "peers' bugs": PEERS,
    "figures": FIGURES,
    "found since": FOUND,
}

NOT_CALLED = {
    "llama_batch_get_one", "llama_batch_init", "llama_chat_apply_template", "llama_get_embeddings", "llama_get_logits",
    "llama_memory_seq_div", "llama_memory_seq_keep",
    "llama_sampler_init_grammar_lazy_patterns", "llama_sampler_sample", "llama_state_load_file", "llama_state_save_file",
    "llama_state_seq_load_file", "llama_state_seq_save_file",
}  # fmt: skip
"""Functions that no argument check makes safe, or that have a safe twin in ours."""
