#!/usr/bin/env bash
# The streaming test: server-sent events that come one by one and end in [DONE]. docs/proof/stream.sh [URL]
set -euo pipefail
url=${1:-http://127.0.0.1:11611}
curl -sSN --fail-with-body --max-time 120 "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "tinyllama-1.1b-chat.Q4_K_M",
  "messages": [{"role": "user", "content": "Count to 10"}],
  "temperature": 0, "max_tokens": 96, "stream": true
}' | python3 -c '
import json, sys, time

times, text, last = [], "", ""
for line in sys.stdin:
    if line.startswith("data: "):
        times.append(time.monotonic())
        last = line.removeprefix("data: ").strip()
        if last != "[DONE]":
            chunk = json.loads(last)
            assert chunk["object"] == "chat.completion.chunk", chunk
            text += chunk["choices"][0]["delta"].get("content") or ""
assert last == "[DONE]", f"the last event is {last!r}"
assert len(times) > 10 and times[-1] - times[0] > 0.01, "the events came all at once"
assert text.strip(), "there is no text"
print(f"streaming test passed: {len(times)} events within {times[-1] - times[0]:.2f} s:", " ".join(text.split()))
'
