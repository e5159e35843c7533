// What leaves the device: one vector per sequence, or one per residue, in f32.
//
// `flags` must be zero before the launch; a sequence with NaN or infinity in its result gets 1.

#ifndef ESM2_NUMBERS
#include "numbers.cuh"
#endif

constexpr int TILE_ROWS = 64;

// Rows that are summed side by side, and columns of a block.
constexpr int ROW_GROUPS = 8;
constexpr int COLUMNS = 2 * WARP;

// A sum and what rounding has added to it (Kahan): thousands of residues lose nothing in f32.
struct Sum {
    float sum, excess;

    INLINE void add(float x) {
        const float corrected = __fadd_rn(x, -excess);
        const float next = __fadd_rn(sum, corrected);
        excess = __fadd_rn(__fadd_rn(next, -sum), -corrected);
        sum = next;
    }
};

// NaN wins, so that it is seen and reported.
INLINE float larger(float a, float b) {
    return b > a || b != b ? b : a;
}

template <class T>
INLINE void load_pair(const T* from, int count, bool aligned, float (&x)[2]) {
    if (aligned) {
        Vector<T, 2>::load(from, x);
    } else {
        x[0] = widen(from[0]);
        x[1] = count > 1 ? widen(from[1]) : 0.0f;
    }
}

// Pools the residues of each sequence; BOS and EOS take no part.
//
// x: [tokens, width] T.   cu_seqlens: [sequences + 1] i32.
// pooled: [sequences] i32, how many leading residues count, at least 1.
// mode: 0 mean, 1 the BOS row, 2 maximum.
// out: [sequences, width] f32.   flags: [sequences] i32.
//
// The order of additions depends on the sequence alone, so its neighbours change no bit.
//
// Grid: (sequences, ceil(width / 64)). Block: (32, 8): a lane has two columns, a warp every eighth
// row. Shared: 2 KB, static. x aligned to 8 bytes; an odd width is read number by number.
template <class T>
INLINE void pool(const T* __restrict__ x, const int* __restrict__ cu_seqlens,
                 const int* __restrict__ pooled, int mode, float* __restrict__ out,
                 int* __restrict__ flags, int width) {
    __shared__ float sums[ROW_GROUPS][COLUMNS];
    const int sequence = blockIdx.x, group = threadIdx.y;
    const int place = 2 * threadIdx.x, column = blockIdx.y * COLUMNS + place;
    const int residues = pooled[sequence], count = width - column;
    const bool aligned = width % 2 == 0;
    const T* bos = x + size_t(cu_seqlens[sequence]) * width + column;
    const T* rows = bos + width;

    if (count > 0) {
        Sum total[2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
        float most[2] = {0.0f, 0.0f};
        if (mode == 0) {
            for (int row = group; row < residues; row += ROW_GROUPS) {
                float value[2];
                load_pair(rows + size_t(row) * width, count, aligned, value);
                total[0].add(value[0]);
                total[1].add(value[1]);
            }
        } else if (mode == 1) {
            if (group == 0) load_pair(bos, count, aligned, most);
        } else if (group < residues) {
            load_pair(rows + size_t(group) * width, count, aligned, most);
            for (int row = group + ROW_GROUPS; row < residues; row += ROW_GROUPS) {
                float value[2];
                load_pair(rows + size_t(row) * width, count, aligned, value);
                most[0] = larger(most[0], value[0]);
                most[1] = larger(most[1], value[1]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sums[group][place + i] = mode == 0 ? total[i].sum : most[i];
        }
    }
    __syncthreads();
    if (group > 0 || count <= 0) return;

    bool bad = false;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (i >= count) break;
        float result = sums[0][place + i];
        if (mode == 0) {
            Sum total = {0.0f, 0.0f};
            for (int part = 0; part < ROW_GROUPS; part++) {
                total.add(sums[part][place + i]);
            }
            result = __fdiv_rn(total.sum, float(residues));
        } else if (mode == 2) {
            for (int part = 1; part < min(ROW_GROUPS, residues); part++) {
                result = larger(result, sums[part][place + i]);
            }
        }
        out[size_t(sequence) * width + column + i] = result;
        bad = bad || !finite(result);
    }
    if (bad) atomicOr(&flags[sequence], 1);
}

// Copies the rows of residues, one after the other.
//
// x, cu_seqlens, pooled, flags: as above.   tiles: [tiles] {sequence, first row in it}, as in embed.cu.
// rows_before: [sequences] i32, rows of `out` that belong to the sequences before.
// out: [sum of pooled, width] f32.
//
// Grid: tiles. Block: 256, a warp per row at a time. Shared: none. x and out aligned to 16 bytes; a
// width that is no multiple of 8 is read number by number.
template <class T>
INLINE void gather(const T* __restrict__ x, const int* __restrict__ cu_seqlens,
                   const int2* __restrict__ tiles, const int* __restrict__ pooled,
                   const int* __restrict__ rows_before, float* __restrict__ out,
                   int* __restrict__ flags, int width) {
    const int2 tile = tiles[blockIdx.x];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const bool aligned = width % GROUP == 0;
    const size_t from = size_t(cu_seqlens[tile.x]) + 1, to = size_t(rows_before[tile.x]);
    bool bad = false;
    for (int row = tile.y + warp; row < min(tile.y + TILE_ROWS, pooled[tile.x]); row += warps) {
        for (int column = GROUP * lane; column < width; column += GROUP * WARP) {
            float value[GROUP];
            load_group(x + (from + row) * width + column, width - column, aligned, value);
#pragma unroll
            for (int i = 0; i < GROUP; i++) bad = bad || !finite(value[i]);
            store_group(out + (to + row) * width + column, width - column, aligned, value);
        }
    }
    if (bad) atomicOr(&flags[tile.x], 1);
}

#define POOL(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                   \
        pool_##T(const T* x, const int* cu_seqlens, const int* pooled, int mode, float* out,            \
                 int* flags, int width) {                                                               \
        pool<T>(x, cu_seqlens, pooled, mode, out, flags, width);                                        \
    }                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                   \
        gather_##T(const T* x, const int* cu_seqlens, const int2* tiles, const int* pooled,             \
                   const int* rows_before, float* out, int* flags, int width) {                         \
        gather<T>(x, cu_seqlens, tiles, pooled, rows_before, out, flags, width);                        \
    }

POOL(f32)
POOL(f16)
POOL(bf16)
