// Weights from the number type of the file to that of the device.

#ifndef ESM2_NUMBERS
#include "numbers.cuh"
#endif

// to = from, to nearest, ties to even.
//
// from: [count] S.   to: [count] D, not overlapping.
// overflowed: i32; becomes 1 if a finite number does not fit into D and became infinite.
//
// Grid: ceil(count / 2048). Block: 256, 8 numbers per thread. Shared: none. from and to aligned to 16
// bytes; the last numbers are converted one by one.
template <class S, class D>
INLINE void convert(const S* __restrict__ from, D* __restrict__ to, long long count,
                    int* __restrict__ overflowed) {
    const long long at = GROUP * ((long long)(blockIdx.x) * blockDim.x + threadIdx.x);
    if (at >= count) return;
    const int left = int(min(count - at, (long long)(GROUP)));
    float value[GROUP];
    load_group(from + at, left, true, value);
    bool over = false;
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        over = over || (finite(value[i]) && !finite(widen(narrow<D>(value[i]))));
    }
    if (over) atomicOr(overflowed, 1);
    store_group(to + at, left, true, value);
}

#define CONVERT(S, D)                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                       \
        convert_##S##_##D(const S* from, D* to, long long count, int* overflowed) {         \
        convert<S, D>(from, to, count, overflowed);                                         \
    }

CONVERT(f32, f16)
CONVERT(f32, bf16)
CONVERT(f16, f32)
CONVERT(f16, bf16)
CONVERT(bf16, f32)
CONVERT(bf16, f16)
