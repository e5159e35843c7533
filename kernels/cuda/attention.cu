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
// Grid: tiles * heads for f32, tiles * ceil(heads / 2) for f16 and bf16; the heads of a tile side by side,
// since they share rows of qkv. Block: 256 for f32, 128 for f16 and bf16. Shared, static: 256 * D bytes
// without tensor cores, 128 * (D rounded up to 16, plus 8) bytes with them, and four times that for
// heads of up to 32, twice for 64. All pointers aligned to 16 bytes.
//
// attention_*:         rotates keys on their way to shared memory, for each tile of queries anew.
// attention_rotated_*: finds the keys of sequences longer than ROTATED_BEYOND rotated already.
// rotate_keys_*:       rotates just those, in place. The same operations and roundings, hence the same bits.
//
// Keys rotated anew cost each tile of queries instructions and shared memory; rotated beforehand, they go through
// memory once more. For one head of 64 of one sequence, on one multiprocessor of an H100, calculated:
//   tokens                                             51    102    166    400   1024
//   tiles of queries                                    1      2      3      7     16
//   beforehand: bytes read and written             13,056 26,112 42,496 102,400 262,144
//               cycles, 14.5 bytes each               900  1,800  2,930  7,060 18,080
//   anew: cycles of shared memory and the cache
//         before it, 3 for each row and tile          150    610  1,490  8,400 49,150
// From six tiles on, the pass of its own costs less.
//
// With HEAD_WIDTH defined, only the kernels of that head width are compiled.

#ifndef ESM2_NUMBERS
#include "numbers.cuh"
#endif

constexpr int QUERIES = 64;

// Tokens of the longest sequence whose keys are rotated anew for each tile of queries; launch.rs has the same.
constexpr int ROTATED_BEYOND = 384;

// The place of a thread block's work: so many heads of one tile.
template <int HEADS>
struct Place {
    int head, start, length, first;

    INLINE Place(const int* cu_seqlens, const int2* tiles, int heads) {
        const u32 groups = u32(heads + HEADS - 1) / HEADS;
        head = HEADS * int(blockIdx.x % groups);
        const int2 tile = tiles[blockIdx.x / groups];
        start = cu_seqlens[tile.x];
        length = cu_seqlens[tile.x + 1] - start;
        first = tile.y;
    }

    // Whether the tile only fills the table up.
    INLINE bool is_empty() const { return first >= length; }

    // A row of the sequence in qkv.
    template <class T>
    INLINE const T* row(const T* qkv, int hidden, int position) const {
        return qkv + size_t(u32(start + position)) * u32(3 * hidden);
    }
};

// Heads of a thread block: two share the angles of their rows.
template <class T>
constexpr int BLOCK_HEADS = 2;
template <>
constexpr int BLOCK_HEADS<f32> = 1;

// A head's column and its partner in the other half, rotated. `sign` is -1 in the first half.
INLINE float rotate(float x, float partner, float cosine, float sine, float sign) {
    return __fadd_rn(__fmul_rn(x, cosine), sign * __fmul_rn(partner, sine));
}

// ---- f32, f16 before compute capability 7.5, bf16 before 8.0: fused multiply-adds ----------------

constexpr int PLAIN_KEYS = 32;

