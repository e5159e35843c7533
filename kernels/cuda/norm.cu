// Layer norm.

#ifndef ESM2_NUMBERS
#include "numbers.cuh"
#endif

// Normalises rows: mean and variance in f32, the variance from centred values.
//
// x: [rows, width] X.   scale, shift: [width] f32.   out: [rows, width] O, not overlapping x.
//
// A warp per row: no barrier, and any width. The row is read three times, the second and third time
// from the first-level cache.
//
// Grid: ceil(rows / 4). Block: 128. Shared: none. All pointers aligned to 16 bytes; a width that is
// no multiple of 8 is read number by number.
template <class X, class O>
INLINE void layer_norm(const X* __restrict__ x, const float* __restrict__ scale,
                       const float* __restrict__ shift, O* __restrict__ out, int rows, int width,
                       float eps) {
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const int first = GROUP * (threadIdx.x % WARP);
    const bool aligned = width % GROUP == 0;
    x += size_t(row) * width;
    out += size_t(row) * width;

    float sum = 0.0f;
    for (int column = first; column < width; column += GROUP * WARP) {
        float value[GROUP];
        load_group(x + column, width - column, aligned, value);
#pragma unroll
        for (int i = 0; i < GROUP; i++) sum = __fadd_rn(sum, value[i]);
    }
    const float mean = __fdiv_rn(warp_sum(sum), float(width));

    float squares = 0.0f;
    for (int column = first; column < width; column += GROUP * WARP) {
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

    for (int column = first; column < width; column += GROUP * WARP) {
        float value[GROUP], scales[GROUP], shifts[GROUP];
        load_group(x + column, width - column, aligned, value);
        load_group(scale + column, width - column, aligned, scales);
        load_group(shift + column, width - column, aligned, shifts);
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const float unit = __fmul_rn(__fadd_rn(value[i], -mean), inverse);
            value[i] = __fmaf_rn(unit, scales[i], shifts[i]);
        }
        store_group(out + column, width - column, aligned, value);
    }
}

#define LAYER_NORM(X, O)                                                                                \
    extern "C" __global__ void __launch_bounds__(128)                                                   \
        layer_norm_##X##_##O(const X* x, const float* scale, const float* shift, O* out, int rows,      \
                             int width, float eps) {                                                    \
        layer_norm<X, O>(x, scale, shift, out, rows, width, eps);                                       \
    }

LAYER_NORM(f32, f32)
LAYER_NORM(f32, f16)
LAYER_NORM(f32, bf16)
LAYER_NORM(f16, f16)
LAYER_NORM(f16, f32)
LAYER_NORM(bf16, bf16)
LAYER_NORM(bf16, f32)
