// ollama of npm against a server: an answer, a stream, a tool, thinking, structured output, vectors,
// models, an abort, errors.
// node docs/clients/with_ollama.mjs [URL]

import assert from "node:assert/strict";

import { Ollama } from "ollama";

const url = process.argv[2] ?? "http://127.0.0.1:11611";
const client = new Ollama({ host: url });
const model = "smollm2:135m";
const options = { temperature: 0, num_predict: 64 };
const messages = [{ role: "user", content: "What is 2+2?" }];

const reply = await client.chat({ model, messages, options });
const text = reply.message.content;
assert.ok(text);
console.log(text);

const pieces = [];
let last = null;
for await (const part of await client.chat({ model, messages, options, stream: true })) {
  pieces.push(part.message.content);
  last = part;
}
assert.equal(pieces.join(""), text);
assert.equal(last.done_reason, "stop");
assert.equal(last.eval_count, reply.eval_count);

const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "weather", description: "The weather of a city.", parameters } }];
const called = { role: "assistant", content: "", tool_calls: [{ function: { name: "weather", arguments: { city: "Bern" } } }] };
const result = { role: "tool", tool_name: "weather", content: "It is sunny in Bern." };
const asked = [{ role: "user", content: "How is the weather in Bern?" }, called, result];
assert.ok((await client.chat({ model, messages: asked, tools, options })).message.content);
const thought = await client.chat({ model: "thinker", messages, think: true, options });
assert.ok(thought.message.thinking);

const format = {
  type: "object",
  properties: { name: { type: "string", maxLength: 20 }, age: { type: "integer", minimum: 0, maximum: 120 } },
  required: ["name", "age"],
};
const told = await client.generate({ model, prompt: "Jason is 25 years old.", format, options });
console.log(JSON.parse(told.response));

const { embeddings } = await client.embed({ model, input: ["a cat", "a dog"] });
assert.equal(embeddings.length, 2);

const { models } = await client.list();
assert.ok(models.some((each) => each.model === "smollm2-135m-instruct:latest"));
const shown = await client.show({ model });
assert.ok(shown.capabilities.includes("completion"));
assert.ok((await client.ps()).models.length > 0);

// An answer that cannot end soon: numbers, a thousand at least.
const numbers = { type: "array", items: { type: "integer", minimum: 10, maximum: 99 }, minItems: 1000 };
const running = await client.chat({ model, messages, format: numbers, stream: true });
await assert.rejects(async () => {
  for await (const _ of running) running.abort(); // at the first piece
}, /abort/i);

const refused = (request, status) =>
  assert.rejects(request, (error) => {
    console.log(error.message);
    return error.status_code === status;
  });
await refused(client.chat({ model: "no-such-model", messages }), 404);
await refused(client.pull({ model: "smollm2:135m" }), 403);
await refused(client.delete({ model }), 403);