// Four threads share a query row: each holds every fourth run of STEP columns of the query and of the
// result, and the scores of every fourth key.
template <class T, int D>
INLINE void attend_plain_head(const T* __restrict__ qkv, const Place<BLOCK_HEADS<T>>& place, bool rotated,
                              const float* __restrict__ cosines, const float* __restrict__ sines,
                              T* __restrict__ out, int heads, float scale) {
    constexpr int HALF = D / 2;
    constexpr int STEP = D % 16 == 0 ? 4 : 2;
    constexpr int STEPS = D / (4 * STEP);
    constexpr int OWN_KEYS = PLAIN_KEYS / 4;
    __shared__ __align__(16) float keys[PLAIN_KEYS * D];
    __shared__ __align__(16) float values[PLAIN_KEYS * D];

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
                    low = rotated ? a : rotate(a, b, cosines[angle], sines[angle], -1.0f);
                    high = rotated ? b : rotate(b, a, cosines[angle], sines[angle], 1.0f);
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

template <class T, int D, bool BEFORE>
INLINE void attend_plain(const T* __restrict__ qkv, const int* __restrict__ cu_seqlens,
                         const int2* __restrict__ tiles, const float* __restrict__ cosines,
                         const float* __restrict__ sines, T* __restrict__ out, int heads, float scale) {
    Place<BLOCK_HEADS<T>> place(cu_seqlens, tiles, heads);
    if (place.is_empty()) return;
    const bool rotated = BEFORE && place.length > ROTATED_BEYOND;
    const int end = min(place.head + BLOCK_HEADS<T>, heads);
    for (; place.head < end; place.head++) {
        attend_plain_head<T, D>(qkv, place, rotated, cosines, sines, out, heads, scale);
    }
}

// ---- f16 and bf16 -------------------------------------------------------------------------------

constexpr int THREADS = 128;

// Copies of a thread that the compiler unrolls. Where they arrive by themselves one suffices, and saves the
// registers of addresses; where they pass through registers they are to be under way together.
constexpr int COPIES_AT_ONCE = __CUDA_ARCH__ >= 800 ? 1 : 4;

// Columns of a head in shared memory. A product takes 16 at a time, so narrower heads end in zeros; 16
// bytes more per row make the eight rows that are read together fall on different banks.
template <int D>
constexpr int PADDED = (D + 15) / 16 * 16;
template <int D>
constexpr int STRIDE = PADDED<D> + 8;

// Heads that a block computes side by side. A warp then has 32 query rows of one, and each load of keys and
// values from shared memory, which would otherwise bound the speed, serves two products. Registers do not
// suffice for heads of 128: the block computes one after the other, 16 rows a warp.
template <int D>
constexpr int SIDE = D <= 64 ? 2 : 1;

// Keys of a block of keys. More would take registers that two further thread blocks need.
template <int D>
constexpr int KEYS = D <= 32 ? 64 : 32;

// Rows of which a warp stores several at once fall on different banks in this order: of eight rows, two (heads
// of 64) or four (of 32) are one store.
template <int D>
INLINE int spread(int row) {
    const int low = row % 8;
    if constexpr (D == 64) return row - low + (low % 2 * 4 + low / 2);
    if constexpr (D == 32) return row - low + (low * 2 % 8 + low / 4);
    return row;
}

// Columns of a row that a thread rotates with their partners in the other half.
template <int D>
constexpr int WIDE = D / 2 % 8 == 0 ? 8 : 4;

template <int N>
INLINE void load_words(const void* from, u32 (&words)[N]) {
    static_assert(N == 2 || N == 4, "8 or 16 bytes");
    if constexpr (N == 4) {
        const uint4 raw = *static_cast<const uint4*>(from);
        words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
    } else {
        const uint2 raw = *static_cast<const uint2*>(from);
        words[0] = raw.x, words[1] = raw.y;
    }
}

template <int N>
INLINE void store_words(void* to, const u32 (&words)[N]) {
    if constexpr (N == 4) {
        *static_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
        *static_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    }
}

// Rotates such columns of HEADS heads in place, in f32 and rounded once. Head by head they lie `apart` numbers
// away from each other. WORDS words of them are in registers at a time.
template <class T, int D, int HEADS, int WORDS>
INLINE void rotate_columns(T* low, u32 apart, const float* __restrict__ cosines,
                           const float* __restrict__ sines) {
#pragma unroll
    for (int column = 0; column < WIDE<D>; column += 2 * WORDS) {
        u32 a[HEADS][WORDS], b[HEADS][WORDS];
#pragma unroll
        for (int head = 0; head < HEADS; head++) {
            load_words(low + head * apart + column, a[head]);
            load_words(low + head * apart + column + D / 2, b[head]);
        }
#pragma unroll
        for (int word = 0; word < WORDS; word += 2) {
            float cosine[4], sine[4];
            Vector<float, 4>::load(cosines + column + 2 * word, cosine);
            Vector<float, 4>::load(sines + column + 2 * word, sine);
#pragma unroll
            for (int head = 0; head < HEADS; head++) {
#pragma unroll
                for (int i = 0; i < 4; i += 2) {
                    u32 &low_word = a[head][word + i / 2], &high_word = b[head][word + i / 2];
                    float x[2], y[2];
                    unpack<T>(low_word, x[0], x[1]);
                    unpack<T>(high_word, y[0], y[1]);
                    low_word = pack<T>(__fmaf_rn(x[0], cosine[i], -__fmul_rn(y[0], sine[i])),
                                       __fmaf_rn(x[1], cosine[i + 1], -__fmul_rn(y[1], sine[i + 1])));
                    high_word = pack<T>(__fmaf_rn(y[0], cosine[i], __fmul_rn(x[0], sine[i])),
                                        __fmaf_rn(y[1], cosine[i + 1], __fmul_rn(x[1], sine[i + 1])));
                }
            }
        }
#pragma unroll
        for (int head = 0; head < HEADS; head++) {
            store_words(low + head * apart + column, a[head]);
            store_words(low + head * apart + column + D / 2, b[head]);
        }
    }
}

// Rotates the keys of sequences longer than ROTATED_BEYOND in place, once for all tiles of queries.
//
// qkv, cu_seqlens, tiles, cosines, sines: as above.
//
// Grid: tiles. Block: 256, a warp per row at a time. Shared: none.
template <class T, int D>
INLINE void rotate_keys(T* __restrict__ qkv, const int* __restrict__ cu_seqlens,
                        const int2* __restrict__ tiles, const float* __restrict__ cosines,
                        const float* __restrict__ sines, int heads) {
    constexpr int HALF = D / 2;
    constexpr int PARTS = HALF / WIDE<D>;
    const int2 tile = tiles[blockIdx.x];
    const int start = cu_seqlens[tile.x];
    const int length = cu_seqlens[tile.x + 1] - start;
    if (length <= ROTATED_BEYOND) return;
    const size_t hidden = size_t(heads) * D;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (int row = tile.y + warp; row < min(tile.y + QUERIES, length); row += warps) {
        T* keys = qkv + size_t(start + row) * 3 * hidden + hidden;
        for (int item = lane; item < heads * PARTS; item += WARP) {
            const int column = item % PARTS * WIDE<D>;
            T* low = keys + item / PARTS * D + column;
            const size_t angle = size_t(row) * HALF + column;
            rotate_columns<T, D, 1, WIDE<D> / 2>(low, 0, cosines + angle, sines + angle);
        }
    }
}

// ---- tensor cores: f16 from compute capability 7.5, bf16 from 8.0 -------------------------------

#if __CUDA_ARCH__ >= 750

template <class T>
INLINE void multiply(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <>
INLINE void multiply<f16>(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_halves(sums, a, b0, b1);
}

#if __CUDA_ARCH__ >= 800
template <>
INLINE void multiply<bf16>(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_brains(sums, a, b0, b1);
}
#endif

// ROWS rows of queries or keys of SIDE<D> heads in shared memory, head after head. A thread rotates what it has
// copied itself, and so waits for no other.
template <class T, int D, int ROWS>
struct Rows {
    static constexpr int HALF = D / 2;
    static constexpr int PARTS = HALF / WIDE<D>;
    static constexpr int ITEMS = ROWS * PARTS;
    static constexpr int EACH = (ITEMS + THREADS - 1) / THREADS;

    static INLINE int row(int item) {
        return spread<D>(item / PARTS);
    }
    static INLINE int column(int item) {
        return item % PARTS * WIDE<D>;
    }

    // Starts to copy. Rows beyond the sequence, and heads that there are not, become zero.
    static INLINE void copy(const T* __restrict__ qkv, const Place<2>& place, int head, int heads, int skip,
                            int first, T* target) {
        constexpr int BYTES = int(WIDE<D> * sizeof(T));
#pragma unroll COPIES_AT_ONCE
        for (int each = 0; each < EACH; each++) {
            const int item = thread_index() + THREADS * each;
            if (ITEMS % THREADS != 0 && item >= ITEMS) continue;
            const int position = first + row(item);
#pragma unroll
            for (int side = 0; side < SIDE<D>; side++) {
                const bool inside = position < place.length && head + side < heads;
                const T* at = qkv;
                if (inside) at = place.row(qkv, heads * D, position) + (skip * heads + head + side) * D + column(item);
                T* to = target + (side * ROWS + row(item)) * STRIDE<D> + column(item);
                start_copy<BYTES>(to, at, inside ? BYTES : 0);
                start_copy<BYTES>(to + HALF, at + HALF, inside ? BYTES : 0);
            }
        }
    }

    // Rotates what has arrived.
    static INLINE void rotate(const float* __restrict__ cosines, const float* __restrict__ sines, int first,
                              int length, T* target) {
#pragma unroll 1
        for (int each = 0; each < EACH; each++) {
            const int item = thread_index() + THREADS * each;
            if (ITEMS % THREADS != 0 && item >= ITEMS) continue;
            // Zeros stay zero by any angle.
            const u32 angle = u32(min(first + row(item), length - 1)) * HALF + column(item);
            T* low = target + row(item) * STRIDE<D> + column(item);
            rotate_columns<T, D, SIDE<D>, 2>(low, ROWS * STRIDE<D>, cosines + angle, sines + angle);
        }
    }
};

// Starts to copy a block of values. Rows beyond the sequence become zero: their weight is zero, and zero times
// what happens to lie in memory may be NaN.
template <class T, int D>
INLINE void copy_values(const T* __restrict__ qkv, const Place<2>& place, int head, int heads, int first,
                        T* target) {
    constexpr int PARTS = D / 8, ROW_PARTS = SIDE<D> * PARTS;
    static_assert(KEYS<D> * ROW_PARTS % THREADS == 0, "shared out evenly");
#pragma unroll COPIES_AT_ONCE
    for (int each = 0; each < KEYS<D> * ROW_PARTS / THREADS; each++) {
        const int item = thread_index() + THREADS * each;
        const int row = item / ROW_PARTS, side = item % ROW_PARTS / PARTS, column = item % PARTS * 8;
        const bool inside = first + row < place.length && head + side < heads;
        const T* at = qkv;
        if (inside) at = place.row(qkv, heads * D, first + row) + (2 * heads + head + side) * D + column;
        start_copy<16>(target + (side * KEYS<D> + row) * STRIDE<D> + column, at, inside ? 16 : 0);
    }
}

// Four warps have 64 query rows of each of SIDE<D> heads, hence 16 * SIDE<D> rows of one head each. A lane
// holds, of each 16 x 8 tile of scores and results, columns 2 (lane % 4) and the next, in rows lane / 4 and
// lane / 4 + 8.
//
// One buffer has keys, the other values. While one is multiplied, the other's next block arrives: values
// while the scores are computed, the next keys while the values are weighed.
template <class T, int D, bool BEFORE>
INLINE void attend_heads(const T* __restrict__ qkv, const Place<2>& place, int head,
                         const float* __restrict__ cosines, const float* __restrict__ sines,
                         T* __restrict__ out, int heads, float scale) {
    constexpr int ROW_TILES = SIDE<D>;
    constexpr int HEAD_WARPS = 4 / SIDE<D>;
    constexpr int KEY_TILES = KEYS<D> / 8;
    constexpr int COLUMN_TILES = D / 8;
    constexpr int BUFFER = SIDE<D> * KEYS<D> * STRIDE<D>;
    // Queries pass through both buffers on their way to registers, results on their way to memory.
    static_assert(2 * KEYS<D> >= QUERIES, "room for the queries");
    __shared__ __align__(16) T shared[2 * BUFFER];

    const int length = place.length;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int row_in_matrix = lane % 8, matrix = lane / 8;
    const int side = warp / HEAD_WARPS, own = 16 * ROW_TILES * (warp % HEAD_WARPS);
    // A warp whose rows all lie beyond the sequence, or whose head there is not, only helps to load.
    const bool active = place.first + own < length && head + side < heads;
    // Where no keys are rotated beforehand the compiler must not know it: the branch keeps it from mixing the
    // rotation with products, for which registers do not suffice.
    const bool rotated = length > (BEFORE ? ROTATED_BEYOND : (1 << 30) + thread_index());
    T *keys = shared, *values = shared + BUFFER;
    const T *own_keys = keys + side * KEYS<D> * STRIDE<D>, *own_values = values + side * KEYS<D> * STRIDE<D>;
    T* own_rows = shared + (side * QUERIES + own) * STRIDE<D>;

    typedef Rows<T, D, QUERIES> Queries;
    typedef Rows<T, D, KEYS<D>> Keys;
    Queries::copy(qkv, place, head, heads, 0, place.first, shared);
    wait_for_copies();
    Queries::rotate(cosines, sines, place.first, length, shared);
    if constexpr (PADDED<D> > D) {
        // Nothing else is ever stored there; the buffer of keys ends where the queries do.
        static_assert(PADDED<D> - D == 8 && KEYS<D> == QUERIES, "one group of zeros per row");
        for (int row = threadIdx.x; row < SIDE<D> * QUERIES; row += THREADS) {
            *reinterpret_cast<uint4*>(shared + row * STRIDE<D> + D) = make_uint4(0, 0, 0, 0);
        }
    }
    __syncthreads();
    u32 query[ROW_TILES][PADDED<D> / 16][4];
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; tile++) {
#pragma unroll
        for (int k = 0; k < PADDED<D> / 16; k++) {
            const int row = 16 * tile + row_in_matrix + 8 * (matrix % 2);
            load_matrices(query[tile][k], own_rows + row * STRIDE<D> + 16 * k + 8 * (matrix / 2));
        }
    }
    __syncthreads();
    Keys::copy(qkv, place, head, heads, 1, 0, keys);

    float sums[ROW_TILES][COLUMN_TILES][4];
    // The highest score so far, times scale * log2(e), and the sum of weights.
    float peak[ROW_TILES][2], total[ROW_TILES][2];
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; tile++) {
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[tile][n][i] = 0.0f;
        }
        peak[tile][0] = peak[tile][1] = -infinity();
        total[tile][0] = total[tile][1] = 0.0f;
    }
    const float scale_log2 = __fmul_rn(scale, LOG2_E);

    for (int begin = 0; begin < length; begin += KEYS<D>) {
        const int count = min(KEYS<D>, length - begin);
        wait_for_copies();
        if (!rotated) Keys::rotate(cosines, sines, begin, length, keys);
        // The keys are there, and all have finished with the values of the block before.
        __syncthreads();
        copy_values<T, D>(qkv, place, head, heads, begin, values);

        u32 weights[ROW_TILES][KEY_TILES / 2][4];
        if (active) {
            float scores[ROW_TILES][KEY_TILES][4];
#pragma unroll
            for (int pair = 0; pair < KEY_TILES / 2; pair++) {
#pragma unroll
                for (int tile = 0; tile < ROW_TILES; tile++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        scores[tile][2 * pair][i] = scores[tile][2 * pair + 1][i] = 0.0f;
                    }
                }
                if (16 * pair < count) {
#pragma unroll
                    for (int k = 0; k < PADDED<D> / 16; k++) {
                        u32 key[4];
                        const int row = 16 * pair + row_in_matrix + 8 * (matrix / 2);
                        load_matrices(key, own_keys + row * STRIDE<D> + 16 * k + 8 * (matrix % 2));
#pragma unroll
                        for (int tile = 0; tile < ROW_TILES; tile++) {
                            multiply<T>(scores[tile][2 * pair], query[tile][k], key[0], key[1]);
                            multiply<T>(scores[tile][2 * pair + 1], query[tile][k], key[2], key[3]);
                        }
                    }
                }
            }
            if (count < KEYS<D>) {
#pragma unroll
                for (int n = 0; n < KEY_TILES; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (8 * n + 2 * (lane % 4) + i % 2 >= count) {
#pragma unroll
                            for (int tile = 0; tile < ROW_TILES; tile++) scores[tile][n][i] = -infinity();
                        }
                    }
                }
            }
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; tile++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float highest = -infinity();
#pragma unroll
                    for (int n = 0; n < KEY_TILES; n++) {
                        highest = fmaxf(highest, scores[tile][n][2 * half]);
                        highest = fmaxf(highest, scores[tile][n][2 * half + 1]);
                    }
                    highest = fmaxf(highest, __shfl_xor_sync(WHOLE_WARP, highest, 1));
                    highest = fmaxf(highest, __shfl_xor_sync(WHOLE_WARP, highest, 2));
                    const float before = peak[tile][half];
                    peak[tile][half] = fmaxf(before, __fmul_rn(highest, scale_log2));
                    const float fade = exp2_fast(__fadd_rn(before, -peak[tile][half]));
                    total[tile][half] = __fmul_rn(total[tile][half], fade);
