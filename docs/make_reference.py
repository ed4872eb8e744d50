"""Write docs/reference.md: every function of llama.h and mtmd.h, and where in offgrid_llama it lives. A test holds it.

    python docs/make_reference.py

A function lives where a public docstring names it; or else in the public class or function whose code calls it. The others
are bound all the same, as ``offgrid_llama._capi.lib``, and have their reasons below.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "offgrid_llama"
PREFIXES = {
    "sampling.samplers": "samplers.", "native.rpc": "rpc.", "native.backend": "backend.", "native.enums": "",
    "model.params": "",
}  # fmt: skip
"""Modules whose functions are public although the package does not export them by name."""
PAGE = ROOT / "docs" / "reference.md"
BY_HAND = {  # called through getattr or in a private function, or named by several
    r"llama_vocab_(bos|eos|eot|sep|nl|pad|mask|fim_\w+|type)": "Vocab",
    r"llama_model_load_from_\w+|llama_split_path": "Model",
    r"llama_init_from_model|llama_pooling_type": "Context",
    r"llama_free": "Context.close",
    r"llama_model_quantize_default_params": "quantize",
    r"llama_state_(seq_)?get_(size|data)": "Context.save_state",
    r"llama_state_(seq_)?set_data": "Context.load_state",
    r"llama_state_seq_get_(size|data)_ext": "Context.snapshot",
    r"llama_state_seq_set_data_ext": "Context.restore",
    r"llama_supports_(mlock|rpc)": "backend.supports",
    r"mtmd_(helper_init_opt_default|helper_bitmap_init_from_buf|bitmap_(get_(nx|ny|data|n_bytes)|free))": "Image.pixels",
    r"mtmd_free": "Projector.close",
    r"mtmd_input_chunk_free": "MediaChunk.close",
    r"mtmd_helper_gen_audio_(init|free)": "Synthesizer",
    r"mtmd_helper_gen_audio_(set_input|step_prompt|step_gen|get_output)": "Synthesizer.speak",
    r"mtmd_gen_(inp_default|audio_process)": "Synthesizer.speak",
}
RAW = {
    r"llama_opt_\w+": "training; not covered yet",
    r"llama_batch_ext_\w+|llama_process": "the future batch, experimental in llama.h; Batch fills a llama_batch",
    r"llama_set_sampler|llama_get_sampled_\w+": "sampling on the device, experimental in llama.h; not covered yet",
    r"llama_model_init_from_user": "for training from scratch; not covered yet",
    r"llama_batch_(get_one|init|free)": "Batch has its own arrays, which Python can read",
    r"llama_backend_free": "the backend lives as long as the process",
    r"llama_memory_seq_(keep|div)": "wrong for some memories: Memory.keep and Memory.divide use other functions",
    r"llama_state_(seq_)?(save|load)_file": "neither atomic nor checked: use State.save and State.load",
    r"llama_get_(logits|embeddings)": "rows without their numbers: use Context.logits and Context.embeddings",
    r"llama_(chat_apply_template|chat_builtin_templates)": "knows a few templates by name; chat renders the model's own",
    r"llama_sampler_(sample|apply|copy|chain_n)": "aborts where og_sample returns a code; SamplerChain",
    r"llama_sampler_init_grammar_lazy_patterns": "matches its patterns again at each token: hazards",
    r"llama_perf_\w+_print": "prints to stderr; the numbers are in perf()",
    r"llama_(log_get|time_us)": "Python has its own",
    r"llama_log_set": 'the log goes to logging.getLogger("offgrid_llama.llama_cpp")',
    r"llama_set_embeddings": "Context(embeddings=...) sets it once: it decides which results are readable",
    r"llama_adapter_meta_val_str": "LoRA.metadata has all",
    r"llama_adapter_lora_init_from_file_ptr": "LoRA takes a path",
    r"llama_model_meta_(val|key)_str": "Model.metadata has all",
    r"llama_max_tensor_buft_overrides": "the array may be of any length",
    r"llama_sampler_name": "Sampler.name is known when it is made",
    r"llama_split_prefix": "Model reads split.count and split.no instead",
    r"llama_detach_threadpool": "a context has its pool for life",
    r"llama_(set_abort_callback|get_model|n_rs_seq)": "set or known when the context is made",
    r"llama_(flash_attn_type|load_mode)_(name|from_str)": "the enums of params have names",
    r"llama_supports_gpu_offload": "says yes for RPC without a device: devices()",
    r"mtmd_tokenize|mtmd_(default|get)_marker": "strangers can write marks in a text: Projector.tokenize takes parts",
    r"mtmd_bitmap_(init_lazy|set_mergeable)": "for video; not covered yet",
    r"mtmd_bitmap_(get_id|is_audio)": "Image and Audio know it",
    r"mtmd_input_chunk_(save|load|get_placeholder)": "chunks without data: Projector.tokenize(decode=False)",
    r"mtmd_image_tokens_\w+": "MediaChunk asks mtmd_input_chunk_* and mtmd_helper_image_get_decoder_pos",
    r"mtmd_batch_\w+": "several pictures in one encoding; not covered yet",
    r"mtmd_helper_gen_audio_reset": "mtmd_helper_gen_audio_set_input does it",
    r"mtmd_get_cap_from_file": "the header tells it without libmtmd: Projector.types",
    r"mtmd_(helper_)?log_set": 'the log goes to logging.getLogger("offgrid_llama.llama_cpp")',
}


def declared() -> list[str]:
    """Return the functions of llama.h and mtmd.h that are bound, in their order."""
    cdef = "".join((PACKAGE / "_capi" / f"{name}.cdef.h").read_text(encoding="utf-8") for name in ("llama", "mtmd"))
    cdef = re.sub(r"//[^\n]*", "", cdef)
    found = re.findall(r"^(?!typedef)[\w \*]*?\b((?:llama|mtmd)_\w+)\s*\(", cdef, flags=re.MULTILINE)
    return list(dict.fromkeys(found))


def exported() -> set[str]:
    """Return the names that offgrid_llama exports."""
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    return set(re.findall(r'"(\w+)"', text[text.index("__all__ = [") : text.index("]  # fmt: skip")]))


def public(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Yield each public name of a file with its node; a class stands for its private methods as well."""
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    prefix = PREFIXES.get(module)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if prefix is not None or node.name in exported():
            name = node.name if isinstance(node, ast.ClassDef) else (prefix or "") + node.name
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                        yield f"{name}.{member.name}", member
            yield name, node


