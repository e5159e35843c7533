// A GPU in plain C++, just enough to run the kernels of kernels/cuda where there is none.
//
// Each thread of a block is a fiber. They run one at a time and change at barriers and where a warp exchanges
// values; each warp runs on its own as far as it gets. That finds wrong indices, fragments and tails, and most
// missing barriers, but no race within a warp. Shared memory is static memory: one block runs at a time.

#pragma once

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define ESM2_INSTRUCTIONS
#define __CUDA_ARCH__ EMULATED_ARCHITECTURE
#define INLINE inline
#define __device__
#define __forceinline__ inline
#ifdef EMULATED_ENTRIES
// The emulated NVRTC looks for these in the text and takes them out.
#define __global__ EMULATED_GLOBAL
#define __launch_bounds__(...) EMULATED_BOUNDS(__VA_ARGS__)
#else
#define __global__
#define __launch_bounds__(...)
#endif
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

typedef unsigned short u16;
typedef unsigned int u32;

struct uint2 {
    u32 x, y;
};
struct uint4 {
    u32 x, y, z, w;
};
struct int2 {
    int x, y;
};
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(u32 x, u32 y) {
    return {x, y};
}
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) {
    return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

struct Index {
    u32 x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}

// ---- fibers ----------------------------------------------------------------------------------------------

namespace device {

constexpr int LANES = 32;
constexpr size_t STACK_BYTES = 64 << 10;

struct Barrier {
    int arrived = 0;
    unsigned opened = 0;
};

struct Warp {
    Barrier barrier;
    unsigned exchanges[LANES] = {};
    // Two places, used in turn: nobody reaches the next but one exchange before all have read this one.
    unsigned char values[2][LANES][64];
    float results[2][LANES][4];
};

struct Copy {
    void* to;
    const void* from;
    int bytes, room;

    void arrive() const {
        std::memset(to, 0, size_t(room));
        std::memcpy(to, from, size_t(bytes));
    }
};

// Where a fiber stands while another one runs.
#if defined(__x86_64__)
typedef void* Place;

// Changes to another stack. A system call at each change, as swapcontext makes one, would take most of the time.
__attribute__((naked, noipa)) static void change(Place*, Place*) {
    asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
static void prepare(Place& place, char* stack, size_t bytes, void (*enter)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) / 16 * 16);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(enter);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    place = top;
}
#else
typedef ucontext_t Place;

static void change(Place* from, Place* to) {
    swapcontext(from, to);
}
static void prepare(Place& place, char* stack, size_t bytes, void (*enter)()) {
    getcontext(&place);
    place.uc_stack.ss_sp = stack;
    place.uc_stack.ss_size = bytes;
    place.uc_link = nullptr;
    makecontext(&place, enter, 0);
}
#endif

struct Fiber {
    Place place;
    std::unique_ptr<char[]> stack;
    Index index;
    bool done;
    // Copies started and not waited for: they arrive as late as they may.
    std::vector<Copy> copies;
};

static Place scheduler;
static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Barrier block_barrier;
static int current, live;
static bool moved;
static void (*body)(void*);
static void* body_context;

// On to the next lane of the warp that still has something to do, and behind the last one to the scheduler.
inline void leave() {
    const int self = current, end = min(int(fibers.size()), (self / LANES + 1) * LANES);
    int next = self + 1;
    while (next < end && fibers[next].done) next++;
    if (next < end) current = next;
    change(&fibers[self].place, next < end ? &fibers[next].place : &scheduler);
}

inline void yield() {
    const int self = current;
    leave();
    threadIdx = fibers[self].index;
}

// The last one to arrive runs `finish` before all go on.
template <class F>
void meet(Barrier& barrier, const int& expected, F finish) {
    const unsigned before = barrier.opened;
    barrier.arrived++;
    while (barrier.opened == before) {
        if (barrier.arrived >= expected) {
            finish();
            barrier.arrived = 0;
            barrier.opened++;
            moved = true;
            return;
        }
        yield();
    }
}

static const int WHOLE = LANES;

// What each lane of the warp has given; `finish` gets it and the place in turn once all have.
template <class T, class F>
const T* exchange(const T& mine, F finish) {
    static_assert(sizeof(T) <= 64, "fits a place");
    Warp& warp = warps[current / LANES];
    const int lane = current % LANES;
    const unsigned turn = warp.exchanges[lane]++ % 2;
    auto& values = warp.values[turn];
    std::memcpy(values[lane], &mine, sizeof(T));
    const T* all = reinterpret_cast<const T*>(&values[0][0]);
    meet(warp.barrier, WHOLE, [&] { finish(all, warp.results[turn]); });
    return all;
}
template <class T>
const T* exchange(const T& mine) {
    return exchange(mine, [](const T*, float (*)[4]) {});
}

template <class T>
T of_lane(const T* values, int lane) {
    T value;
    std::memcpy(&value, reinterpret_cast<const unsigned char*>(values) + 64 * lane, sizeof(T));
    return value;
}

static void enter() {
    threadIdx = fibers[current].index;
    body(body_context);
    fibers[current].done = true;
    live--;
    moved = true;
    for (;;) leave();
}

}  // namespace device