#pragma unroll
                    for (int n = 0; n < COLUMN_TILES; n++) {
                        sums[tile][n][2 * half] = __fmul_rn(sums[tile][n][2 * half], fade);
                        sums[tile][n][2 * half + 1] = __fmul_rn(sums[tile][n][2 * half + 1], fade);
                    }
                }
#pragma unroll
                for (int n = 0; n < KEY_TILES; n++) {
                    float* score = scores[tile][n];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        score[i] = exp2_fast(__fmaf_rn(score[i], scale_log2, -peak[tile][i / 2]));
                        total[tile][i / 2] = __fadd_rn(total[tile][i / 2], score[i]);
                    }
                    // Two tiles of scores lie in registers just as the left factor of the next product.
                    weights[tile][n / 2][2 * (n % 2)] = pack<T>(score[0], score[1]);
                    weights[tile][n / 2][2 * (n % 2) + 1] = pack<T>(score[2], score[3]);
                }
            }
        }

        wait_for_copies();
        // The values are there, and all have finished with the keys.
        __syncthreads();
        if (begin + KEYS<D> < length) {
            Keys::copy(qkv, place, head, heads, 1, begin + KEYS<D>, keys);
        }
        if (active) {
#pragma unroll
            for (int k = 0; k < KEYS<D> / 16; k++) {
                if (16 * k >= count) continue;
#pragma unroll
                for (int n = 0; n < COLUMN_TILES; n += 2) {
                    u32 value[4];
                    const int row = 16 * k + row_in_matrix + 8 * (matrix % 2);
                    load_matrices_transposed(value, own_values + row * STRIDE<D> + 8 * (n + matrix / 2));
#pragma unroll
                    for (int tile = 0; tile < ROW_TILES; tile++) {
                        multiply<T>(sums[tile][n], weights[tile][k], value[0], value[1]);
                        // Of an odd number of tiles the last has no neighbour.
                        if (n + 1 < COLUMN_TILES) {
                            multiply<T>(sums[tile][n + 1 < COLUMN_TILES ? n + 1 : n], weights[tile][k], value[2],
                                        value[3]);
                        }
                    }
                }
            }
        }
    }

    __syncthreads();
    if (active) {
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float sum = total[tile][half];
                sum = __fadd_rn(sum, __shfl_xor_sync(WHOLE_WARP, sum, 1));
                sum = __fadd_rn(sum, __shfl_xor_sync(WHOLE_WARP, sum, 2));
                const float inverse = __fdiv_rn(1.0f, sum);
                T* row = own_rows + (16 * tile + lane / 4 + 8 * half) * STRIDE<D> + 2 * (lane % 4);
#pragma unroll
                for (int n = 0; n < COLUMN_TILES; n++) {
                    const float pair[2] = {__fmul_rn(sums[tile][n][2 * half], inverse),
                                           __fmul_rn(sums[tile][n][2 * half + 1], inverse)};
                    Vector<T, 2>::store(row + 8 * n, pair);
                }
            }
        }
    }
    __syncthreads();
    // Whole cache lines at a time: the heads lie side by side.
    constexpr int PARTS = D / 8, ROW_PARTS = SIDE<D> * PARTS;
    const u32 hidden = u32(heads) * D;
    T* to = out + size_t(place.start + place.first) * hidden + head * D;
    for (int item = threadIdx.x; item < QUERIES * ROW_PARTS; item += THREADS) {
        const int row = item / ROW_PARTS, part = item % ROW_PARTS;
        if (place.first + row >= length || head + part / PARTS >= heads) continue;
        const T* at = shared + (part / PARTS * QUERIES + row) * STRIDE<D> + part % PARTS * 8;
        *reinterpret_cast<uint4*>(to + row * hidden + part * 8) = *reinterpret_cast<const uint4*>(at);
    }
}

