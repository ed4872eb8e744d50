// The Python functions that C++ calls; ../native/callbacks.py has their protocol. cffi defines them in the generated
// source, where each takes the GIL: generate.py gives this file to cffi as `extern "Python+C"`.
#pragma once

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void og_on_log(enum ggml_log_level level, const char * text, void * user_data);
bool og_on_progress(float progress, void * user_data);
bool og_on_poll(void);
int32_t og_on_apply(void * custom, struct llama_token_data * candidates, size_t size);
void og_on_accept(void * custom, llama_token token);
void og_on_reset(void * custom);
