// Attention within each sequence of a packed batch, softmax online: no padding, no memory but registers
// and a block of keys and values, any length.
//
// qkv:        [tokens, 3 * hidden] T, hidden = heads * D: all heads' queries, then keys, then values, as
//             they left the linear layer.
// cu_seqlens: [sequences + 1] i32.
// tiles:      [tiles] {sequence, first row in it}, 64 rows each; together they cover every row once.
//             Longest sequences first keep the last wave short.
// cosines, sines: [positions of the longest sequence, D / 2] f32, computed by the host in f64 from the
//             frequencies rounded as in published models.
// out:        [tokens, hidden] T.   scale: D^-0.5, applied here and nowhere else.
//
// Rotary positions start at 0 in each sequence and are applied in f32. What a row becomes depends on its
// sequence alone, so neighbours change no bit. Rows of a tile beyond its sequence are computed as
// zero and not stored; keys beyond it have no weight and are never read.
//
// Grid: tiles * heads, the heads of a tile side by side, since they share rows of qkv. Block: 128 for
// f16 and bf16, 256 for f32. Shared, static: 256 * (D rounded up to 16, plus 8) bytes, 256 * D for f32.
// All pointers aligned to 16 bytes.
//
// With HEAD_WIDTH defined, only the kernels of that head width are compiled.

#ifndef ESM2_NUMBERS
#include "numbers.cuh"
#endif

constexpr int QUERIES = 64;

// The place of a thread block's work.
struct Place {
    int head, start, length, first;

    INLINE Place(const int* cu_seqlens, const int2* tiles, int heads) {
        head = int(blockIdx.x % u32(heads));
        const int2 tile = tiles[blockIdx.x / u32(heads)];
        start = cu_seqlens[tile.x];
        length = cu_seqlens[tile.x + 1] - start;
        first = tile.y;
    }
};

// A head's column and its partner in the other half, rotated. `sign` is -1 in the first half.
INLINE float rotate(float x, float partner, float cosine, float sine, float sign) {
    return __fadd_rn(__fmul_rn(x, cosine), sign * __fmul_rn(partner, sine));
}

// ---- f32, and f16 before compute capability 8.0: fused multiply-adds -----------------------------

constexpr int PLAIN_KEYS = 32;

