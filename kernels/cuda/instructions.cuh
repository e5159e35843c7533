// Instructions of the device that CUDA C++ names only in its headers, or not at all.
//
// Nothing of CUDA is included: NVRTC then needs no header on the machine, which often has the library
// alone. tests/emulation/device.hpp gives the same functions for a machine without a GPU.

#ifndef ESM2_INSTRUCTIONS
#define ESM2_INSTRUCTIONS

#define INLINE __device__ __forceinline__

typedef unsigned short u16;
typedef unsigned int u32;

// threadIdx.x, read anew: what is computed from it is then not kept in registers through a loop.
INLINE int thread_index() {
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

INLINE float widen_half(u16 bits) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
    return wide;
}

// To nearest, ties to even; beyond the range infinity.
INLINE u16 narrow_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// 2^x by the special function unit, relative error 2^-22.
INLINE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if __CUDA_ARCH__ >= 800

INLINE u16 narrow_to_brain(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

INLINE u32 narrow_to_halves(float low, float high) {
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

INLINE u32 narrow_to_brains(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// sums [16, 8] += a [16, 16] * b [16, 8], spread over a warp as PTX describes for m16n8k16.
INLINE void multiply_halves(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

INLINE void multiply_brains(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#elif __CUDA_ARCH__ >= 750

// The same product in the steps that Turing has: a's first eight columns are words 0 and 1, b's first
// eight rows word 0.
INLINE void multiply_halves(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%8}, {%0, %1, %2, %3};\n"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%6, %7}, {%9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

#if __CUDA_ARCH__ >= 750

INLINE u32 shared_address(const void* pointer) {
    return u32(__cvta_generic_to_shared(pointer));
}

// Loads four 8 x 8 matrices of 16-bit numbers; lane 8 i + r names row r of matrix i.
INLINE void load_matrices(u32 (&words)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

INLINE void load_matrices_transposed(u32 (&words)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

#endif

#if __CUDA_ARCH__ >= 800

// Starts to copy BYTES, 8 or 16, into shared memory: the first `bytes` of `from`, then zeros.
template <int BYTES>
INLINE void start_copy(void* to, const void* from, int bytes) {
    static_assert(BYTES == 8 || BYTES == 16, "8 or 16 bytes");
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                     "r"(bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from),
                     "r"(bytes)
                     : "memory");
    }
}

// Waits for the copies that this thread has started.
INLINE void wait_for_copies() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

#else

// Before Ampere by way of registers, and done at once. `bytes`: all of BYTES, or 0 for zeros.
template <int BYTES>
INLINE void start_copy(void* to, const void* from, int bytes) {
    static_assert(BYTES == 8 || BYTES == 16, "8 or 16 bytes");
    if constexpr (BYTES == 16) {
        *static_cast<uint4*>(to) = bytes > 0 ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
    } else {
        *static_cast<uint2*>(to) = bytes > 0 ? *static_cast<const uint2*>(from) : make_uint2(0, 0);
    }
}

INLINE void wait_for_copies() {}

#endif
#endif
