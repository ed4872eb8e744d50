// The chat page. It sends each question to /v1/chat/completions, and shows the answer as it comes.
//
// Text never becomes HTML: every node is built here, so markup in a question or an answer stays text.
// `messages` is the conversation, with finished turns only. A `Turn` is one question with its answer.

import { Attachments, content as withAttachments, preview, record } from "./attachments.js";

const MODELS = "v1/models";
const COMPLETIONS = "v1/chat/completions";
const LOADING = "loading the model ...";
const POLL_MS = 1000; // time between two requests for the status of a loading model

const byId = (id) => document.getElementById(id);
const [scroller, transcript, composer, input, send, stop] =
  ["scroller", "transcript", "composer", "input", "send", "stop"].map(byId);
const [model, modelStatus, settings, system, temperature, maxTokens, apiKey, keyNote] =
  ["model", "model-status", "settings", "system", "temperature", "max-tokens", "api-key", "key-note"].map(byId);

const [attach, attachNote, files, recording] = ["attach", "attach-note", "files", "record"].map(byId);

let messages = []; // finished questions and answers, which the model gets with the next question
let current = null; // the turn that waits for its answer
let following = true; // whether the reader is at the end of the transcript

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.textContent = text;
  return node;
}

// Storage of the browser ----------------------------------------------------------------------------------------------

/** Return the value of a name in `storage()`, or "". A browser may refuse to store anything. */
function recall(storage, name) {
  try {
    return storage().getItem(`offgrid-llama.${name}`) ?? "";
  } catch {
    return "";
  }
}

function remember(storage, name, value) {
  try {
    storage().setItem(`offgrid-llama.${name}`, value);
  } catch {
    // The value is lost when the page closes.
  }
}

const local = () => window.localStorage;
const session = () => window.sessionStorage;

// The server ----------------------------------------------------------------------------------------------------------

/** An error whose message the reader sees. */
class Failure extends Error {}

/** Return a function that turns the browser's errors into a Failure. An AbortController's error stays as it is. */
const fail = (message) => (error) => {
  throw error.name === "AbortError" ? error : new Failure(message);
};

/** Fetch a path of the server. An error status becomes a Failure. */
async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = apiKey.value.trim();
  if (key) headers.set("Authorization", `Bearer ${key}`);
  const response = await fetch(path, { ...options, headers }).catch(fail("The server cannot be reached."));
  if (response.status === 401) askForKey(Boolean(key));
  if (!response.ok) throw await refusal(response);
  return response;
}

/** Return the Failure for a response with an error status. */
async function refusal(response) {
  let reason = response.statusText;
  try {
    reason = (await response.json()).error.message || reason;
  } catch {
    // The body is not the server's own: the status has to do.
  }
  return new Failure(`HTTP ${response.status}${reason && `: ${reason}`}`);
}

