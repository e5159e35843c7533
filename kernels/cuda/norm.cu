// Layer norm.

#ifndef ESM2_NUMBERS
#include "numbers.cuh"
#endif

// Normalises rows: mean and variance in f32, the variance from centred values.
//
// x: [rows, width] X.   scale, shift: [width] f32.   out: [rows, width] O, not overlapping x.
//
// A warp per row: no barrier, and any width. The row is read once and kept in registers, as it was stored, up to
// HELD numbers by layer_norm_* and twice as many by layer_norm_wide_*, whose registers leave room for fewer
// rows at a time. What is beyond, and a row whose width is no multiple of 8, is read three times, the second and
// third time from a cache. The order of additions is the same in all cases.
//
// Grid: ceil(rows / 4). Block: 128. Shared: none. All pointers aligned to 16 bytes; a width that is
// no multiple of 8 is read number by number.

// Numbers of a row in a warp's registers; launch.rs has the same.
constexpr int HELD = 2560;

// A group of numbers as it was stored.
template <class X>
struct Stored {
    static constexpr int WORDS = GROUP * sizeof(X) / 4;
    u32 words[WORDS];

    INLINE void load(const X* from) {
#pragma unroll
        for (int i = 0; i < WORDS; i += 4) {
            const uint4 raw = reinterpret_cast<const uint4*>(from)[i / 4];
            words[i] = raw.x, words[i + 1] = raw.y, words[i + 2] = raw.z, words[i + 3] = raw.w;
        }
    }

    INLINE void widen_all(float (&x)[GROUP]) const {
        if constexpr (sizeof(X) == 4) {
#pragma unroll
            for (int i = 0; i < GROUP; i++) x[i] = __uint_as_float(words[i]);
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) unpack<X>(words[i], x[2 * i], x[2 * i + 1]);
        }
    }
};

template <class X, class O, int GROUPS>
INLINE void layer_norm(const X* __restrict__ x, const float* __restrict__ scale,
                       const float* __restrict__ shift, O* __restrict__ out, int rows, int width,
                       float eps) {
    constexpr int STEP = GROUP * WARP;
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const int first = GROUP * (threadIdx.x % WARP);
    const bool aligned = width % GROUP == 0;
    // The first column that is not kept.
    const int rest = first + (aligned ? GROUPS * STEP : 0);
    x += size_t(row) * width;
    out += size_t(row) * width;

    Stored<X> kept[GROUPS];
    float sum = 0.0f;
    if (aligned) {
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            if (first + i * STEP < width) kept[i].load(x + first + i * STEP);
        }
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            if (first + i * STEP >= width) continue;
            float value[GROUP];
            kept[i].widen_all(value);
#pragma unroll
            for (int j = 0; j < GROUP; j++) sum = __fadd_rn(sum, value[j]);
        }
    }
    for (int column = rest; column < width; column += STEP) {
        float value[GROUP];
        load_group(x + column, width - column, aligned, value);
#pragma unroll
        for (int i = 0; i < GROUP; i++) sum = __fadd_rn(sum, value[i]);
    }
    const float mean = __fdiv_rn(warp_sum(sum), float(width));

    float squares = 0.0f;
    if (aligned) {
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            if (first + i * STEP >= width) continue;
            float value[GROUP];
            kept[i].widen_all(value);
#pragma unroll
            for (int j = 0; j < GROUP; j++) {
                const float centred = __fadd_rn(value[j], -mean);
                squares = __fmaf_rn(centred, centred, squares);
            }
        }
    }
    for (int column = rest; column < width; column += STEP) {
        float value[GROUP];
        load_group(x + column, width - column, aligned, value);
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const float centred = column + i < width ? __fadd_rn(value[i], -mean) : 0.0f;
            squares = __fmaf_rn(centred, centred, squares);
        }
    }
    const float variance = __fdiv_rn(warp_sum(squares), float(width));
    const float inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(variance, eps)));

    const auto finish = [&](int column, float(&value)[GROUP]) {
        float scales[GROUP], shifts[GROUP];
        load_group(scale + column, width - column, aligned, scales);
        load_group(shift + column, width - column, aligned, shifts);
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const float unit = __fmul_rn(__fadd_rn(value[i], -mean), inverse);
            value[i] = __fmaf_rn(unit, scales[i], shifts[i]);
        }
        store_group(out + column, width - column, aligned, value);
    };
    if (aligned) {
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            if (first + i * STEP >= width) continue;
            float value[GROUP];
            kept[i].widen_all(value);
            finish(first + i * STEP, value);
        }
    }
    for (int column = rest; column < width; column += STEP) {
        float value[GROUP];
        load_group(x + column, width - column, aligned, value);
        finish(column, value);
    }
}

#define LAYER_NORM(X, O)                                                                                \
    extern "C" __global__ void __launch_bounds__(128, 4)                                                \
        layer_norm_##X##_##O(const X* x, const float* scale, const float* shift, O* out, int rows,      \
                             int width, float eps) {                                                    \
        layer_norm<X, O, HELD / (GROUP * WARP)>(x, scale, shift, out, rows, width, eps);                \
    }                                                                                                   \
    extern "C" __global__ void __launch_bounds__(128, 2)                                                \
        layer_norm_wide_##X##_##O(const X* x, const float* scale, const float* shift, O* out, int rows, \
                                  int width, float eps) {                                               \
        layer_norm<X, O, 2 * HELD / (GROUP * WARP)>(x, scale, shift, out, rows, width, eps);            \
    }

LAYER_NORM(f32, f32)
LAYER_NORM(f32, f16)
LAYER_NORM(f32, bf16)
LAYER_NORM(f16, f16)
LAYER_NORM(f16, f32)
LAYER_NORM(bf16, bf16)
LAYER_NORM(bf16, f32)
