#!/usr/bin/env bash
# The smoke test: a chat completion, answered for real. docs/proof/smoke.sh [URL]
set -euo pipefail
url=${1:-http://127.0.0.1:11611}
reply=$(curl -sS --fail-with-body --max-time 120 "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "tinyllama-1.1b-chat.Q4_K_M",
  "messages": [{"role": "user", "content": "What is 2+2?"}],
  "temperature": 0, "max_tokens": 64
}')
echo "$reply"
python3 - "$reply" <<'PYTHON'
import json, sys

reply = json.loads(sys.argv[1])
answer = reply["choices"][0]["message"]["content"]
assert reply["object"] == "chat.completion" and reply["usage"]["completion_tokens"] > 0, reply
assert "4" in answer, f"the answer to 2+2: {answer!r}"
print("smoke test passed:", answer)
PYTHON