/** Yield the data of each event in a stream of bytes (text/event-stream). The bytes may be cut anywhere. */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = ""; // the line whose end has not come yet
  let data = [];
  try {
    for (;;) {
      const part = await reader.read().catch(fail("The connection was lost."));
      if (part.done) return; // an event without a blank line behind it was cut off, and is dropped
      const lines = (rest + decoder.decode(part.value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop(); // may end with a CR, and the next byte may be its LF
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // tells the server that nothing more will be read
  }
}

function askForKey(refused) {
  keyNote.textContent = refused ? "The server does not take this API key." : "The server needs an API key.";
  keyNote.hidden = false;
  settings.open = true;
  apiKey.focus();
}

// The models ----------------------------------------------------------------------------------------------------------

const BESIDE = { loading: "loading", unloaded: "not loaded", failed: "failed" };
const STATUS = { loading: "loading ...", unloaded: "not loaded: the next message loads it", failed: "failed to load" };

let states = new Map(); // by the model's id
let takers = new Set(); // the models that take pictures or sound
let listing = null;
let timer = 0;

/** Request the models and show them. Return null, or the error, which is shown as well. */
function refreshModels() {
  listing ??= listModels().finally(() => {
    listing = null;
  });
  return listing;
}

async function listModels() {
  clearTimeout(timer);
  let failure = null;
  try {
    const { data } = await (await request(MODELS, { cache: "no-store" })).json();
    const models = data.filter((entry) => !entry.alias_of);
    states = new Map(models.map(({ id, status }) => [id, status ?? "ready"]));
    takers = new Set(models.filter(({ has_projector: has }) => has).map(({ id }) => id));
    showModels();
  } catch (error) {
    failure = error;
    modelStatus.textContent = error.message;
  }
  if (!failure && (states.get(model.value) === "loading" || current?.waiting)) refreshSoon();
  return failure;
}

function refreshSoon() {
  clearTimeout(timer);
  timer = setTimeout(refreshModels, POLL_MS);
}

/** Update the list from `states`. Options that are right stay as they are, because the list may be open. */
function showModels() {
  const known = new Map([...model.options].map((option) => [option.value, option]));
  const options = [...states.keys()].map((id) => known.get(id) ?? new Option(id, id));
  if (options.length !== known.size || options.some((option, i) => option !== model.options[i])) {
    const chosen = [model.value, recall(local, "model")].find((id) => states.has(id));
    const ready = [...states.keys()].find((id) => states.get(id) === "ready");
    model.replaceChildren(...options);
    model.value = chosen ?? ready ?? options[0]?.value ?? "";
  }
  showStates();
}

function showStates() {
  for (const option of model.options) {
    const beside = option.value === model.value ? undefined : BESIDE[states.get(option.value)];
    const text = beside ? `${option.value} (${beside})` : option.value;
    if (option.text !== text) option.text = text;
  }
  const text = states.size ? (STATUS[states.get(model.value)] ?? "") : "The server has no model.";
  if (modelStatus.textContent !== text) modelStatus.textContent = text;
  attach.hidden = !takers.has(model.value);
  current?.draw();
}

// Text to nodes -------------------------------------------------------------------------------------------------------

/** Return the blocks of a text as {kind, text}: "p", "h3", or "code" with its language as `label`. */
export function blocks(text) {
  const found = [];
  let code = null; // the open fence
  let lines = []; // lines of the open paragraph
  const close = () => {
    if (lines.length) found.push({ kind: "p", text: lines.join("\n") });
    lines = [];
  };
  for (const line of text.split(/\r?\n/)) {
    const [, indent, fence, info] = /^(\s*)(`{3,}|~{3,})([^`]*)$/.exec(line) ?? [];
    const [, heading] = /^#{1,6}\s+(.*\S)\s*$/.exec(line) ?? [];
    if (code) {
      if (fence?.startsWith(code.fence) && !info.trim()) {
        found.push({ kind: "code", label: code.label, text: code.lines.join("\n") });
        code = null;
      } else {
        const blank = /^\s*/.exec(line)[0].length;
        code.lines.push(line.slice(Math.min(blank, code.indent)));
      }
    } else if (fence) {
      close();
      code = { fence, indent: indent.length, label: info.trim().split(/\s+/)[0], lines: [] };
    } else if (heading) {
      close();
      found.push({ kind: "h3", text: heading });
    } else if (line.trim()) {
      lines.push(line);
    } else {
      close();
    }
  }
  close();
  if (code) found.push({ kind: "code", label: code.label, text: code.lines.join("\n") }); // the fence is not closed yet
  return found;
}

const INLINE = /(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*/gs;

/** Return the nodes of a paragraph: text, `code`, and **bold**, which may have code in it. */
function inline(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const [all, , code, bold] = match;
    nodes.push(text.slice(end, match.index));
    if (code === undefined) {
      const strong = make("strong");
      strong.append(...inline(bold));
      nodes.push(strong);
    } else {
      nodes.push(make("code", "", /^ .*\S.* $/s.test(code) ? code.slice(1, -1) : code));
    }
    end = match.index + all.length;
  }
  nodes.push(text.slice(end));
  return nodes;
}

function codeBlock() {
  const node = make("div", "code");
  const top = make("div");
  const pre = make("pre");
  const button = make("button", "", "Copy");
  button.type = "button";
  button.addEventListener("click", () => copy(pre.firstChild, button));
  pre.tabIndex = 0; // lets keys scroll it
  pre.append(make("code"));
  top.append(make("span"), button);
  node.append(top, pre);
  return node;
}

async function copy(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // The clipboard works on secure addresses only; a selection can be copied on any.
    getSelection().selectAllChildren(code);
    if (!document.execCommand("copy")) return;
  }
  button.textContent = "Copied";
  setTimeout(() => {
    button.textContent = "Copy";
  }, 1500);
}