// Four threads share a query row: each holds every fourth run of STEP columns of the query and of the
// result, and the scores of every fourth key.
template <class T, int D>
INLINE void attend_plain(const T* __restrict__ qkv, const int* __restrict__ cu_seqlens,
                         const int2* __restrict__ tiles, const float* __restrict__ cosines,
                         const float* __restrict__ sines, T* __restrict__ out, int heads, float scale) {
    constexpr int HALF = D / 2;
    constexpr int STEP = D % 16 == 0 ? 4 : 2;
    constexpr int STEPS = D / (4 * STEP);
    constexpr int OWN_KEYS = PLAIN_KEYS / 4;
    __shared__ __align__(16) float keys[PLAIN_KEYS * D];
    __shared__ __align__(16) float values[PLAIN_KEYS * D];

    const Place place(cu_seqlens, tiles, heads);
    // An empty tile.
    if (place.first >= place.length) return;
    const size_t hidden = size_t(heads) * D, stride = 3 * hidden;
    const T* head = qkv + place.start * stride + place.head * D;
    const int part = threadIdx.x % 4;

    for (int pass = 0; pass < QUERIES; pass += blockDim.x / 4) {
        const int position = place.first + pass + int(threadIdx.x / 4);
        const bool inside = position < place.length;
        float query[STEPS * STEP], sums[STEPS * STEP];
#pragma unroll
        for (int i = 0; i < STEPS * STEP; i++) {
            const int column = 4 * STEP * (i / STEP) + STEP * part + i % STEP;
            sums[i] = 0.0f;
            query[i] = 0.0f;
            if (inside) {
                const T* row = head + position * stride;
                const int pair = column % HALF;
                const float sign = column < HALF ? -1.0f : 1.0f;
                const float x = widen(row[column]);
                const float partner = widen(row[column < HALF ? column + HALF : column - HALF]);
                const size_t angle = size_t(position) * HALF + pair;
                query[i] = __fmul_rn(rotate(x, partner, cosines[angle], sines[angle], sign), scale);
            }
        }
        float maximum = -infinity(), total = 0.0f;

        for (int begin = 0; begin < place.length; begin += PLAIN_KEYS) {
            const int count = min(PLAIN_KEYS, place.length - begin);
            __syncthreads();
            for (int item = threadIdx.x; item < PLAIN_KEYS * HALF; item += blockDim.x) {
                const int key = item / HALF, pair = item % HALF;
                float low = 0.0f, high = 0.0f, low_value = 0.0f, high_value = 0.0f;
                if (key < count) {
                    const T* row = head + (begin + key) * stride + hidden;
                    const size_t angle = size_t(begin + key) * HALF + pair;
                    const float a = widen(row[pair]), b = widen(row[pair + HALF]);
                    low = rotate(a, b, cosines[angle], sines[angle], -1.0f);
                    high = rotate(b, a, cosines[angle], sines[angle], 1.0f);
                    low_value = widen(row[hidden + pair]);
                    high_value = widen(row[hidden + pair + HALF]);
                }
                keys[key * D + pair] = low;
                keys[key * D + pair + HALF] = high;
                values[key * D + pair] = low_value;
                values[key * D + pair + HALF] = high_value;
            }
            __syncthreads();

            float scores[OWN_KEYS];
            float highest = maximum;
#pragma unroll
            for (int key = 0; key < PLAIN_KEYS; key++) {
                float product = 0.0f;
#pragma unroll
                for (int step = 0; step < STEPS; step++) {
                    float column[STEP];
                    Vector<float, STEP>::load(&keys[key * D + 4 * STEP * step + STEP * part], column);
#pragma unroll
                    for (int i = 0; i < STEP; i++) {
                        product = __fmaf_rn(query[STEP * step + i], column[i], product);
                    }
                }
                product = __fadd_rn(product, __shfl_xor_sync(WHOLE_WARP, product, 1));
                product = __fadd_rn(product, __shfl_xor_sync(WHOLE_WARP, product, 2));
                if (key % 4 == part) scores[key / 4] = product;
                if (key < count) highest = fmaxf(highest, product);
            }

            const float fade = exp_exact(__fadd_rn(maximum, -highest));
            maximum = highest;
            total = __fmul_rn(total, fade);
#pragma unroll
            for (int i = 0; i < OWN_KEYS; i++) {
                scores[i] = 4 * i + part < count ? exp_exact(__fadd_rn(scores[i], -highest)) : 0.0f;
                total = __fadd_rn(total, scores[i]);
            }
#pragma unroll
            for (int i = 0; i < STEPS * STEP; i++) sums[i] = __fmul_rn(sums[i], fade);
#pragma unroll
            for (int key = 0; key < PLAIN_KEYS; key++) {
                const float weight = __shfl_sync(WHOLE_WARP, scores[key / 4], key % 4, 4);
#pragma unroll
                for (int step = 0; step < STEPS; step++) {
                    float column[STEP];
                    Vector<float, STEP>::load(&values[key * D + 4 * STEP * step + STEP * part], column);
#pragma unroll
                    for (int i = 0; i < STEP; i++) {
                        sums[STEP * step + i] = __fmaf_rn(weight, column[i], sums[STEP * step + i]);
                    }
                }
            }
        }

        total = __fadd_rn(total, __shfl_xor_sync(WHOLE_WARP, total, 1));
        total = __fadd_rn(total, __shfl_xor_sync(WHOLE_WARP, total, 2));
        const float inverse = __fdiv_rn(1.0f, total);
        if (inside) {
            T* row = out + (size_t(place.start) + position) * hidden + place.head * D;
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                float column[STEP];
#pragma unroll
                for (int i = 0; i < STEP; i++) column[i] = __fmul_rn(sums[STEP * step + i], inverse);
                Vector<T, STEP>::store(row + 4 * STEP * step + STEP * part, column);
            }
        }
    }
}

// ---- f16 and bf16: tensor cores -----------------------------------------------------------------

#if __CUDA_ARCH__ >= 800

constexpr int KEYS = 64;

// Columns of a head in shared memory. A product takes 16 at a time, so narrower heads end in zeros; 16
// bytes more per row make the eight rows that are read together fall on different banks.
template <int D>
constexpr int PADDED = (D + 15) / 16 * 16;
template <int D>
constexpr int STRIDE = PADDED<D> + 8;

