// Filling a batch: inline, as Python calls it for each row.
#pragma once

#include "og.h"

#include "llama.h"

#include <cstdint>

inline void og_batch_put(
        struct llama_batch * batch, int32_t row, llama_token token, llama_pos pos, llama_seq_id seq_id, bool logits) {
    batch->token[row] = token;
    batch->pos[row] = pos;
    batch->seq_id[row][0] = seq_id;
    batch->logits[row] = static_cast<int8_t>(logits);
    batch->n_tokens = row + 1;
}