const drawn = new WeakMap(); // the block that each node shows

/** Make `parent` show a text. Blocks that have not changed keep their nodes, and so the reader's selection. */
function render(parent, text) {
  const wanted = blocks(text);
  wanted.forEach((block, i) => {
    let node = parent.children[i];
    const before = node && drawn.get(node);
    if (before?.kind !== block.kind) {
      const fresh = block.kind === "code" ? codeBlock() : make(block.kind);
      if (node) node.replaceWith(fresh);
      else parent.append(fresh);
      node = fresh;
    } else if (before.text === block.text && before.label === block.label) {
      return;
    }
    drawn.set(node, block);
    if (block.kind === "code") {
      node.querySelector("span").textContent = block.label || "code";
      node.querySelector("code").textContent = block.text;
      node.querySelector("pre").setAttribute("aria-label", block.label ? `Code, ${block.label}` : "Code");
    } else {
      node.replaceChildren(...inline(block.text));
    }
  });
  while (parent.children.length > wanted.length) parent.lastElementChild.remove();
}

// Scrolling -----------------------------------------------------------------------------------------------------------

const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 24;

function follow() {
  if (following) scroller.scrollTop = scroller.scrollHeight;
}

function look() {
  following = atEnd();
}

// A turn --------------------------------------------------------------------------------------------------------------

/** One question and its answer. */
class Turn {
  constructor(question, attachments) {
    this.question = question;
    this.attachments = attachments;
    this.content = "";
    this.reasoning = "";
    this.tokens = 0; // chunks so far, and at the end the server's count
    this.first = 0; // times of the first and the last chunk, in ms
    this.last = 0;
    this.finish = null;
    this.ending = null; // how the answer ended; null until then
    this.touched = false; // whether the reader opened or closed the reasoning
    this.frame = 0;
    this.controller = new AbortController();

    this.node = make("div", "turn running");
    const asked = make("article", "user", question);
    asked.setAttribute("aria-label", "You");
    asked.prepend(...attachments.map(preview));
    this.answer = make("article", "answer");
    this.answer.setAttribute("aria-label", "Answer");
    this.who = make("p", "who");
    this.body = make("div", "text");
    this.meta = make("p", "meta");
    this.meta.setAttribute("aria-live", "off");
    this.details = make("details", "reasoning");
    this.details.hidden = true;
    this.summary = make("summary");
    this.summary.addEventListener("click", () => {
      this.touched = true;
    });
    this.thought = make("div", "thought");
    this.details.append(this.summary, this.thought);
    this.aloud = make("button", "aloud", "Read aloud");
    this.aloud.type = "button";
    this.aloud.hidden = true;
    this.aloud.addEventListener("click", () => readAloud(this.content));
    this.answer.append(this.who, this.details, this.body, this.meta, this.aloud);
    this.node.append(asked, this.answer);
  }

  get waiting() {
    return this.ending === null && !this.tokens;
  }

  /** Add a chunk of the stream. */
  take(chunk) {
    if (chunk.error) throw new Failure(chunk.error.message || "The server broke off the answer.");
    const choice = chunk.choices?.[0];
    const { content, reasoning_content: reasoning } = choice?.delta ?? {};
    if (content || reasoning) {
      this.last = performance.now();
      this.first ||= this.last;
      this.tokens += 1;
      this.content += content ?? "";
      this.reasoning += reasoning ?? "";
    }
    this.finish = choice?.finish_reason ?? this.finish;
    this.tokens = chunk.usage?.completion_tokens ?? this.tokens;
    this.draw();
  }

