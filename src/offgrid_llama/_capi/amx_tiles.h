// For ggml-cpu, before each of its sources: AMX as GCC should have it. Its header does not tell the compiler
// - that loading a configuration of tiles reads all of its 64 bytes (PR target/114098; until 11.5, 12.4 and 13.3). Writes of
//   ggml into the others are left out then: on a CPU with AMX the first product of matrices would end the process;
// - that loading a tile reads memory at all, so that what is written there may be written later.
#pragma once

#if defined(__AMX_TILE__)
#include <immintrin.h>

static inline void og_load_tile_configuration(const void * configuration) {
    struct bytes { char each[64]; };
    __asm__ volatile("ldtilecfg\t%X0" : : "m"(*(const struct bytes *)configuration));
}

#define _tile_loadconfig og_load_tile_configuration

#undef _tile_loadd
#define _tile_loadd(tile, base, stride) og_load_tile(tile, base, stride)  // tile is a macro, too, in ggml
#define og_load_tile(tile, base, stride) \
    __asm__ volatile("tileloadd\t(%0,%1,1), %%tmm" #tile : : "r"((const void *)(base)), "r"((long)(stride)) : "memory")
#endif