// Runs `body(context)` in each thread of each block.
extern "C" void launch(const u32 grid[3], const u32 block[3], void (*body)(void*), void* context) {
    using namespace device;
    const int threads = int(block[0] * block[1] * block[2]);
    device::body = body;
    body_context = context;
    blockDim = {block[0], block[1], block[2]};
    gridDim = {grid[0], grid[1], grid[2]};
    fibers.resize(threads);
    const u32 blocks = grid[0] * grid[1];
    for (u32 z = 0; z < grid[2]; z++) {
        for (u32 number = 0; number < blocks; number++) {
            const u32 x = number % grid[0], y = number / grid[0];
            blockIdx = {x, y, z};
            warps.assign((threads + LANES - 1) / LANES, Warp());
            block_barrier = Barrier();
            live = threads;
            for (int i = 0; i < threads; i++) {
                Fiber& fiber = fibers[i];
                if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);
                fiber.index = {u32(i) % block[0], u32(i) / block[0] % block[1], u32(i) / block[0] / block[1]};
                fiber.done = false;
                fiber.copies.clear();
                prepare(fiber.place, fiber.stack.get(), STACK_BYTES, enter);
            }
            const int count = int(warps.size());
            for (bool forward = x % 2 == 1; live > 0; forward = !forward) {
                bool any = false;
                for (int i = 0; i < count; i++) {
                    const int first = LANES * (forward ? i : count - 1 - i);
                    // As far as it gets before a barrier of the block: a warp that runs ahead of one that is
                    // missing meets memory that the others have not written, or still read.
                    do {
                        moved = false;
                        for (current = first; current < min(first + LANES, threads); current++) {
                            if (!fibers[current].done) change(&scheduler, &fibers[current].place);
                        }
                        any = any || moved;
                    } while (moved);
                }
                if (!any) {
                    std::fprintf(stderr, "block (%u, %u) waits for threads that never come\n", x, y);
                    std::abort();
                }
            }
        }
    }
}

// ---- CUDA C++ --------------------------------------------------------------------------------------------

