"""Files and callbacks."""

from __future__ import annotations

from helpers.hazards.row import Hazard

FILES = [
    *(
        Hazard(
            f"GGUF: {what}",
            ((f"of_file('{name}.gguf')", "GGUFError", part),),
            f"use(load(folder + '/{name}.gguf'))",
            rule=rule,
        )
        for what, name, rule, part in [
            ("block_count of 0", "no-layers", "block_count", "block_count"),
            ("block_count of 1,000,000", "many-layers", "block_count", "block_count"),
            ("more experts than llama.cpp has room for", "many-experts", "expert_count", "expert_count"),
            ("more experts used than the model has", "used-experts", "expert_used_count", "expert_used_count"),
            ("a number of KV heads that overflows 32 bits", "many-heads", "attention.head_count_kv", "head_count_kv"),
            ("an unknown rope.scaling.type", "odd-scaling", "rope.scaling.type", "rope.scaling.type"),
            ("an unknown pooling_type", "odd-pooling", "pooling_type", "pooling_type"),
            ("a matrix of integers", "integers", "weight types", "ffn_gate.weight"),
            ("weights of a norm that are not f32", "half-norm", "norm types", "output_norm.weight"),
        ]
    ),
    Hazard(
        "GGUF: tensors that begin between multiples of 32 bytes, mapped",
        (("of_file('unaligned.gguf')", "ModelLoadError", "multiple of 32"),),
        "use(load(folder + '/unaligned.gguf'))",
    ),
    Hazard(
        "LoRA: wrong value types",
        (("og.LoRA(tiny(), folder + '/odd-lora.gguf')", "AdapterError", "alpha"),),
        "lib.llama_adapter_lora_init(model, os.fsencode(folder + '/odd-lora.gguf'))",
        tests=("model/test_adapter.py::test_files_that_are_refused",),
    ),
    Hazard(
        "an adapter freed after its model",
        raw="""
adapter = lib.llama_adapter_lora_init(model, os.fsencode(folder + "/lora.gguf"))
assert adapter
lib.llama_model_free(model)
lib.llama_adapter_lora_free(adapter)
""",
        tests=("model/test_adapter.py::test_any_order_of_closing", "model/test_adapter.py::test_a_forgotten_adapter"),
    ),
    Hazard(
        "an exception in a callback",
        tests=(
            "model/test_model.py::test_an_exception_in_progress",
            "native/test_callbacks.py::test_an_exception_in_a_log_handler_reaches_the_caller",
            "whole/test_interrupt.py::test_ctrl_c_stops_a_long_prompt_within_half_a_second",
        ),
    ),
    Hazard(
        "a failed grammar prints itself to stderr",
        tests=("whole/test_hazards.py::test_a_failed_grammar_prints_nothing",),
    ),
    Hazard(
        "on a crash ggml starts a debugger on the process",
        tests=("native/test_backend.py::test_no_debugger_is_started",),
    ),
]
