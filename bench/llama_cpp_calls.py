"""Calls for llama-cpp-python and for the drop-in; `llama_cpp_side_by_side.py` compares what they give.

Each is an expression, by its name, in which these names are known: `llama_cpp`, `np`; `text`, a Llama with a context of 512
positions; `all`, one with `logits_all`; `vector`, one with `embedding`; `words`, one with only the vocabulary; `chat`, one
that the chat calls use; `new(**arguments)`, another one; and the helpers of `NAMES`.
"""

from __future__ import annotations

NAMES = '''
import itertools, json, pickle, tempfile, pathlib

def first(n, iterator):
    return list(itertools.islice(iterator, n))

def seen(do, *tell):
    """Do something, and return what else can be seen then."""
    do()
    return [each() for each in tell]

def collected(chunks):
    """Return a stream: its text, the keys of the first, a middle and the last chunk, and how it ends."""
    chunks = list(chunks)
    return {
        "text": "".join(each["choices"][0]["text"] for each in chunks), "first": chunks[0], "last": chunks[-1],
        "keys": sorted({key for each in chunks for key in each}),
    }

def talked(chunks):
    """Return a stream of a chat: its text and calls, its first and its last chunk."""
    chunks = list(chunks)
    deltas = [each["choices"][0]["delta"] for each in chunks]
    calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
    return {
        "text": "".join(delta.get("content") or "" for delta in deltas), "first": chunks[0], "last": chunks[-1],
        "arguments": "".join(call["function"]["arguments"] for call in calls),
        "names": sorted({call["function"]["name"] for call in calls}),
    }

PROMPT = "The capital of France is"
STORY = "Once upon a time there was a"
GREEDY = {"temperature": 0.0, "max_tokens": 16}
ASKED = [{"role": "user", "content": "What is 2+2?"}]
TALK = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Name a colour."},
]
YES = llama_cpp.LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}
FORCED = {"type": "function", "function": {"name": "weather"}}
NOBODY = {"type": "function", "function": {"name": "nobody"}}
CALL = {"tools": [WEATHER], "tool_choice": FORCED}
OLD = {"functions": [WEATHER["function"]], "function_call": {"name": "weather"}}

HI = "<|im_start|>user\\nSay hi<|im_end|>\\n<|im_start|>assistant\\n"
BERN = [{"role": "user", "content": "Weather in Bern?"}]
PARIS = [{"role": "user", "content": "Which city is the capital of France?"}]
JSON = {"type": "json_object", "schema": CITY}
OFF = {"top_k": -1, "top_p": 2.0, "min_p": -1.0, "typical_p": 1.0, "tfs_z": 0.5}
AFTER_NINE = llama_cpp.StoppingCriteriaList([lambda ids, _: len(ids) > 9])
COUNT = b"one two three one two three one two"

def answer(reply):
    return reply["choices"][0]["message"]["content"]

def of_state():
    """Return what a state holds, and what is written with it."""
    state = text.save_state()
    text.load_state(state)
    return [state.n_tokens, text.n_tokens, first(4, text.generate(text.tokenize(STORY.encode()), temp=0.0))]

def of_cache():
    """Return the same answer twice, and how many states are kept."""
    one = new()
    one.set_cache(llama_cpp.LlamaRAMCache())
    return [one(STORY, **GREEDY)["choices"], one(STORY, **GREEDY)["choices"], len(one.cache.cache_state)]

def of_eval():
    """Return the text so far after some tokens."""
    all.reset()
    all.eval(all.tokenize(PROMPT.encode()))
    return [all.n_tokens, all.input_ids[:all.n_tokens].tolist()]

def told(**more):
    return new(logits_all=True).create_chat_completion(ASKED, temperature=0, max_tokens=3, **more)

def lookup():
    return llama_cpp.llama_speculative.LlamaPromptLookupDecoding()

def louder(ids, logits):
    logits[text_tokens] += 1000.0
    return logits
text_tokens = text.tokenize(b" Berlin", add_bos=False)[:1]
'''

