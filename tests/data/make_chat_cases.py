"""Write chat_cases.json: what llama.cpp expects of messages in each template's format, from its tests/test-chat.cpp (MIT).

    python bench/peers.py --server && python tests/data/make_chat_cases.py

Its test is compiled with a function of ours in place of the one that runs a case: it writes the case down.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
LLAMA, PEERS = ROOT / "vendor/llama.cpp", ROOT / "build/peers"
HARNESS = r"""
#include <cstdio>
static std::string quoted(const std::string & text) {
    std::string out = "\"";
    char hex[8];
    for (unsigned char c : text) {
        if (c < 0x20 || c == '"' || c == '\\') { snprintf(hex, sizeof hex, "\\u%04x", c); out += hex; }
        else { out += (char) c; }
    }
    return out + "\"";
}
static std::string written(const common_chat_msg & m) {
    std::string out = "{\"role\": " + quoted(m.role) + ", \"content\": " + quoted(m.content);
    out += ", \"reasoning\": " + quoted(m.reasoning_content) + ", \"tool_call_id\": " + quoted(m.tool_call_id) + ", \"tool_calls\": [";
    for (size_t i = 0; i < m.tool_calls.size(); i++) {
        const auto & call = m.tool_calls[i];
        out += std::string(i ? ", " : "") + "{\"name\": " + quoted(call.name) + ", \"arguments\": " + quoted(call.arguments);
        out += ", \"id\": " + quoted(call.id) + "}";
    }
    return out + "]}";
}
static std::string g_path;
static void write_case(const std::string & path, const peg_test_case & c) {
    const auto & p = c.params;
    printf("{\"template\": %s, \"input\": %s, \"expect\": %s", quoted(path).c_str(), quoted(c.input).c_str(), written(c.expect).c_str());
    printf(", \"partial\": %d, \"tool_choice\": %d, \"parallel\": %d, \"reasoning_format\": %d, \"thinking\": %d, \"generation\": %d, \"continued\": %d",
           c.is_partial, (int) p.tool_choice, p.parallel_tool_calls, (int) p.reasoning_format, p.enable_thinking,
           p.add_generation_prompt, (int) p.continue_final_message);
    printf(", \"schema\": %s, \"tools\": [", quoted(p.json_schema).c_str());
    for (size_t i = 0; i < p.tools.size(); i++) {
        printf("%s{\"name\": %s, \"parameters\": %s}", i ? ", " : "", quoted(p.tools[i].name).c_str(), quoted(p.tools[i].parameters).c_str());
    }
    printf("], \"variables\": {");
    size_t n = 0;
    for (const auto & [name, value] : p.chat_template_kwargs) {
        printf("%s%s: %s", n++ ? ", " : "", quoted(name).c_str(), quoted(value).c_str());
    }
    printf("}, \"messages\": [");
    for (size_t i = 0; i < p.messages.size(); i++) { printf("%s%s", i ? ", " : "", written(p.messages[i]).c_str()); }
    printf("]}\n");
}
"""  # noqa: E501


def main() -> None:
    """Compile, run and write."""
    source = (LLAMA / "tests/test-chat.cpp").read_text(encoding="utf-8")
    source = re.sub(r'#include "\.\./', f'#include "{LLAMA}/', source.replace('"../src/', f'"{LLAMA}/src/'))
    source = source.replace("static void test_peg_parser(", HARNESS + "static void test_peg_parser(", 1)
    run = "test_peg_parser(tester_.tmpls_.get(), [this](peg_test_case & t) { t = tc_; }, tester_.detailed_debug_);"
    if run not in source:
        raise SystemExit("test-chat.cpp has changed: where a case is run")
    source = source.replace(run, "write_case(tester_.template_path_, tc_);")
    source = source.replace("int main(", "static int main_of_llama_cpp(") + (
        "\nint main() { test_template_output_peg_parsers(false); return 0; }\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path, program = Path(folder) / "cases.cpp", Path(folder) / "cases"
        path.write_text(source, encoding="utf-8")
        includes = [
            f"-I{LLAMA / each}"
            for each in ("common", "vendor", "include", "ggml/include", "src", "tools/server", "tools/mtmd")
        ]
        where = PEERS / "bin"
        subprocess.run(
            ["c++", "-std=c++17", "-O0", "-w", "-ffunction-sections", "-Wl,--gc-sections", *includes, path, "-o", program,
             f"-L{where}", "-lllama-common", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{where}"], check=True
        )  # fmt: skip
        done = subprocess.run([program], cwd=LLAMA, check=True, capture_output=True, text=True)
    cases = [_plain(json.loads(line)) for line in done.stdout.splitlines() if line.startswith('{"template"')]
    commit = subprocess.run(
        ["git", "-C", LLAMA, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    tools: list[dict[str, str]] = []
    for case in cases:
        for tool in case["tools"]:
            tool["parameters"] = json.dumps(json.loads(tool["parameters"]))
            if tool not in tools:
                tools.append(tool)
        case["tools"] = [tools.index(tool) for tool in case["tools"]]
    about = f"llama.cpp {commit}, tests/test-chat.cpp, MIT licence; made by make_chat_cases.py"
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    text = f'{{"source": {json.dumps(about)},\n"tools": {json.dumps(tools, indent=0)},\n"cases": [\n{lines}\n]}}\n'
    (Path(__file__).parent / "chat_cases.json").write_text(text, encoding="utf-8")
    print(len(cases), "cases")  # noqa: T201


def _plain(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case without what is as usual."""
    case["template"] = Path(case["template"]).name
    case["tool_choice"] = ("auto", "required", "none")[case["tool_choice"]]
    usual = {
        "partial": 0, "tool_choice": "auto", "parallel": 0, "thinking": 1, "generation": 1, "continued": 0, "schema": "",
        "variables": {}, "messages": [],
    }  # fmt: skip
    case["split"] = int(case.pop("reasoning_format") != 0)
    for message in (case["expect"], *case["messages"]):
        for key in ("role", "content", "reasoning", "tool_call_id", "tool_calls"):
            if not message[key]:
                del message[key]
    return {key: value for key, value in case.items() if key not in usual or value != usual[key]}


if __name__ == "__main__":
    main()
