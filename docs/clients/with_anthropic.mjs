// @anthropic-ai/sdk of npm against a server: an answer, a stream, a streamed call of a tool, thinking,
// tokens, models, an error.
// node docs/clients/with_anthropic.mjs [URL]

import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";

const url = process.argv[2] ?? "http://127.0.0.1:11611";
const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const options = { model: "tinyllama-1.1b-chat.Q4_K_M", max_tokens: 64, temperature: 0 };
const question = { ...options, messages: [{ role: "user", content: "What is 2+2?" }] };

const reply = await client.messages.create(question);
const [block] = reply.content;
assert.equal(block.type, "text");
assert.equal(reply.stop_reason, "end_turn");

const texts = [];
const stream = client.messages.stream(question).on("text", (text) => texts.push(text));
const streamed = await stream.finalMessage();
assert.equal(texts.join(""), block.text);
assert.equal(streamed.usage.output_tokens, reply.usage.output_tokens);
assert.equal(streamed.usage.input_tokens, 1); // all but the last token came from the cache

const weather = {
  name: "weather",
  description: "The weather of a city.",
  input_schema: {
    type: "object",
    properties: { city: { type: "string", maxLength: 20 }, unit: { enum: ["C", "F"] } },
    required: ["city", "unit"],
    additionalProperties: false,
  },
};
const messages = [{ role: "user", content: "How is the weather in Bern?" }];
const parts = [];
const call = await client.messages
  .stream({ ...options, messages, tools: [weather], tool_choice: { type: "any", disable_parallel_tool_use: true } })
  .on("inputJson", (part) => parts.push(part))
  .finalMessage();
const [use] = call.content;
assert.equal(call.stop_reason, "tool_use");
assert.equal(use.name, "weather");
assert.deepEqual(JSON.parse(parts.join("")), use.input);
assert.deepEqual(Object.keys(use.input), ["city", "unit"]);
messages.push({ role: "assistant", content: call.content });
messages.push({ role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "Sunny, 25 degrees." }] });
const last = await client.messages.create({ ...options, messages, tools: [weather] });
assert.ok(last.content.length);
const { input_tokens } = await client.messages.countTokens({ model: options.model, messages, tools: [weather] });
assert.equal(last.usage.input_tokens + last.usage.cache_read_input_tokens, input_tokens);

const asked = { ...question, model: "thinker", thinking: { type: "enabled", budget_tokens: 4 } };
const [thought, said] = (await client.messages.create(asked)).content;
assert.deepEqual([thought.type, said.type], ["thinking", "text"]);
const thoughts = [];
const thinking = client.messages.stream(asked).on("thinking", (delta) => thoughts.push(delta));
assert.deepEqual((await thinking.finalMessage()).content, [thought, said]);
assert.equal(thoughts.join(""), thought.thinking);

assert.equal((await client.models.retrieve("thinker")).id, "thinker");
const names = [];
for await (const model of client.models.list({ limit: 1 })) names.push(model.id);
assert.ok(names.includes(options.model));
await assert.rejects(client.messages.create({ ...question, model: "nobody" }), (error) => {
  assert.ok(error instanceof Anthropic.NotFoundError);
  assert.equal(error.error.error.type, "not_found_error");
  return true;
});
console.log(block.text, use.name, use.input);
