// What follows a matrix product, for products whose library call does not do it itself.
//
// Each kernel works in place. Pointers are aligned to 16 bytes; a width that is no multiple of 8 is
// read number by number.

#ifndef ESM2_NUMBERS
#include "numbers.cuh"
#endif

// The exact GELU, x/2 (1 + erf(x/sqrt 2)), within 1e-7 per unit of x.
//
// gelu(x) = max(x, 0) - |x|/2 erfc(|x|/sqrt 2) with ln erfcx as a polynomial: no branch and no loss for
// negative x. The terms, and their derivation, are those of the CPU engine (src/cpu/elementary.rs).
template <class T>
INLINE float gelu(float x) {
    const float a = fabsf(x);
    const float near = fminf(a, 5.8f);
    float sum = 2.1008548234391355e-09f;
    sum = __fmaf_rn(sum, near, -7.616641539698321e-08f);
    sum = __fmaf_rn(sum, near, 1.2266463045307319e-06f);
    sum = __fmaf_rn(sum, near, -1.1478879059723113e-05f);
    sum = __fmaf_rn(sum, near, 6.716893403790891e-05f);
    sum = __fmaf_rn(sum, near, -0.00022539954807143658f);
    sum = __fmaf_rn(sum, near, 4.211796840536408e-05f);
    sum = __fmaf_rn(sum, near, 0.0047831847332417965f);
    sum = __fmaf_rn(sum, near, -0.03633701801300049f);
    sum = __fmaf_rn(sum, near, 0.18169039487838745f);
    sum = __fmaf_rn(sum, near, -0.7978845834732056f);
    const float half_a = __fmul_rn(a, 0.5f);
    const float logarithm = __fadd_rn(__fmul_rn(sum, near), -__fmul_rn(half_a, a));
    const float tail = __fmul_rn(half_a, exp_for<T>(logarithm));
    return __fadd_rn(fmaxf(x, 0.0f), -tail);
}

// x = gelu(x).
//
// x: [count] T.
// Grid: ceil(count / 2048). Block: 256, 8 numbers per thread. Shared: none.
template <class T>
INLINE void gelu_all(T* __restrict__ x, long long count) {
    const long long at = GROUP * ((long long)(blockIdx.x) * blockDim.x + threadIdx.x);
    if (at >= count) return;
    const int left = int(min(count - at, (long long)(GROUP)));
    float value[GROUP];
    load_group(x + at, left, true, value);
#pragma unroll
    for (int i = 0; i < GROUP; i++) value[i] = gelu<T>(value[i]);
    store_group(x + at, left, true, value);
}

// x += bias, or x = gelu(x + bias) where the sum is not rounded to T in between.
//
// x: [rows, width] T.   bias: [width] T.
// Grid: rows. Block: ceil(width / 8) rounded up to a warp, at most 256. Shared: none.
template <class T, bool GELU>
INLINE void bias_rows(T* __restrict__ x, const T* __restrict__ bias, int width) {
    const bool aligned = width % GROUP == 0;
    x += size_t(blockIdx.x) * width;
    for (int column = GROUP * threadIdx.x; column < width; column += GROUP * blockDim.x) {
        float value[GROUP], add[GROUP];
        load_group(x + column, width - column, aligned, value);
        load_group(bias + column, width - column, aligned, add);
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const float sum = __fadd_rn(value[i], add[i]);
            value[i] = GELU ? gelu<T>(sum) : sum;
        }
        store_group(x + column, width - column, aligned, value);
    }
}

// residual += product + bias, rounded once.
//
// product: [rows, width] P.   bias: [width] R.   residual: [rows, width] R.
// Grid, block, shared: as above.
template <class P, class R>
INLINE void bias_residual(const P* __restrict__ product, const R* __restrict__ bias,
                          R* __restrict__ residual, int width) {
    const bool aligned = width % GROUP == 0;
    product += size_t(blockIdx.x) * width;
    residual += size_t(blockIdx.x) * width;
    for (int column = GROUP * threadIdx.x; column < width; column += GROUP * blockDim.x) {
        float value[GROUP], add[GROUP], sum[GROUP];
        load_group(product + column, width - column, aligned, value);
        load_group(bias + column, width - column, aligned, add);
        load_group(residual + column, width - column, aligned, sum);
#pragma unroll
        for (int i = 0; i < GROUP; i++) sum[i] = __fadd_rn(sum[i], __fadd_rn(value[i], add[i]));
        store_group(residual + column, width - column, aligned, sum);
    }
}

#define EPILOGUES(T)                                                                       \
    extern "C" __global__ void __launch_bounds__(256) gelu_##T(T* x, long long count) {    \
        gelu_all<T>(x, count);                                                             \
    }                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                      \
        bias_##T(T* x, const T* bias, int width) {                                         \
        bias_rows<T, false>(x, bias, width);                                               \
    }                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                      \
        bias_gelu_##T(T* x, const T* bias, int width) {                                    \
        bias_rows<T, true>(x, bias, width);                                                \
    }

EPILOGUES(f32)
EPILOGUES(f16)
EPILOGUES(bf16)

#define BIAS_RESIDUAL(P, R)                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                            \
        bias_residual_##P##_##R(const P* product, const R* bias, R* residual, int width) {       \
        bias_residual<P, R>(product, bias, residual, width);                                     \
    }

BIAS_RESIDUAL(f32, f32)
BIAS_RESIDUAL(f16, f16)
BIAS_RESIDUAL(f16, f32)
BIAS_RESIDUAL(bf16, bf16)
BIAS_RESIDUAL(bf16, f32)
