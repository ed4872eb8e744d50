// openai of npm against a server with a batch_dir: the Responses API, files and batches.
// node docs/clients/with_openai_responses.mjs [URL]

import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";

import OpenAI, { toFile } from "openai";
import { VERSION } from "openai/version";

const url = process.argv[2] ?? "http://127.0.0.1:11611";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const options = { model: "tinyllama-1.1b-chat.Q4_K_M", max_output_tokens: 64, temperature: 0 };
const collect = async (items) => {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
};
const gone = (id) => assert.rejects(client.responses.retrieve(id), OpenAI.NotFoundError);

// An answer, a stream, the next turn.
const answer = await client.responses.create({ ...options, input: "What is 2+2?" });
assert.equal(answer.status, "completed");
assert.ok(answer.output_text);
const events = await collect(await client.responses.create({ ...options, input: "What is 2+2?", stream: true }));
assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
const deltas = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
assert.equal(deltas.join(""), answer.output_text);
const next = await client.responses.create({ ...options, input: "And 3+3?", previous_response_id: answer.id });
assert.ok(next.usage.input_tokens > answer.usage.total_tokens);
assert.deepEqual((await client.responses.retrieve(next.id)).output, next.output);
const items = await collect(client.responses.inputItems.list(next.id, { order: "asc", limit: 1 }));
assert.deepEqual(items.map((item) => item.role), ["user", "assistant", "user"]);

// A streamed call of a tool, and its result.
const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"],
  additionalProperties: false,
};
const stream = client.responses.stream({
  ...options,
  input: "How is the weather in Bern?",
  tools: [{ type: "function", name: "weather", parameters, strict: true }],
  tool_choice: { type: "function", name: "weather" },
  parallel_tool_calls: false,
});
const call = (await stream.finalResponse()).output[0];
assert.equal(call.type, "function_call");
assert.deepEqual(Object.keys(JSON.parse(call.arguments)), ["city"]);
const told = await client.responses.create({
  ...options,
  store: false,
  input: [
    { role: "user", content: "How is the weather in Bern?" },
    { type: "function_call", call_id: call.call_id, name: call.name, arguments: call.arguments },
    { type: "function_call_output", call_id: call.call_id, output: "sunny" },
  ],
});
assert.ok(told.output_text);
const format = { type: "json_schema", name: "city", schema: parameters, strict: true };
const typed = await client.responses.create({ ...options, input: "Name a city.", text: { format } });
assert.deepEqual(Object.keys(JSON.parse(typed.output_text)), ["city"]);

// A response that is deleted, or was not stored, is not there; one in the background ends when it is cancelled.
await gone(told.id);
// openai 4 has `del`, and cannot cancel
await (client.responses.delete ?? client.responses.del).call(client.responses, next.id);
await gone(next.id);
// The server's own ignore_eos: it does not end by itself.
const story = { ...options, input: "Tell me a long story.", max_output_tokens: 1500, ignore_eos: true };
const running = await client.responses.create({ ...story, background: true });
const cancelled = await client.post(`/responses/${running.id}/cancel`);
assert.equal(cancelled.status, "cancelled");

// Files, and a batch of two requests.
const lines = ["What is 2+2?", "What is 3+3?"].map((content, i) => ({
  custom_id: `question-${i}`,
  method: "POST",
  url: "/v1/chat/completions",
  body: { model: options.model, max_tokens: 24, temperature: 0, messages: [{ role: "user", content }] },
}));
const content = Buffer.from(lines.map((line) => JSON.stringify(line)).join("\n"));
const file = await client.files.create({ file: await toFile(content, "requests.jsonl"), purpose: "batch" });
assert.equal(file.bytes, content.length);
const asked = { input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" };
let batch = await client.batches.create(asked);
while (["validating", "in_progress", "finalizing"].includes(batch.status)) {
  await setTimeout(100);
  batch = await client.batches.retrieve(batch.id);
}
assert.equal(batch.status, "completed");
assert.deepEqual([batch.request_counts.completed, batch.request_counts.failed], [2, 0]);
const results = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map(JSON.parse);
assert.deepEqual(results.map((each) => each.custom_id).sort(), ["question-0", "question-1"]);
assert.ok((await collect(client.batches.list({ limit: 1 }))).some((each) => each.id === batch.id));
assert.ok((await collect(client.files.list())).some((each) => each.id === file.id));
assert.ok((await (client.files.delete ?? client.files.del).call(client.files, file.id)).deleted);

console.log(VERSION, answer.output_text, call.arguments, told.output_text);