template <class T>
INLINE void multiply(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <>
INLINE void multiply<f16>(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_halves(sums, a, b0, b1);
}

template <>
INLINE void multiply<bf16>(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_brains(sums, a, b0, b1);
}

// Rotates rows `first` to `first + 63` of a head into shared memory, in f32 and rounded once. Rows beyond
// the sequence and columns beyond the head become zero.
template <class T, int D>
INLINE void load_rotated(const T* __restrict__ head, size_t stride, const float* __restrict__ cosines,
                         const float* __restrict__ sines, int first, int length, T* target) {
    constexpr int HALF = D / 2;
    constexpr int WIDE = HALF % 8 == 0 ? 8 : 4;
    constexpr int PARTS = HALF / WIDE;
    for (int item = threadIdx.x; item < QUERIES * PARTS; item += blockDim.x) {
        const int row = item / PARTS, column = item % PARTS * WIDE;
        const int position = first + row;
        float low[WIDE], high[WIDE];
#pragma unroll
        for (int i = 0; i < WIDE; i++) low[i] = high[i] = 0.0f;
        if (position < length) {
            const T* from = head + position * stride + column;
            const size_t angle = size_t(position) * HALF + column;
            float a[WIDE], b[WIDE], cosine[WIDE], sine[WIDE];
            Vector<T, WIDE>::load(from, a);
            Vector<T, WIDE>::load(from + HALF, b);
            Vector<float, WIDE>::load(cosines + angle, cosine);
            Vector<float, WIDE>::load(sines + angle, sine);
#pragma unroll
            for (int i = 0; i < WIDE; i++) {
                low[i] = rotate(a[i], b[i], cosine[i], sine[i], -1.0f);
                high[i] = rotate(b[i], a[i], cosine[i], sine[i], 1.0f);
            }
        }
        Vector<T, WIDE>::store(target + row * STRIDE<D> + column, low);
        Vector<T, WIDE>::store(target + row * STRIDE<D> + HALF + column, high);
    }
    if constexpr (PADDED<D> > D) {
        static_assert(PADDED<D> - D == 8, "one group of zeros per row");
        for (int row = threadIdx.x; row < QUERIES; row += blockDim.x) {
            *reinterpret_cast<uint4*>(target + row * STRIDE<D> + D) = make_uint4(0, 0, 0, 0);
        }
    }
}

// Starts to copy rows `first` to `first + 63` of a head's values. Rows beyond the sequence become zero:
// their weight is zero, and zero times what happens to lie in memory may be NaN.
template <class T, int D>
INLINE void copy_values(const T* __restrict__ head, size_t stride, int first, int length, T* target) {
    constexpr int PARTS = D / 8;
    for (int item = threadIdx.x; item < KEYS * PARTS; item += blockDim.x) {
        const int row = item / PARTS, column = item % PARTS * 8;
        const bool inside = first + row < length;
        const T* from = inside ? head + (first + row) * stride + column : head;
        start_copy(target + row * STRIDE<D> + column, from, inside ? 16 : 0);
    }
}

// Each of four warps has 16 query rows. A lane holds, of each 16 x 8 tile of scores and results, columns
// 2 (lane % 4) and the next, in rows lane / 4 and lane / 4 + 8.
template <class T, int D>
INLINE void attend_tensor(const T* __restrict__ qkv, const int* __restrict__ cu_seqlens,
                          const int2* __restrict__ tiles, const float* __restrict__ cosines,
                          const float* __restrict__ sines, T* __restrict__ out, int heads, float scale) {
    constexpr int KEY_TILES = KEYS / 8;
    constexpr int COLUMN_TILES = D / 8;
    // The queries pass through `keys` on their way to registers.
    __shared__ __align__(16) T keys[KEYS * STRIDE<D>];
    __shared__ __align__(16) T values[KEYS * STRIDE<D>];

    const Place place(cu_seqlens, tiles, heads);
    // An empty tile.
    if (place.first >= place.length) return;
    const size_t hidden = size_t(heads) * D, stride = 3 * hidden;
    const T* head = qkv + place.start * stride + place.head * D;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int row_in_matrix = lane % 8, matrix = lane / 8;
    // A warp whose rows all lie beyond the sequence only helps to load.
    const bool active = place.first + 16 * warp < place.length;

    load_rotated<T, D>(head, stride, cosines, sines, place.first, place.length, keys);
    __syncthreads();
    u32 query[PADDED<D> / 16][4];
#pragma unroll
    for (int k = 0; k < PADDED<D> / 16; k++) {
        const int row = 16 * warp + row_in_matrix + 8 * (matrix % 2);
        load_matrices(query[k], keys + row * STRIDE<D> + 16 * k + 8 * (matrix / 2));
    }
    __syncthreads();

    float sums[COLUMN_TILES][4];
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
    }
    float maximum[2] = {-infinity(), -infinity()}, total[2] = {0.0f, 0.0f};
    const float scale_log2 = __fmul_rn(scale, LOG2_E);

    for (int begin = 0; begin < place.length; begin += KEYS) {
        const int count = min(KEYS, place.length - begin);
        copy_values<T, D>(head + 2 * hidden, stride, begin, place.length, values);
        load_rotated<T, D>(head + hidden, stride, cosines, sines, begin, place.length, keys);
        __syncthreads();

        u32 weights[KEY_TILES / 2][4];
        if (active) {
            float scores[KEY_TILES][4];
#pragma unroll
            for (int pair = 0; pair < KEY_TILES / 2; pair++) {
#pragma unroll
                for (int i = 0; i < 4; i++) scores[2 * pair][i] = scores[2 * pair + 1][i] = 0.0f;
                if (16 * pair < count) {
#pragma unroll
                    for (int k = 0; k < PADDED<D> / 16; k++) {
                        u32 key[4];
                        const int row = 16 * pair + row_in_matrix + 8 * (matrix / 2);
                        load_matrices(key, keys + row * STRIDE<D> + 16 * k + 8 * (matrix % 2));
                        multiply<T>(scores[2 * pair], query[k], key[0], key[1]);
                        multiply<T>(scores[2 * pair + 1], query[k], key[2], key[3]);
                    }
                }
            }

            float highest[2] = {maximum[0], maximum[1]};
#pragma unroll
            for (int n = 0; n < KEY_TILES; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int key = 8 * n + 2 * (lane % 4) + i % 2;
                    if (key >= count) scores[n][i] = -infinity();
                    highest[i / 2] = fmaxf(highest[i / 2], scores[n][i]);
                }
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                highest[half] = fmaxf(highest[half], __shfl_xor_sync(WHOLE_WARP, highest[half], 1));
                highest[half] = fmaxf(highest[half], __shfl_xor_sync(WHOLE_WARP, highest[half], 2));
                const float fade =
                    exp2_fast(__fmul_rn(__fadd_rn(maximum[half], -highest[half]), scale_log2));
                maximum[half] = highest[half];
                total[half] = __fmul_rn(total[half], fade);
#pragma unroll
                for (int n = 0; n < COLUMN_TILES; n++) {
                    sums[n][2 * half] = __fmul_rn(sums[n][2 * half], fade);
                    sums[n][2 * half + 1] = __fmul_rn(sums[n][2 * half + 1], fade);
                }
            }
#pragma unroll
            for (int n = 0; n < KEY_TILES; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float shifted = __fadd_rn(scores[n][i], -maximum[i / 2]);
                    scores[n][i] = exp2_fast(__fmul_rn(shifted, scale_log2));
                    total[i / 2] = __fadd_rn(total[i / 2], scores[n][i]);
                }
                // Two tiles of scores lie in registers just as the left factor of the next product.
                weights[n / 2][2 * (n % 2)] = pack<T>(scores[n][0], scores[n][1]);
                weights[n / 2][2 * (n % 2) + 1] = pack<T>(scores[n][2], scores[n][3]);
            }
        }

        wait_for_copies();
        __syncthreads();
        if (active) {
#pragma unroll
            for (int k = 0; k < KEYS / 16; k++) {
                if (16 * k >= count) continue;
#pragma unroll
                for (int n = 0; n < COLUMN_TILES; n += 2) {
                    u32 value[4];
                    const int row = 16 * k + row_in_matrix + 8 * (matrix % 2);
                    load_matrices_transposed(value, values + row * STRIDE<D> + 8 * (n + matrix / 2));
                    multiply<T>(sums[n], weights[k], value[0], value[1]);
                    // Of an odd number of tiles the last has no neighbour.
                    if (n + 1 < COLUMN_TILES) {
                        multiply<T>(sums[n + 1 < COLUMN_TILES ? n + 1 : n], weights[k], value[2], value[3]);
                    }
                }
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] = __fadd_rn(total[half], __shfl_xor_sync(WHOLE_WARP, total[half], 1));
        total[half] = __fadd_rn(total[half], __shfl_xor_sync(WHOLE_WARP, total[half], 2));
        const float inverse = __fdiv_rn(1.0f, total[half]);
        const int position = place.first + 16 * warp + lane / 4 + 8 * half;
        if (position < place.length) {
            T* row = out + (size_t(place.start) + position) * hidden + place.head * D + 2 * (lane % 4);
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n++) {
                const float pair[2] = {__fmul_rn(sums[n][2 * half], inverse),
                                       __fmul_rn(sums[n][2 * half + 1], inverse)};
                Vector<T, 2>::store(row + 8 * n, pair);
            }
        }
    }
}

#define ATTEND_16_BIT attend_tensor
#else
#define ATTEND_16_BIT attend_plain
#endif

#define ATTENTION(T, D, ATTEND, ...)                                                                      \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__)                                             \
        attention_##T##_##D(const T* qkv, const int* cu_seqlens, const int2* tiles, const float* cosines, \
                            const float* sines, T* out, int heads, float scale) {                         \
        ATTEND<T, D>(qkv, cu_seqlens, tiles, cosines, sines, out, heads, scale);                          \
    }

// Without a stated number of blocks per multiprocessor the compiler spills a few registers of the f32
// kernels to reach one block more.
#define HEADS(D)                                            \
    ATTENTION(f32, D, attend_plain, 256, D > 32 ? 1 : 2)    \
    ATTENTION(f16, D, ATTEND_16_BIT, 128)                   \
    ATTENTION(bf16, D, ATTEND_16_BIT, 128)

#ifdef HEAD_WIDTH
HEADS(HEAD_WIDTH)
#else
HEADS(16)
HEADS(24)
HEADS(32)
HEADS(64)
HEADS(128)
#endif
