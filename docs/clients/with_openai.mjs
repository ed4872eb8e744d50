// openai of npm against a server: an answer, a stream, a streamed call of a tool, vectors, an error.
// node docs/clients/with_openai.mjs [URL]

import assert from "node:assert/strict";

import OpenAI from "openai";
import { VERSION } from "openai/version";

const url = process.argv[2] ?? "http://127.0.0.1:11611";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const options = { model: "tinyllama-1.1b-chat.Q4_K_M", max_tokens: 64, temperature: 0 };
const question = { ...options, messages: [{ role: "user", content: "What is 2+2?" }] };

const reply = await client.chat.completions.create(question);
const text = reply.choices[0].message.content;
assert.ok(text);
console.log(text);

const pieces = [];
let usage = null;
const asked = { ...question, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(asked)) {
  pieces.push(chunk.choices[0]?.delta.content ?? "");
  usage = chunk.usage ?? usage;
}
assert.equal(pieces.join(""), text);
assert.equal(usage.completion_tokens, reply.usage.completion_tokens);

const weather = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather of a city.",
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 20 }, unit: { enum: ["C", "F"] } },
      required: ["city", "unit"],
      additionalProperties: false,
    },
  },
};
const chat = client.chat.completions.stream ? client.chat : client.beta.chat; // openai 4 has it in beta
const stream = chat.completions.stream({
  ...options,
  messages: [{ role: "user", content: "How is the weather in Bern?" }],
  tools: [weather],
  tool_choice: "required",
  parallel_tool_calls: false,
});
const ended = [];
stream.on("tool_calls.function.arguments.done", (event) => ended.push(event.arguments));
const [choice] = (await stream.finalChatCompletion()).choices;
assert.equal(choice.finish_reason, "tool_calls");
assert.equal(choice.message.tool_calls.length, 1);
const [call] = choice.message.tool_calls;
assert.equal(call.function.name, "weather");
assert.deepEqual(ended, [call.function.arguments]);
const { city, unit, ...rest } = JSON.parse(call.function.arguments);
assert.ok(typeof city === "string" && city.length <= 20, city);
assert.ok(["C", "F"].includes(unit), unit);
assert.deepEqual(rest, {});

// The client asks for base64 where nothing else is said, and makes numbers of it.
const texts = { model: options.model, input: ["a cat", "a dog"] };
const vectors = (await client.embeddings.create(texts)).data.map((each) => each.embedding);
const numbers = (await client.embeddings.create({ ...texts, encoding_format: "float" })).data;
assert.equal(vectors.length, 2);
for (const [i, { embedding }] of numbers.entries()) {
  assert.equal(vectors[i].length, embedding.length);
  assert.ok(embedding.every((value, at) => Math.abs(value - vectors[i][at]) < 1e-3));
}

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.ok(names.includes(options.model), names);

await assert.rejects(client.chat.completions.create({ ...question, model: "none", stream: true }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError, error);
  assert.deepEqual([error.status, error.code, error.param], [404, "model_not_found", "model"]);
  return true;
});
await assert.rejects(client.chat.completions.create({ ...question, temperature: 9 }), OpenAI.BadRequestError);

console.log(VERSION, call.function.name, call.function.arguments);