def homes() -> dict[str, list[str]]:
    """Return, for each function that has any, the public names where it lives."""
    named, called = defaultdict(list), defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, node in public(path):
            text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
            for function in re.findall(r"``((?:llama|mtmd)_\w+)``", text):
                named[function].append(name)
            for function in re.findall(r"\blib\.((?:llama|mtmd)_\w+)", ast.unparse(node)):
                called[function].append(name)
    found = {}
    for function in declared():
        by_hand = [name for pattern, name in BY_HAND.items() if re.fullmatch(pattern, function)]
        where = by_hand or named[function] or called[function]
        # A method says it better than its class.
        found[function] = [
            name for name in dict.fromkeys(where) if not any(other.startswith(f"{name}.") for other in where)
        ]
    return found


def page() -> str:
    """Return the text of the page. Exits with a list of functions that are neither used nor excused."""
    rows, lost = [], []
    for function, where in homes().items():
        reason = next((reason for pattern, reason in RAW.items() if re.fullmatch(pattern, function)), None)
        if where:
            rows.append(f"| `{function}` | {', '.join(f'`{name}`' for name in where)} |")
        elif reason:
            rows.append(f"| `{function}` | raw only: {reason} |")
        else:
            lost.append(function)
    if lost:
        sys.exit(f"neither used nor excused: {', '.join(lost)}")
    return "\n".join(
        [
            "# llama.h and mtmd.h, function by function",
            "",
            "Made by `python docs/make_reference.py` from the docstrings and the code. Names are of `offgrid_llama`; what",
            "is raw only can be called as `offgrid_llama._capi.lib.NAME`, where nothing checks its arguments.",
            "",
            "| function | where it lives |",
            "|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