template <class T, int D, bool BEFORE>
INLINE void attend_tensor(const T* __restrict__ qkv, const int* __restrict__ cu_seqlens,
                          const int2* __restrict__ tiles, const float* __restrict__ cosines,
                          const float* __restrict__ sines, T* __restrict__ out, int heads, float scale) {
    const Place<BLOCK_HEADS<T>> place(cu_seqlens, tiles, heads);
    if (place.is_empty()) return;
    const int end = min(place.head + BLOCK_HEADS<T>, heads);
    for (int head = place.head; head < end; head += SIDE<D>) {
        if (head > place.head) __syncthreads();
        attend_heads<T, D, BEFORE>(qkv, place, head, cosines, sines, out, heads, scale);
    }
}

#endif

#if __CUDA_ARCH__ >= 750
#define ATTEND_F16 attend_tensor
#else
#define ATTEND_F16 attend_plain
#endif
#if __CUDA_ARCH__ >= 800
#define ATTEND_BF16 attend_tensor
#else
#define ATTEND_BF16 attend_plain
#endif

#define ATTENTION(NAME, T, D, ATTEND, BEFORE, ...)                                             \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__)                                  \
        NAME##_##T##_##D(const T* qkv, const int* cu_seqlens, const int2* tiles,               \
                         const float* cosines, const float* sines, T* out, int heads,          \
                         float scale) {                                                        \
        ATTEND<T, D, BEFORE>(qkv, cu_seqlens, tiles, cosines, sines, out, heads, scale);       \
    }