  /** End the answer: complete, stopped by the reader, or broken off by a failure. */
  end(failure) {
    if (this.controller.signal.aborted) this.ending = "stopped";
    else if (failure) this.ending = "broken off";
    else if (this.finish === "length") this.ending = "cut off: max tokens, or the context is full";
    else this.ending = this.content ? "" : "no answer";
    this.node.classList.remove("running");
    this.node.classList.toggle("unanswered", !this.content);
    if (failure && !this.content && !this.reasoning) this.answer.hidden = true;
    if (failure) this.node.append(make("p", "error", failure.message));
    this.aloud.hidden = !this.content || !window.speechSynthesis?.getVoices().length;
    this.show();
  }

  /** Show the answer so far at the next frame of the screen. */
  draw() {
    this.frame ||= requestAnimationFrame(() => this.show());
  }

  show() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    if (this.reasoning) {
      this.details.hidden = false;
      this.summary.textContent = this.content || this.ending !== null ? "Reasoning" : "Reasoning ...";
      if (!this.touched) this.details.open = !this.content;
      if (this.thought.textContent !== this.reasoning) this.thought.textContent = this.reasoning;
    }
    render(this.body, this.content);
    this.meta.textContent = this.line();
    this.meta.hidden = !this.meta.textContent;
    follow();
  }

  /** Return the line below the answer: "23 tokens, 81.2 tokens/s". */
  line() {
    const parts = [];
    const seconds = (this.last - this.first) / 1000;
    if (this.tokens) parts.push(`${this.tokens} ${this.tokens === 1 ? "token" : "tokens"}`);
    if (this.tokens > 1 && seconds > 0.02) parts.push(`${((this.tokens - 1) / seconds).toFixed(1)} tokens/s`);
    if (this.waiting) parts.push(states.get(this.who.textContent) === "loading" ? LOADING : "waiting ...");
    if (this.ending) parts.push(this.ending);
    return parts.join(", ");
  }
}

/** Read a text aloud, in place of what is being read; a second time ends that. */
function readAloud(text) {
  const { speechSynthesis } = window;
  const speaking = speechSynthesis.speaking;
  speechSynthesis.cancel();
  if (!speaking) speechSynthesis.speak(new SpeechSynthesisUtterance(text));
}

/** Return the body of a request: the settings, the conversation so far, and the question. */
function asRequest(name, said, question) {
  const prompt = system.value.trim();
  const body = {
    model: name,
    messages: [
      ...(prompt ? [{ role: "system", content: prompt }] : []),
      ...said,
      { role: "user", content: question },
    ],
    stream: true,
    stream_options: { include_usage: true },
  };
  if (!Number.isNaN(temperature.valueAsNumber)) body.temperature = temperature.valueAsNumber;
  if (!Number.isNaN(maxTokens.valueAsNumber)) body.max_tokens = maxTokens.valueAsNumber;
  return JSON.stringify(body);
}

/** Get the answer to a turn from the server. */
async function answer(turn, said) {
  if (!model.value) {
    const failure = await refreshModels();
    if (failure) throw failure;
    if (!model.value) throw new Failure("The server has no model.");
  }
  turn.who.textContent = model.value;
  turn.draw();
  refreshSoon();
  const response = await request(COMPLETIONS, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: asRequest(model.value, said, withAttachments(turn.question, turn.attachments)),
    signal: turn.controller.signal,
  });
  let done = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") done = true;
    else turn.take(JSON.parse(data));
  }
  if (!done) throw new Failure("The connection ended before the answer did.");
}

