#!/usr/bin/env bash
# The streaming test: server-sent events that come while the answer goes on, and end in [DONE]. docs/proof/stream.sh [URL]
set -euo pipefail
url=${1:-http://127.0.0.1:11611}
curl -sSN --fail-with-body --max-time 120 "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "tinyllama-1.1b-chat.Q4_K_M",
  "messages": [{"role": "user", "content": "Count to 10"}],
  "temperature": 0, "max_tokens": 96, "stream": true
}' | python3 -c '
import json, sys, time

begin, n, text, last = time.monotonic(), 0, "", ""
for line in sys.stdin:
    if line.startswith("data: "):
        n += 1
        last = line.removeprefix("data: ").strip()
        if last != "[DONE]":
            chunk = json.loads(last)
            assert chunk["object"] == "chat.completion.chunk", chunk
            text += chunk["choices"][0]["delta"].get("content") or ""
assert last == "[DONE]", f"the last event is {last!r}"
assert n > 3, "there is one piece"
assert text.strip(), "there is no text"
print(f"{n} events within {time.monotonic() - begin:.2f} s:", " ".join(text.split()))
'
# An answer of many pieces, which ends when its client leaves: its first ones are here while it is far from its end.
python3 - "$url" <<'PYTHON'
import json, sys, urllib.request

url, model = sys.argv[1], "tinyllama-1.1b-chat.Q4_K_M"
asked = {
    "model": model, "messages": [{"role": "user", "content": "Tell me a story"}],
    "max_tokens": 1900, "ignore_eos": True, "stream": True,
}
request = urllib.request.Request(
    f"{url}/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
)
with urllib.request.urlopen(request, timeout=120) as response:
    pieces = (line for line in response if b'"content":"' in line)
    for _ in range(2):
        next(pieces)
    with urllib.request.urlopen(f"{url}/v1/models/{model}", timeout=30) as described:
        assert json.load(described)["requests"] > 0, "the events came all at once"
PYTHON
echo "streaming test passed"