CALLS = {
    # Completions
    "completion": "text.create_completion(PROMPT, **GREEDY)",
    "call": "text(PROMPT, **GREEDY)",
    "by keyword": "text(prompt=PROMPT, **GREEDY)",
    "positional arguments": "text(PROMPT, None, 5, 0.0)",
    "default length": "text(STORY, temperature=0)",
    "tokens as the prompt": "text(text.tokenize(PROMPT.encode()), **GREEDY)",
    "one token": "text(PROMPT, max_tokens=1, temperature=0)",
    "no limit": "text(PROMPT, max_tokens=None, temperature=0, stop=['United'])",
    "a limit below zero": "text(PROMPT, max_tokens=-1, temperature=0, stop=['United'])",
    "a limit beyond the context": "text(PROMPT, max_tokens=100000, temperature=0, stop='United')",
    "echo": "text(PROMPT, echo=True, **GREEDY)",
    "a stop string": "text(PROMPT, stop=['.'], **GREEDY)",
    "stop as text": "text(PROMPT, stop='Paris', **GREEDY)",
    "several stop strings": "text(PROMPT, stop=['zzz', 'United'], max_tokens=20, temperature=0)",
    "a stop string over tokens": "text(PROMPT, stop=['.\\n\\nThe'], max_tokens=20, temperature=0)",
    "a suffix": "text(PROMPT, suffix=' END', **GREEDY)['choices'][0]['finish_reason']",
    "the model's name": "text(PROMPT, model='mine', **GREEDY)['model']",
    "repeat_penalty": "text(STORY, repeat_penalty=1.3, max_tokens=24, temperature=0)",
    "frequency_penalty": "text(STORY, frequency_penalty=0.5, presence_penalty=0.5, max_tokens=24, temperature=0)",
    "logit_bias": "text(PROMPT, logit_bias={text_tokens[0]: 100.0}, max_tokens=1, temperature=0)",
    "logit_bias by text": "text(PROMPT, logit_bias={str(text_tokens[0]): 100.0}, max_tokens=1, temperature=0)",
    "logits_processor": "text(PROMPT, logits_processor=llama_cpp.LogitsProcessorList([louder]), **GREEDY)",
    "stopping_criteria": "text(STORY, stopping_criteria=AFTER_NINE, **GREEDY)",
    "grammar": "text('Is snow white? ', grammar=YES, **GREEDY)",
    "top_k of 1": "text(PROMPT, top_k=1, max_tokens=8, temperature=1.0)",
    "odd values": "text(PROMPT, **OFF, **GREEDY)",
    "a seed twice": "text(STORY, seed=5, max_tokens=8) ['choices'] == text(STORY, seed=5, max_tokens=8)['choices']",
    "two seeds": "text(STORY, seed=5, max_tokens=16)['choices'] != text(STORY, seed=6, max_tokens=16)['choices']",
    "mirostat": "text(STORY, mirostat_mode=2, max_tokens=4)['usage']",
    "mirostat 1": "text(STORY, mirostat_mode=1, max_tokens=4)['usage']",
    "temperature below zero": "text(STORY, temperature=-1.0, max_tokens=4)['usage']",
    "unicode": "text('Grüße aus Köln, 你好 🌍:', **GREEDY)",
    "control tokens in the prompt": "text('<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n', **GREEDY)",
    "the end of a text": "new()(HI, max_tokens=60, temperature=0)['choices'][0]['finish_reason']",
    "stream": "collected(text(PROMPT, stream=True, **GREEDY))",
    "stream with a stop string": "collected(text(PROMPT, stream=True, stop=['United'], max_tokens=20, temperature=0))",
    "stream to its end": "collected(new()(HI, stream=True, max_tokens=60, temperature=0))",
    "logprobs": "all(PROMPT, logprobs=2, max_tokens=4, temperature=0)",
    "logprobs of one": "all(PROMPT, logprobs=1, max_tokens=3, temperature=0)",
    "stream of logprobs": "list(all(PROMPT, logprobs=2, max_tokens=3, temperature=0, stream=True))",
    # Errors
    "a prompt too long": "text('a b c ' * 400, **GREEDY)",
    "logprobs without logits_all": "text(PROMPT, logprobs=1, **GREEDY)",
    "no file": "llama_cpp.Llama('/nowhere.gguf', verbose=False)",
    "a suffix that is no text": "text(PROMPT, suffix=5, **GREEDY)",
    "a bad grammar": "llama_cpp.LlamaGrammar.from_json_schema('{', verbose=False)",
    "embed without embedding": "text.embed('a')",
    "an unknown chat format": "new(chat_format='nobody').create_chat_completion(ASKED, max_tokens=1)",
    "an unknown tool": "chat.create_chat_completion(ASKED, tools=[WEATHER], tool_choice=NOBODY)",
    "an unknown argument": "text(PROMPT, nobody=1)",
    "no prompt": "text()",
    # Tokens
    "tokenize": "text.tokenize(b'Hello, world')",
    "tokenize without bos": "text.tokenize(b'Hello, world', add_bos=False)",
    "tokenize control tokens": "text.tokenize(b'<|im_start|>user', special=True)",
    "tokenize them as text": "text.tokenize(b'<|im_start|>user', special=False)",
    "tokenize nothing": "text.tokenize(b'')",
    "detokenize": "text.detokenize(text.tokenize(b'Hello, world'))",
    "detokenize control tokens": "text.detokenize([1, 2], special=True)",
    "hide control tokens": "text.detokenize([1, 2])",
    "tokenizer": "text.tokenizer().encode('Hello')",
    "decode": "text.tokenizer().decode(text.tokenizer().encode('Hello'))",
    "special tokens": "[text.token_bos(), text.token_eos(), text.token_nl()]",
    "a vocabulary only": "[words.tokenize(b'Hello World'), words.detokenize(words.tokenize(b'Hello World'))]",
    "its control tokens": "[words.tokenize(b'a</s>', special=True), words.tokenize(b'a</s>')]",
    "numbers": "[text.n_ctx(), text.n_vocab(), text.n_embd(), text.n_batch, text.pooling_type()]",
    "metadata": "text.metadata",
    "the model in numbers": "[getattr(text._model, name)() for name in ('n_params', 'size', 'desc', 'n_ctx_train')]",
    "a token's text": "[text._model.token_get_text(5), text._model.token_get_attr(1)]",
    # Token by token
    "eval": "of_eval()",
    "scores": "[all.scores[:all.n_tokens].argmax(-1).tolist(), all.scores.shape[1], str(all.scores.dtype)]",
    "eval_logits": "[len(all.eval_logits), len(all.eval_logits[0])]",
    "eval_tokens": "list(all.eval_tokens)",
    "sample": "all.sample(temp=0.0)",
    "sample with an index": "all.sample(temp=0.0, idx=all.n_tokens - 1)",
    "generate": "first(8, text.generate(text.tokenize(STORY.encode()), temp=0.0))",
    "generate again": "first(8, text.generate(text.tokenize(STORY.encode()), temp=0.0))",
    "generate from a common beginning": "first(6, text.generate(text.tokenize(STORY.encode() + b' girl who'), temp=0.0))",
    "tokens after it": "text.n_tokens",
    "generate with a draft": "first(12, new(draft_model=lookup()).generate(text.tokenize(COUNT), temp=0.0))",
    "a state": "of_state()",
    "reset": "seen(text.reset, lambda: text.n_tokens)",
    "logits_to_logprobs": "llama_cpp.Llama.logits_to_logprobs(np.array([1.0, 2.0, 3.0])).tolist()",
    "longest_token_prefix": "llama_cpp.Llama.longest_token_prefix([1, 2, 3], [1, 2, 4])",
    "set_seed": "seen(lambda: text.set_seed(3), lambda: text._seed)",
    "a cache": "of_cache()",
    "a pickle": "pickle.loads(pickle.dumps(text))(PROMPT, **GREEDY)['choices']",
    "close": "seen(new().close)",
    # Embeddings
    "embed": "vector.embed('Hello World')",
    "embed several": "vector.embed(['Hello', 'World of wonders'])",
    "embed normalized": "vector.embed('Hello World', normalize=True)",
    "embed with a count": "vector.embed('Hello World', return_count=True)[1]",
    "create_embedding": "vector.create_embedding('Hello World')",
    "create_embedding of several": "vector.create_embedding(['a', 'b c'], model='mine')['usage']",
    "a text too long": "len(vector.embed('word ' * 700))",
    # Chats
    "chat": "chat.create_chat_completion(ASKED, temperature=0, max_tokens=16)",
    "chat with turns": "chat.create_chat_completion(TALK, temperature=0, max_tokens=8)",
    "chat as a stream": "talked(chat.create_chat_completion(ASKED, temperature=0, max_tokens=16, stream=True))",
    "chat with a stop string": "chat.create_chat_completion(ASKED, temperature=0, max_tokens=16, stop=['='])",
    "chat as JSON": "json.loads(answer(chat.create_chat_completion(PARIS, temperature=0, response_format=JSON))).keys()",
    "chat with a schema": "chat.create_chat_completion(PARIS, temperature=0, max_tokens=60, response_format=JSON)",
    "chat with a grammar": "chat.create_chat_completion(ASKED, temperature=0, grammar=YES)",
    "a forced tool": "chat.create_chat_completion(BERN, **CALL, **GREEDY)",
    "a forced tool as a stream": "talked(chat.create_chat_completion(BERN, stream=True, **CALL, **GREEDY))",
    "a forced function": "chat.create_chat_completion(BERN, **OLD, **GREEDY)",
    "chat with a format by name": "new(chat_format='chatml').create_chat_completion(ASKED, temperature=0, max_tokens=8)",
    "chat in another format": "new(chat_format='llama-2').create_chat_completion(TALK, temperature=0, max_tokens=8)",
    "the format in use": "chat.chat_format",
    "chat with logprobs": "told(logprobs=True, top_logprobs=2)",
    "chat of the package openai": "chat.create_chat_completion_openai_v1(ASKED, **GREEDY).choices[0].message.content",
}
"""By name, in the order in which they run: some look at what the one before has left."""