/** Ask a question. A partial answer is kept. Without any answer the question goes back into the input. */
async function ask(question, attachments) {
  const said = messages;
  const turn = new Turn(question, attachments);
  current = turn;
  for (const node of transcript.querySelectorAll(".given-back")) node.remove();
  transcript.append(turn.node);
  following = true;
  turn.show();
  showRunning();
  let failure = null;
  try {
    await answer(turn, said);
  } catch (error) {
    if (!turn.controller.signal.aborted) failure = error;
  }
  turn.end(failure);
  if (said !== messages) return; // the reader began a new chat
  if (turn.content) {
    const asked = withAttachments(question, attachments);
    said.push({ role: "user", content: asked }, { role: "assistant", content: turn.content });
  } else if (failure || turn.controller.signal.aborted) {
    turn.node.classList.toggle("given-back", !turn.reasoning);
    type([question, input.value].filter(Boolean).join("\n\n"));
    attached.put([...attachments, ...attached.list]);
  }
  current = null;
  showRunning();
  refreshModels();
}

// Actions of the reader -----------------------------------------------------------------------------------------------

/** Put a text into the input. */
function type(text) {
  input.value = text;
  grow();
}

function grow() {
  input.rows = Math.min(8, input.value.split("\n").length); // for browsers without field-sizing
}

function showRunning() {
  const focused = document.activeElement;
  send.hidden = Boolean(current);
  stop.hidden = !current;
  transcript.setAttribute("aria-busy", String(Boolean(current))); // a screen reader waits until the answer is whole
  if (focused === send && current) stop.focus();
  if (focused === stop && !current) input.focus();
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const question = input.value.trim();
  if (current || !(question || attached.list.length)) return;
  type("");
  ask(question, attached.take());
});

/** Tell why a file was not taken; without a reason, tell nothing any more. */
function tellRefused(reason = "") {
  attachNote.textContent = reason;
  attachNote.hidden = !reason;
}

const attached = new Attachments(byId("attached"), tellRefused, () => {
  composer.classList.toggle("has-attached", attached.list.length > 0);
});

/** Attach files, if the model takes any. */
async function attachFiles(given) {
  tellRefused(attach.hidden ? "This model takes no pictures and no sound." : "");
  if (!attach.hidden) await attached.add(given);
  input.focus();
}

files.addEventListener("change", async () => {
  await attachFiles([...files.files]);
  files.value = "";
});

input.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  attachFiles([...event.clipboardData.files]);
});

for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault(); // otherwise the browser opens the file in place of the page
    if (kind === "drop") attachFiles([...event.dataTransfer.files]);
  });
}

let endRecording = null;

recording.addEventListener("click", async () => {
  const end = endRecording;
  endRecording = null;
  try {
    if (end) await attachFiles([await end()]);
    else endRecording = await record();
  } catch {
    tellRefused("The microphone cannot be used.");
  }
  recording.setAttribute("aria-pressed", String(Boolean(endRecording)));
});

input.addEventListener("input", grow);
input.addEventListener("keydown", (event) => {
  // An input method's key has the code 229, also where isComposing has ended already.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  composer.requestSubmit();
});

stop.addEventListener("click", () => current?.controller.abort());

byId("new-chat").addEventListener("click", () => {
  current?.controller.abort();
  current = null;
  messages = [];
  attached.put([]);
  transcript.replaceChildren();
  following = true;
  showRunning();
  input.focus();
});

scroller.addEventListener("scroll", look, { passive: true });
transcript.addEventListener("toggle", look, true); // of the reasoning
new ResizeObserver(follow).observe(scroller);

model.addEventListener("focus", refreshModels);
model.addEventListener("pointerdown", refreshModels);
model.addEventListener("change", () => {
  remember(local, "model", model.value);
  showStates();
  refreshModels();
});

byId("settings-form").addEventListener("submit", (event) => event.preventDefault());
apiKey.addEventListener("input", () => {
  remember(session, "key", apiKey.value);
  keyNote.hidden = true;
});
apiKey.addEventListener("change", refreshModels);
settings.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  settings.open = false;
  byId("settings-toggle").focus();
});
document.addEventListener("pointerdown", (event) => {
  if (settings.open && !settings.contains(event.target)) settings.open = false;
});

apiKey.value = recall(session, "key");
grow();
refreshModels();