inline void __syncthreads() {
    device::meet(device::block_barrier, device::live, [] {});
}
inline float __shfl_xor_sync(u32, float x, int mask) {
    return device::of_lane(device::exchange(x), device::current % device::LANES ^ mask);
}
inline float __shfl_sync(u32, float x, int lane, int width) {
    const int self = device::current % device::LANES;
    return device::of_lane(device::exchange(x), self / width * width + lane);
}
inline void atomicAdd(int* at, int x) {
    *at += x;
}
inline void atomicOr(int* at, int x) {
    *at |= x;
}
inline float __uint_as_float(u32 bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline u32 __float_as_uint(float x) {
    u32 bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fsqrt_rn(float a) {
    return std::sqrt(a);
}
inline float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}

// ---- instructions.cuh ------------------------------------------------------------------------------------

inline float widen_half(u16 bits) {
    _Float16 x;
    std::memcpy(&x, &bits, 2);
    return float(x);
}
inline u16 narrow_to_half(float wide) {
    const _Float16 x = _Float16(wide);
    u16 bits;
    std::memcpy(&bits, &x, 2);
    return bits;
}
inline float exp2_fast(float x) {
    return std::exp2(x);
}
inline int thread_index() {
    return int(threadIdx.x);
}

#if EMULATED_ARCHITECTURE >= 750

inline float widen_brain(u16 bits) {
    return __uint_as_float(u32(bits) << 16);
}
inline u16 narrow_to_brain(float x) {
    const u32 bits = __float_as_uint(x);
    return u16((x != x ? 0x7fffffffu : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline u32 narrow_to_halves(float low, float high) {
    return u32(narrow_to_half(low)) | u32(narrow_to_half(high)) << 16;
}
inline u32 narrow_to_brains(float low, float high) {
    return u32(narrow_to_brain(low)) | u32(narrow_to_brain(high)) << 16;
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16", and m16n8k8 for K = 8: with group = lane / 4 and place = lane % 4,
// word w of a holds row group + 8 (w % 2), columns 2 place + 8 (w / 2) and the next; word w of b rows 2 place + 8 w
// and the next of column group; number i of the sums row group + 8 (i / 2), column 2 place + i % 2.
template <float (*WIDEN)(u16), int K>
void multiply_matrices(float (&sums)[4], const u32 (&a)[K / 4], const u32 (&b)[K / 8]) {
    struct Words {
        u32 a[K / 4], b[K / 8];
        float sums[4];
    };
    Words mine;
    std::memcpy(mine.a, a, sizeof a);
    std::memcpy(mine.b, b, sizeof b);
    std::memcpy(mine.sums, sums, sizeof sums);
    device::exchange(mine, [&](const Words* all, float(*results)[4]) {
        float left[16][K], right[K][8], total[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const Words words = device::of_lane(all, lane);
            const int group = lane / 4, place = lane % 4;
            for (int half = 0; half < 2; half++) {
                for (int w = 0; w < K / 4; w++) {
                    left[group + 8 * (w % 2)][2 * place + 8 * (w / 2) + half] = WIDEN(u16(words.a[w] >> 16 * half));
                }
                for (int w = 0; w < K / 8; w++) right[2 * place + 8 * w + half][group] = WIDEN(u16(words.b[w] >> 16 * half));
            }
            for (int i = 0; i < 4; i++) total[group + 8 * (i / 2)][2 * place + i % 2] = words.sums[i];
        }
        for (int row = 0; row < 16; row++) {
            for (int k = 0; k < K; k++) {
                for (int column = 0; column < 8; column++) total[row][column] += left[row][k] * right[k][column];
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < 4; i++) results[lane][i] = total[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
        }
    });
    device::Warp& warp = device::warps[device::current / 32];
    const int lane = device::current % 32;
    std::memcpy(sums, warp.results[(warp.exchanges[lane] - 1) % 2][lane], sizeof sums);
}
#if EMULATED_ARCHITECTURE >= 800
inline void multiply_halves(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_matrices<widen_half, 16>(sums, a, {b0, b1});
}
inline void multiply_brains(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_matrices<widen_brain, 16>(sums, a, {b0, b1});
}
#else
inline void multiply_halves(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_matrices<widen_half, 8>(sums, {a[0], a[1]}, {b0});
    multiply_matrices<widen_half, 8>(sums, {a[2], a[3]}, {b1});
}
#endif

// PTX ISA, "ldmatrix": a lane gets, of each matrix, row lane / 4, columns 2 (lane % 4) and the next.
template <bool TRANSPOSED>
void load_fragments(u32 (&words)[4], const void* row) {
    const void* const* rows = device::exchange(row);
    const int lane = device::current % 32;
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) std::abort();
    for (int matrix = 0; matrix < 4; matrix++) {
        u32 word = 0;
        for (int half = 0; half < 2; half++) {
            int r = lane / 4, c = 2 * (lane % 4) + half;
            if (TRANSPOSED) std::swap(r, c);
            const u16* from = static_cast<const u16*>(device::of_lane(rows, 8 * matrix + r));
            word |= u32(from[c]) << 16 * half;
        }
        words[matrix] = word;
    }
}
inline void load_matrices(u32 (&words)[4], const void* row) {
    load_fragments<false>(words, row);
}
inline void load_matrices_transposed(u32 (&words)[4], const void* row) {
    load_fragments<true>(words, row);
}

#endif

// Copies arrive as late as they may in some blocks, at once in others: the first shows a wait that is missing, the
// second a copy to where somebody still reads.
template <int BYTES>
void start_copy(void* to, const void* from, int bytes) {
    static_assert(BYTES == 8 || BYTES == 16, "8 or 16 bytes");
    if (reinterpret_cast<uintptr_t>(to) % BYTES != 0 || reinterpret_cast<uintptr_t>(from) % BYTES != 0) std::abort();
    if (bytes < 0 || bytes > BYTES || (EMULATED_ARCHITECTURE < 800 && bytes != 0 && bytes != BYTES)) std::abort();
    const device::Copy copy = {to, from, bytes, BYTES};
    if (EMULATED_ARCHITECTURE < 800 || blockIdx.x / 2 % 2 == 1) {
        copy.arrive();
    } else {
        device::fibers[device::current].copies.push_back(copy);
    }
}
inline void wait_for_copies() {
    auto& copies = device::fibers[device::current].copies;
    for (const device::Copy& copy : copies) copy.arrive();
    copies.clear();
}

// ---- calls by array of arguments ---------------------------------------------------------------------------

#ifdef EMULATED_ENTRIES

struct EmulatedEntry {
    const char* name;
    void (*call)(void* arguments);
    unsigned parameters;
    const size_t* sizes;
    unsigned threads_max;
};

template <auto KERNEL>
struct EmulatedCall;

template <class... A, void (*KERNEL)(A...)>
struct EmulatedCall<KERNEL> {
    static constexpr size_t sizes[] = {sizeof(A)..., 0};
    static constexpr unsigned count = sizeof...(A);

    template <size_t... I>
    static void unpack(void** arguments, std::index_sequence<I...>) {
        KERNEL(*static_cast<A*>(arguments[I])...);
    }
    static void call(void* arguments) {
        unpack(static_cast<void**>(arguments), std::index_sequence_for<A...>());
    }
};

#endif
