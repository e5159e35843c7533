// Number types and the arithmetic that the kernels share.
//
// Everything is computed in f32; f16 and bf16 only store. The sources are compiled with
// --fmad=false: each fused multiply-add is written out, so that the scalar twins
// (src/cuda/twin.rs) can repeat f32 results bit for bit.

#ifndef ESM2_NUMBERS
#define ESM2_NUMBERS

#ifndef ESM2_INSTRUCTIONS
#include "instructions.cuh"
#endif

typedef unsigned char u8;
typedef float f32;

// IEEE half precision.
struct f16 {
    u16 bits;
};

// The upper half of an f32.
struct bf16 {
    u16 bits;
};

constexpr int WARP = 32;
constexpr u32 WHOLE_WARP = 0xffffffffu;

// Numbers that are loaded and stored together: 16 bytes of f16, 32 of f32.
constexpr int GROUP = 8;

INLINE float widen(float x) {
    return x;
}

INLINE float widen(f16 x) {
    return widen_half(x.bits);
}

INLINE float widen(bf16 x) {
    return __uint_as_float(u32(x.bits) << 16);
}

// To the nearest number of type T, ties to even; beyond its range infinity.
template <class T>
INLINE T narrow(float x);

template <>
INLINE float narrow<float>(float x) {
    return x;
}

template <>
INLINE f16 narrow<f16>(float x) {
    return {narrow_to_half(x)};
}

template <>
INLINE bf16 narrow<bf16>(float x) {
#if __CUDA_ARCH__ >= 800
    return {narrow_to_brain(x)};
#else
    u32 bits = __float_as_uint(x);
    bits = x != x ? 0x7fffffffu : bits + 0x7fffu + (bits >> 16 & 1u);
    return {u16(bits >> 16)};
#endif
}

// Two numbers in a word, `low` in the lower half.
template <class T>
INLINE u32 pack(float low, float high) {
    return u32(narrow<T>(low).bits) | u32(narrow<T>(high).bits) << 16;
}

#if __CUDA_ARCH__ >= 800
template <>
INLINE u32 pack<f16>(float low, float high) {
    return narrow_to_halves(low, high);
}

template <>
INLINE u32 pack<bf16>(float low, float high) {
    return narrow_to_brains(low, high);
}
#endif

template <class T>
INLINE void unpack(u32 word, float& low, float& high) {
    low = widen(T{u16(word)});
    high = widen(T{u16(word >> 16)});
}

// Loads and stores of N numbers, N * sizeof(T) bytes aligned up to 16.
template <class T, int N>
struct Vector {
    static INLINE void load(const T* from, float (&x)[N]) {
        static_assert(N == 2 || N == 4 || N == GROUP, "2, 4 or 8 numbers");
        u32 words[N / 2];
        if constexpr (N == 8) {
            uint4 raw = *reinterpret_cast<const uint4*>(from);
            words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
        } else if constexpr (N == 4) {
            uint2 raw = *reinterpret_cast<const uint2*>(from);
            words[0] = raw.x, words[1] = raw.y;
        } else {
            words[0] = *reinterpret_cast<const u32*>(from);
        }
#pragma unroll
        for (int i = 0; i < N / 2; i++) unpack<T>(words[i], x[2 * i], x[2 * i + 1]);
    }

    static INLINE void store(T* to, const float (&x)[N]) {
        u32 words[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) words[i] = pack<T>(x[2 * i], x[2 * i + 1]);
        if constexpr (N == 8) {
            *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
        } else if constexpr (N == 4) {
            *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
        } else {
            *reinterpret_cast<u32*>(to) = words[0];
        }
    }
};

template <int N>
struct Vector<float, N> {
    static INLINE void load(const float* from, float (&x)[N]) {
        if constexpr (N == 2) {
            float2 raw = *reinterpret_cast<const float2*>(from);
            x[0] = raw.x, x[1] = raw.y;
        } else {
#pragma unroll
            for (int i = 0; i < N; i += 4) {
                float4 raw = *reinterpret_cast<const float4*>(from + i);
                x[i] = raw.x, x[i + 1] = raw.y, x[i + 2] = raw.z, x[i + 3] = raw.w;
            }
        }
    }

    static INLINE void store(float* to, const float (&x)[N]) {
        if constexpr (N == 2) {
            *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
        } else {
#pragma unroll
            for (int i = 0; i < N; i += 4) {
                *reinterpret_cast<float4*>(to + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
            }
        }
    }
};

// Loads the `count` numbers of a group; the others become zero. Anything but a whole, aligned group
// is read number by number.
template <class T>
INLINE void load_group(const T* from, int count, bool aligned, float (&x)[GROUP]) {
    if (aligned && count >= GROUP) {
        Vector<T, GROUP>::load(from, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < GROUP; i++) x[i] = i < count ? widen(from[i]) : 0.0f;
}

template <class T>
INLINE void store_group(T* to, int count, bool aligned, const float (&x)[GROUP]) {
    if (aligned && count >= GROUP) {
        Vector<T, GROUP>::store(to, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        if (i < count) to[i] = narrow<T>(x[i]);
    }
}

// The sum over a warp, the same bits in every lane.
INLINE float warp_sum(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x = __fadd_rn(x, __shfl_xor_sync(WHOLE_WARP, x, distance));
    }
    return x;
}

INLINE float infinity() {
    return __uint_as_float(0x7f800000u);
}

INLINE bool finite(float x) {
    return fabsf(x) <= 3.402823466e38f;
}

constexpr float LOG2_E = 1.44269504088896341f;

// exp(x) for x <= 0 within 2 units in the last place; below -87 it stays at about 1e-38. The terms
// are those of the CPU engine (src/cpu/elementary.rs).
INLINE float exp_exact(float x) {
    const float ROUND = 12582912.0f;
    // A NaN here is 0x7fffffff: the integer addition below would turn it into the largest number.
    if (x != x) return x;
    x = x < -87.0f ? -87.0f : x;
    float rounded = __fmaf_rn(x, LOG2_E, ROUND);
    float power = __fadd_rn(rounded, -ROUND);
    float r = __fmaf_rn(power, -0.6933594f, x);
    r = __fmaf_rn(power, 2.1219444e-4f, r);
    float sum = 1.0f / 5040.0f;
    sum = __fmaf_rn(sum, r, 1.0f / 720.0f);
    sum = __fmaf_rn(sum, r, 1.0f / 120.0f);
    sum = __fmaf_rn(sum, r, 1.0f / 24.0f);
    sum = __fmaf_rn(sum, r, 1.0f / 6.0f);
    sum = __fmaf_rn(sum, r, 0.5f);
    sum = __fmaf_rn(sum, r, 1.0f);
    sum = __fmaf_rn(sum, r, 1.0f);
    return __uint_as_float(__float_as_uint(sum) + (__float_as_uint(rounded) << 23));
}

// exp(x) as precisely as storage type T can tell: a result of 16 bits hides the special function unit's
// error, which saves nine tenths of the instructions.
template <class T>
INLINE float exp_for(float x) {
    return exp2_fast(__fmul_rn(x, LOG2_E));
}

template <>
INLINE float exp_for<float>(float x) {
    return exp_exact(x);
}

#endif