#define ROTATE_KEYS(T, D)                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                          \
        rotate_keys_##T##_##D(T* qkv, const int* cu_seqlens, const int2* tiles,                \
                              const float* cosines, const float* sines, int heads) {           \
        rotate_keys<T, D>(qkv, cu_seqlens, tiles, cosines, sines, heads);                      \
    }

// Blocks per multiprocessor. Without a stated number the compiler spills a few registers of the f32 kernels
// to reach one block more, and takes so many for those with tensor cores that there is room for two blocks
// in place of three.
#define BLOCKS_F32(D) (D > 32 ? 1 : 2)
#define BLOCKS_16_BIT 3

#define HEADS(D)                                                                    \
    ATTENTION(attention, f32, D, attend_plain, false, 256, BLOCKS_F32(D))           \
    ATTENTION(attention, f16, D, ATTEND_F16, false, 128, BLOCKS_16_BIT)          \
    ATTENTION(attention, bf16, D, ATTEND_BF16, false, 128, BLOCKS_16_BIT)        \
    ATTENTION(attention_rotated, f16, D, ATTEND_F16, true, 128, BLOCKS_16_BIT)   \
    ATTENTION(attention_rotated, bf16, D, ATTEND_BF16, true, 128, BLOCKS_16_BIT) \
    ROTATE_KEYS(f16, D)                                                             \
    ROTATE_KEYS(bf16, D)

#ifdef HEAD_WIDTH
HEADS(HEAD_WIDTH)
#else
HEADS(16)
HEADS(24)
HEADS(32)
HEADS(64)
HEADS(128)
#endif
