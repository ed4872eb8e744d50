// The AI SDK of Vercel against a server: answers, streams, tools in several steps, objects, vectors, errors, an abort.
// Each through the provider of OpenAI's Responses API, that of its chat completions, and the one for compatible servers.
// node docs/clients/with_ai_sdk.mjs [URL]

import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateObject, generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

const url = process.argv[2] ?? "http://127.0.0.1:11611";
const name = "tinyllama-1.1b-chat.Q4_K_M";
const own = { baseURL: `${url}/v1`, apiKey: "none" };
const others = { ...own, name: "offgridLlama", includeUsage: true, supportsStructuredOutputs: true };
const openai = createOpenAI(own);
const compatible = createOpenAICompatible(others);
// The SDK has no name for the server's ignore_eos, with which an answer does not end by itself.
const endlessly = (path, options) =>
  fetch(path, { ...options, body: JSON.stringify({ ...JSON.parse(options.body), ignore_eos: true }) });
const endless = createOpenAI({ ...own, fetch: endlessly });
const question = { temperature: 0, maxOutputTokens: 64, maxRetries: 0, prompt: "What is 2+2?" };
const schema = z.object({ name: z.string().max(20), age: z.number().int().min(0).max(120) });

async function answers(model) {
  const answer = await generateText({ ...question, model });
  assert.ok(answer.text);
  assert.equal(answer.finishReason, "stop");
  const { inputTokens, outputTokens, totalTokens } = answer.usage;
  assert.ok(inputTokens > 0 && outputTokens > 0);
  assert.equal(totalTokens, inputTokens + outputTokens);

  const result = streamText({ ...question, model });
  let text = "";
  for await (const delta of result.textStream) text += delta;
  assert.equal(text, answer.text);
  assert.equal(await result.finishReason, "stop");
  assert.equal((await result.usage).outputTokens, outputTokens);

  const cut = await generateText({ ...question, model, instructions: "Be brief.", maxOutputTokens: 2 });
  assert.equal(cut.finishReason, "length");
  return answer.text;
}

// The first step has to call the tool; the SDK calls it, and sends its result with the next step.
async function steps(model) {
  const cities = [];
  const asked = {
    ...question,
    model,
    prompt: "How is the weather in Bern?",
    tools: {
      weather: tool({
        description: "The weather of a city.",
        inputSchema: z.object({ city: z.string().max(20), unit: z.enum(["C", "F"]) }),
        execute: ({ city, unit }) => {
          cities.push(city);
          return { city, temperature: 25, unit };
        },
      }),
    },
    providerOptions: { openai: { parallelToolCalls: false }, offgridLlama: { parallel_tool_calls: false } },
    stopWhen: isStepCount(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
  };
  const whole = await generateText(asked);
  assert.equal(whole.steps.length, 2);
  assert.equal(whole.steps[0].finishReason, "tool-calls");
  const [call] = whole.steps[0].toolCalls;
  assert.equal(call.toolName, "weather");
  assert.equal(whole.steps[0].toolResults[0].output.temperature, 25);
  assert.ok(whole.text);

  const stream = streamText(asked);
  const parts = [];
  for await (const part of stream.stream) parts.push(part);
  const count = (type) => parts.filter((part) => part.type === type).length;
  assert.equal(count("error"), 0, JSON.stringify(parts.filter((part) => part.type === "error")));
  assert.equal(count("tool-result"), 1);
  assert.equal(count("finish-step"), 2);
  const input = parts.filter((part) => part.type === "tool-input-delta").map((part) => part.delta);
  assert.deepEqual(JSON.parse(input.join("")), call.input);
  assert.equal(await stream.text, whole.text);
  assert.equal(cities.length, 2);
  return call.input;
}

async function objects(model) {
  const prompt = "Jason is 25 years old.";
  const { object } = await generateObject({ ...question, model, schema, prompt });
  const { output } = await generateText({ ...question, model, output: Output.object({ schema }), prompt });
  assert.deepEqual(schema.parse(object), output);
  const stream = streamText({ ...question, model, output: Output.object({ schema }), prompt });
  const partial = [];
  for await (const each of stream.partialOutputStream) partial.push(each);
  assert.deepEqual(partial.at(-1), object);
  return object;
}

async function failures(endless, unknown) {
  await assert.rejects(generateText({ ...question, model: unknown }), (error) => {
    assert.ok(APICallError.isInstance(error), error);
    assert.deepEqual([error.statusCode, error.isRetryable, error.data.error.code], [404, false, "model_not_found"]);
    return true;
  });
  const stopping = new AbortController();
  const long = { ...question, model: endless, maxOutputTokens: 4000, abortSignal: stopping.signal };
  const kinds = [];
  for await (const part of streamText(long).stream) {
    kinds.push(part.type);
    if (part.type === "text-delta") stopping.abort();
  }
  assert.equal(kinds.at(-1), "abort");
  await idle();
}

// The server ends what its client has left.
async function idle() {
  for (let tries = 0; tries < 50; tries++) {
    const { requests } = await (await fetch(`${url}/v1/models/${name}`)).json();
    if (requests === 0) return;
    await setTimeout(100);
  }
  assert.fail("the request still runs");
}

for (const [kind, provider, goesOn] of [
  ["responses", openai, endless],
  ["chat", openai.chat, endless.chat],
  ["compatible", compatible, createOpenAICompatible({ ...others, fetch: endlessly })],
]) {
  const model = provider(name);
  console.log(kind, await answers(model), await steps(model), await objects(model));
  await failures(goesOn(name), provider("none"));
}

const first = await generateText({ ...question, model: openai(name) });
const { responseId } = first.providerMetadata.openai;
const next = await generateText({
  ...question,
  model: openai(name),
  prompt: "And 3+3?",
  providerOptions: { openai: { previousResponseId: responseId } },
});
assert.ok(next.usage.inputTokens > first.usage.totalTokens);

const values = ["a cat", "a dog"];
for (const model of [openai.embeddingModel(name), compatible.embeddingModel(name)]) {
  const { embeddings, usage } = await embedMany({ model, values });
  assert.equal(embeddings.length, 2);
  assert.ok(usage.tokens > 0);
}
