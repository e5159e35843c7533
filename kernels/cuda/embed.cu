// Token embeddings.

#ifndef ESM2_NUMBERS
#include "numbers.cuh"
#endif

// Rows of a tile: as in attention.cu, so that both share one list of tiles.
constexpr int TILE_ROWS = 64;
constexpr u8 MASK = 32;

// Looks up embeddings and scales them for token dropout.
//
// tokens:     [tokens] u8, each below the table's rows (the host has checked them).
// cu_seqlens: [sequences + 1] i32.
// tiles:      [tiles] {sequence, first row in it}; together they cover every row once. One that begins
//             behind its sequence is empty.
// table:      [vocab, hidden] T.   out: [tokens, hidden] O.
// token_dropout: if not 0, rows of <mask> become zero and each sequence is scaled by
//             0.88 / (1 - masked share), computed in f64 as on the CPU.
//
// Grid: tiles. Block: 256, a warp per row at a time. Shared: 4 bytes, static. table and out aligned to 16
// bytes; a hidden that is no multiple of 8 is read number by number.
template <class T, class O>
INLINE void embed(const u8* __restrict__ tokens, const int* __restrict__ cu_seqlens,
                  const int2* __restrict__ tiles, const T* __restrict__ table, O* __restrict__ out,
                  int hidden, int token_dropout) {
    __shared__ int masked;
    const int2 tile = tiles[blockIdx.x];
    const int start = cu_seqlens[tile.x];
    const int length = cu_seqlens[tile.x + 1] - start;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    // An empty tile.
    if (tile.y >= length) return;

    float scale = 1.0f;
    if (token_dropout) {
        if (threadIdx.x == 0) masked = 0;
        __syncthreads();
        int found = 0;
        for (int i = threadIdx.x; i < length; i += blockDim.x) found += tokens[start + i] == MASK;
        if (found > 0) atomicAdd(&masked, found);
        __syncthreads();
        scale = float(0.88 / (1.0 - double(masked) / double(length)));
    }

    const bool aligned = hidden % GROUP == 0;
    for (int row = tile.y + warp; row < min(tile.y + TILE_ROWS, length); row += warps) {
        const int token = tokens[start + row];
        const bool hide = token_dropout && token == MASK;
        const T* from = table + size_t(token) * hidden;
        O* to = out + size_t(start + row) * hidden;
        for (int column = GROUP * lane; column < hidden; column += GROUP * WARP) {
            float x[GROUP];
            load_group(from + column, hidden - column, aligned, x);
#pragma unroll
            for (int i = 0; i < GROUP; i++) x[i] = hide ? 0.0f : __fmul_rn(x[i], scale);
            store_group(to + column, hidden - column, aligned, x);
        }
    }
}

#define EMBED(T, O)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                 \
        embed_##T##_##O(const u8* tokens, const int* cu_seqlens, const int2* tiles, const T* table,   \
                        O* out, int hidden, int token_dropout) {                                      \
        embed<T, O>(tokens, cu_seqlens, tiles, table, out, hidden, token_dropout);                    \
    }

EMBED(f32, f32)
EMBED(f16, f16)
EMBED(f16, f32)
EMBED(bf16, bf16)
EMBED(bf16, f32)
