// cuBLASLt without a GPU: products of f32, f16 and bf16 with sums in f32, enqueued like a kernel.
//
// D = epilogue(alpha * op(A) * op(B) + beta * C + bias), columns first, as there. Algorithms differ in the order of their
// sums, so results tell which was used; some need workspace, and use it. What the library does not support
// (mixed inputs, a bias of another type than D, ...) is refused here, too.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

// Of cuda.cpp.
extern "C" int emulated_enqueue(void* stream, const char* kind, const char* what, double cost, int (*run)(void*), void* context, void (*drop)(void*));
extern "C" void emulated_algorithms(int* count, uint64_t* seed);
extern "C" int emulated_without_bias_sum();
extern "C" int emulated_fault(const char* kind);
extern "C" int emulated_holds(const void* pointer, size_t bytes);
extern "C" int emulated_capability();

namespace {

enum { SUCCESS = 0, NOT_INITIALIZED = 1, ALLOC_FAILED = 3, INVALID_VALUE = 7, ARCH_MISMATCH = 8, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, FAST_16F = 74, FAST_16BF = 75, FAST_TF32 = 77 };
enum { EPILOGUE_DEFAULT = 1, RELU = 2, BIAS = 4, RELU_BIAS = 6, GELU = 32, GELU_BIAS = 36 };
constexpr int ILLEGAL_ADDRESS = 700;

struct Desc {
    int compute, scale, pointer_mode = 0, trans_a = 0, trans_b = 0, trans_c = 0, epilogue = EPILOGUE_DEFAULT, bias_type = -1, sm_count = 0;
    const void* bias = nullptr;
    int64_t bias_stride = 0;
};

struct Layout {
    int type, order = 0, batches = 1;
    uint64_t rows, columns;
    int64_t ld, stride = 0;
};

struct Preference {
    uint64_t workspace = 0;
    unsigned reductions = 7;
    unsigned alignment[4] = {256, 256, 256, 256};
};

struct Algorithm {
    uint64_t data[8];
};

struct Result {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

// What data[0] of an algorithm holds, besides its number.
constexpr uint64_t SIGN = 0x656d756c61746500u;
// 0: in order. 1: in two halves, which meet in the workspace. 2: in parts of 64, whose sums pass through the
// workspace. 3: in parts of 128 from the end.
constexpr int ALGORITHMS = 4;
// How the first splits its sums, by the library's names of reductions: in the compute type.
constexpr unsigned REDUCTION_OF_HALVES = 2;

size_t size_of(int type) {
    return type == R_32F ? 4 : 2;
}

float half_to_float(uint16_t bits) {
    _Float16 x;
    std::memcpy(&x, &bits, 2);
    return float(x);
}

float load(int type, const void* base, size_t at) {
    if (type == R_32F) return static_cast<const float*>(base)[at];
    const uint16_t bits = static_cast<const uint16_t*>(base)[at];
    if (type == R_16F) return half_to_float(bits);
    const uint32_t wide = uint32_t(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
}

void store(int type, void* base, size_t at, float x) {
    if (type == R_32F) {
        static_cast<float*>(base)[at] = x;
    } else if (type == R_16F) {
        const _Float16 narrow = _Float16(x);
        std::memcpy(static_cast<uint16_t*>(base) + at, &narrow, 2);
    } else {
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        static_cast<uint16_t*>(base)[at] = uint16_t((x != x ? 0x7fffffffu : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
}

// What the fast modes make of f32 before they multiply.
float rounded(int compute, float x) {
    if (compute == FAST_16F) return float(_Float16(x));
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (compute == FAST_TF32) bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
    else if (compute == FAST_16BF) bits = (bits + 0x7fff + (bits >> 16 & 1)) & ~0xffffu;
    std::memcpy(&x, &bits, 4);
    return x;
}

constexpr size_t ROWS = 32;

size_t workspace_of(int algorithm, size_t m, size_t n) {
    return algorithm == 1 ? m * n * 4 : algorithm == 2 ? n * ROWS * 4 : 0;
}

struct Product {
    Desc desc;
    Layout a, b, c, d;
    const void *from_a, *from_b, *from_c;
    void *to, *workspace;
    float alpha, beta;
    int algorithm;
    size_t m, n, k;
};

// sums [n, m] += over k in [begin, end) of panel [k, ROWS] * right [n, k]
void accumulate(const float* panel, const float* right, size_t k, size_t begin, size_t end, size_t n, float* sums, size_t stride) {
    for (size_t column = 0; column < n; column += 4) {
        const size_t count = std::min<size_t>(4, n - column);
        float total[4][ROWS];
        for (size_t j = 0; j < 4; j++) std::memcpy(total[j], sums + (column + std::min(j, count - 1)) * stride, sizeof total[j]);
        const float* factors[4];
        for (size_t j = 0; j < 4; j++) factors[j] = right + (column + std::min(j, count - 1)) * k;
        for (size_t i = begin; i < end; i++) {
            const float* row = panel + i * ROWS;
            for (size_t j = 0; j < 4; j++) {
                const float factor = factors[j][i];
                for (size_t r = 0; r < ROWS; r++) total[j][r] += row[r] * factor;
            }
        }
        for (size_t j = 0; j < count; j++) std::memcpy(sums + (column + j) * stride, total[j], sizeof total[j]);
    }
}

float epilogue(int kind, float x) {
    if (kind & RELU) return x < 0.0f ? 0.0f : x;
    if (kind & GELU) return 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
    return x;
}

int run(const Product& product, int batch) {
    const size_t m = product.m, n = product.n, k = product.k;
    const Desc& desc = product.desc;
    const auto offset = [&](const Layout& layout) { return size_t(batch) * size_t(layout.stride); };
    // B as [n, k], A in panels [k, ROWS].
    std::vector<float> right(n * k), panel(k * ROWS), sums(n * ROWS);
    for (size_t column = 0; column < n; column++) {
        for (size_t i = 0; i < k; i++) {
            const size_t at = desc.trans_b ? column + i * size_t(product.b.ld) : i + column * size_t(product.b.ld);
            right[column * k + i] = rounded(desc.compute, load(product.b.type, product.from_b, offset(product.b) + at));
        }
    }
    const int bias_type = desc.bias_type < 0 ? product.d.type : desc.bias_type;
    for (size_t first = 0; first < m; first += ROWS) {
        const size_t rows = std::min(ROWS, m - first);
        std::fill(panel.begin(), panel.end(), 0.0f);
        for (size_t r = 0; r < rows; r++) {
            for (size_t i = 0; i < k; i++) {
                const size_t at = desc.trans_a ? i + (first + r) * size_t(product.a.ld) : first + r + i * size_t(product.a.ld);
                panel[i * ROWS + r] = rounded(desc.compute, load(product.a.type, product.from_a, offset(product.a) + at));
            }
        }
        std::fill(sums.begin(), sums.end(), 0.0f);
        if (product.algorithm == 1) {
            accumulate(panel.data(), right.data(), k, 0, k / 2, n, sums.data(), ROWS);
            auto* parts = static_cast<float*>(product.workspace);
            for (size_t column = 0; column < n; column++) std::memcpy(parts + column * m + first, &sums[column * ROWS], rows * 4);
            std::fill(sums.begin(), sums.end(), 0.0f);
            accumulate(panel.data(), right.data(), k, k / 2, k, n, sums.data(), ROWS);
            for (size_t column = 0; column < n; column++) {
                for (size_t r = 0; r < rows; r++) sums[column * ROWS + r] += parts[column * m + first + r];
            }
        } else if (product.algorithm == 2) {
            auto* second = static_cast<float*>(product.workspace);
            for (size_t begin = 0; begin < k; begin += 64) {
                std::fill_n(second, sums.size(), 0.0f);
                accumulate(panel.data(), right.data(), k, begin, std::min(k, begin + 64), n, second, ROWS);
                for (size_t i = 0; i < sums.size(); i++) sums[i] += second[i];
            }
        } else if (product.algorithm == 3) {
            const size_t blocks = (k + 127) / 128;
            for (size_t block = blocks; block-- > 0;) accumulate(panel.data(), right.data(), k, block * 128, std::min(k, block * 128 + 128), n, sums.data(), ROWS);
        } else {
            accumulate(panel.data(), right.data(), k, 0, k, n, sums.data(), ROWS);
        }
        for (size_t column = 0; column < n; column++) {
            for (size_t r = 0; r < rows; r++) {
                const size_t row = first + r;
                float x = product.alpha * sums[column * ROWS + r];
                if (product.beta != 0.0f) x += product.beta * load(product.c.type, product.from_c, offset(product.c) + row + column * size_t(product.c.ld));
                if (desc.epilogue & BIAS) x += load(bias_type, desc.bias, size_t(batch) * size_t(desc.bias_stride) + row);
                store(product.d.type, product.to, offset(product.d) + row + column * size_t(product.d.ld), epilogue(desc.epilogue, x));
            }
        }
    }
    return SUCCESS;
}

size_t extent(const Layout& layout) {
    if (layout.rows == 0 || layout.columns == 0) return 0;
    const size_t one = size_t(layout.ld) * (layout.columns - 1) + layout.rows;
    return (one + size_t(layout.batches - 1) * size_t(layout.stride)) * size_of(layout.type);
}

int execute(void* context) {
    const Product& product = *static_cast<Product*>(context);
    const Desc& desc = product.desc;
    bool held = emulated_holds(product.from_a, extent(product.a)) && emulated_holds(product.from_b, extent(product.b)) && emulated_holds(product.to, extent(product.d));
    if (product.beta != 0.0f) held = held && emulated_holds(product.from_c, extent(product.c));
    const size_t bias = product.m * size_of(desc.bias_type < 0 ? product.d.type : desc.bias_type);
    if (desc.epilogue & BIAS) held = held && emulated_holds(desc.bias, bias);
    if (const size_t bytes = workspace_of(product.algorithm, product.m, product.n)) held = held && emulated_holds(product.workspace, bytes);
    if (!held) {
        std::fprintf(stderr, "emulated CUDA: a product of %zu x %zu x %zu touches what is not allocated\n", product.m, product.n, product.k);
        return ILLEGAL_ADDRESS;
    }
    for (int batch = 0; batch < product.a.batches; batch++) run(product, batch);
    return SUCCESS;
}

void drop(void* context) {
    delete static_cast<Product*>(context);
}

// Whether the library has such a product; its sizes if so.
int check(const Desc& desc, const Layout& a, const Layout& b, const Layout& c, const Layout& d, size_t& m, size_t& n, size_t& k) {
    m = desc.trans_a ? a.columns : a.rows;
    k = desc.trans_a ? a.rows : a.columns;
    n = desc.trans_b ? b.rows : b.columns;
    if ((desc.trans_b ? b.columns : b.rows) != k || d.rows != m || d.columns != n || c.rows != m || c.columns != n) return INVALID_VALUE;
    for (const Layout* layout : {&a, &b, &c, &d}) {
        if (layout->order != 0) return NOT_SUPPORTED;
        if (layout->ld < int64_t(layout->rows) || layout->batches != a.batches) return INVALID_VALUE;
        if (layout->type != R_32F && layout->type != R_16F && layout->type != R_16BF) return NOT_SUPPORTED;
    }
    const bool fast = desc.compute == FAST_16F || desc.compute == FAST_16BF || desc.compute == FAST_TF32;
    if (desc.compute != COMPUTE_32F && desc.compute != COMPUTE_32F_PEDANTIC && !fast) return NOT_SUPPORTED;
    if (desc.scale != R_32F || desc.trans_c != 0 || c.type != d.type || a.type != b.type) return NOT_SUPPORTED;
    if (fast && a.type != R_32F) return NOT_SUPPORTED;
    if (d.type != R_32F && d.type != a.type) return NOT_SUPPORTED;
    const int capability = emulated_capability();
    if (capability == 0) return NOT_INITIALIZED;
    if (a.type == R_16BF && capability < 80) return NOT_SUPPORTED;
    const int kind = desc.epilogue;
    if (kind != EPILOGUE_DEFAULT && kind != RELU && kind != BIAS && kind != RELU_BIAS && kind != GELU && kind != GELU_BIAS) return NOT_SUPPORTED;
    if (kind != EPILOGUE_DEFAULT && desc.bias_type >= 0 && (kind & BIAS) && desc.bias_type != d.type) return NOT_SUPPORTED;
    return SUCCESS;
}


int from_driver(int code) {
    switch (code) {
        case 0: return SUCCESS;
        case 2: return ALLOC_FAILED;
        case 1: return INVALID_VALUE;
        case 3: case 201: return NOT_INITIALIZED;
        // 10000 and more: asked for by the script.
        default: return code >= 10000 ? code - 10000 : EXECUTION_FAILED;
    }
}

template <class T>
int get(const T& value, void* buffer, size_t bytes, size_t* written) {
    if (written) *written = sizeof value;
    if (bytes == 0) return SUCCESS;
    if (bytes < sizeof value) return INVALID_VALUE;
    std::memcpy(buffer, &value, sizeof value);
    return SUCCESS;
}

template <class T>
int set(T& value, const void* buffer, size_t bytes) {
    if (!buffer || bytes < sizeof value) return INVALID_VALUE;
    std::memcpy(&value, buffer, sizeof value);
    return SUCCESS;
}

}  // namespace

API size_t cublasLtGetVersion() {
    return 130000;
}

API size_t cublasLtGetCudartVersion() {
    return 13000;
}

API int cublasLtGetProperty(int which, int* value) {
    *value = which == 0 ? 13 : 0;
    return SUCCESS;
}

API const char* cublasLtGetStatusName(int status) {
    switch (status) {
        case 0: return "CUBLAS_STATUS_SUCCESS";
        case 1: return "CUBLAS_STATUS_NOT_INITIALIZED";
        case 3: return "CUBLAS_STATUS_ALLOC_FAILED";
        case 7: return "CUBLAS_STATUS_INVALID_VALUE";
        case 8: return "CUBLAS_STATUS_ARCH_MISMATCH";
        case 11: return "CUBLAS_STATUS_MAPPING_ERROR";
        case 13: return "CUBLAS_STATUS_EXECUTION_FAILED";
        case 14: return "CUBLAS_STATUS_INTERNAL_ERROR";
        case 15: return "CUBLAS_STATUS_NOT_SUPPORTED";
        default: return "unknown";
    }
}

API const char* cublasLtGetStatusString(int status) {
    return cublasLtGetStatusName(status);
}

API int cublasLtCreate(void** handle) {
    if (emulated_capability() == 0) return NOT_INITIALIZED;
    *handle = new int(0);
    return SUCCESS;
}

API int cublasLtDestroy(void* handle) {
    delete static_cast<int*>(handle);
    return SUCCESS;
}

API int cublasLtMatmulDescCreate(void** handle, int compute, int scale) {
    auto* desc = new Desc();
    desc->compute = compute;
    desc->scale = scale;
    *handle = desc;
    return SUCCESS;
}

API int cublasLtMatmulDescDestroy(void* handle) {
    delete static_cast<Desc*>(handle);
    return SUCCESS;
}

#define DESC_ATTRIBUTES(DO)      \
    switch (attribute) {         \
        case 0: DO(compute);     \
        case 1: DO(scale);       \
        case 2: DO(pointer_mode);\
        case 3: DO(trans_a);     \
        case 4: DO(trans_b);     \
        case 5: DO(trans_c);     \
        case 7: DO(epilogue);    \
        case 8: DO(bias);        \
        case 10: DO(bias_stride);\
        case 15: DO(sm_count);   \
        case 26: DO(bias_type);  \
        default: return NOT_SUPPORTED; \
    }

API int cublasLtMatmulDescSetAttribute(void* handle, int attribute, const void* buffer, size_t bytes) {
    auto& desc = *static_cast<Desc*>(handle);
#define SET(field) return set(desc.field, buffer, bytes)
    DESC_ATTRIBUTES(SET)
}

API int cublasLtMatmulDescGetAttribute(void* handle, int attribute, void* buffer, size_t bytes, size_t* written) {
    const auto& desc = *static_cast<Desc*>(handle);
#define GET(field) return get(desc.field, buffer, bytes, written)
    DESC_ATTRIBUTES(GET)
}

API int cublasLtMatrixLayoutCreate(void** handle, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    auto* layout = new Layout();
    layout->type = type;
    layout->rows = rows;
    layout->columns = columns;
    layout->ld = ld;
    *handle = layout;
    return SUCCESS;
}

API int cublasLtMatrixLayoutDestroy(void* handle) {
    delete static_cast<Layout*>(handle);
    return SUCCESS;
}

#define LAYOUT_ATTRIBUTES(DO)  \
    switch (attribute) {       \
        case 0: DO(type);      \
        case 1: DO(order);     \
        case 2: DO(rows);      \
        case 3: DO(columns);   \
        case 4: DO(ld);        \
        case 5: DO(batches);   \
        case 6: DO(stride);    \
        default: return NOT_SUPPORTED; \
    }

API int cublasLtMatrixLayoutSetAttribute(void* handle, int attribute, const void* buffer, size_t bytes) {
    auto& layout = *static_cast<Layout*>(handle);
#define SET_LAYOUT(field) return set(layout.field, buffer, bytes)
    LAYOUT_ATTRIBUTES(SET_LAYOUT)
}

API int cublasLtMatrixLayoutGetAttribute(void* handle, int attribute, void* buffer, size_t bytes, size_t* written) {
    const auto& layout = *static_cast<Layout*>(handle);
#define GET_LAYOUT(field) return get(layout.field, buffer, bytes, written)
    LAYOUT_ATTRIBUTES(GET_LAYOUT)
}

API int cublasLtMatmulPreferenceCreate(void** handle) {
    *handle = new Preference();
    return SUCCESS;
}

API int cublasLtMatmulPreferenceDestroy(void* handle) {
    delete static_cast<Preference*>(handle);
    return SUCCESS;
}

API int cublasLtMatmulPreferenceSetAttribute(void* handle, int attribute, const void* buffer, size_t bytes) {
    auto& preference = *static_cast<Preference*>(handle);
    if (attribute == 1) return set(preference.workspace, buffer, bytes);
    if (attribute == 3) return set(preference.reductions, buffer, bytes);
    if (attribute >= 5 && attribute <= 8) return set(preference.alignment[attribute - 5], buffer, bytes);
    return attribute >= 0 && attribute <= 13 ? SUCCESS : INVALID_VALUE;
}

API int cublasLtMatmulPreferenceGetAttribute(void* handle, int attribute, void* buffer, size_t bytes, size_t* written) {
    const auto& preference = *static_cast<Preference*>(handle);
    if (attribute == 1) return get(preference.workspace, buffer, bytes, written);
    if (attribute == 3) return get(preference.reductions, buffer, bytes, written);
    if (attribute >= 5 && attribute <= 8) return get(preference.alignment[attribute - 5], buffer, bytes, written);
    return NOT_SUPPORTED;
}

API int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int requested, Result* results, int* count) {
    *count = 0;
    if (!handle || !desc || !a || !b || !c || !d || !preference) return INVALID_VALUE;
    if (int code = emulated_fault("heuristic")) return from_driver(code);
    size_t m, n, k;
    const int code = check(*static_cast<Desc*>(desc), *static_cast<Layout*>(a), *static_cast<Layout*>(b), *static_cast<Layout*>(c), *static_cast<Layout*>(d), m, n, k);
    if (code) return code;
    // The one with workspace first, as the fastest ones often are.
    int most;
    uint64_t seed;
    emulated_algorithms(&most, &seed);
    const auto& wanted = *static_cast<Preference*>(preference);
    for (int algorithm : {1, 2, 0, 3}) {
        const size_t workspace = workspace_of(algorithm, m, n);
        if (*count >= std::min(requested, most) || workspace > wanted.workspace) continue;
        if (algorithm == 1 && !(wanted.reductions & REDUCTION_OF_HALVES)) continue;
        Result result = {};
        result.algorithm.data[0] = SIGN | uint64_t(algorithm);
        result.workspace = workspace;
        result.waves = 1.0f;
        results[(*count)++] = result;
    }
    return *count > 0 ? SUCCESS : NOT_SUPPORTED;
}

API int cublasLtMatmulAlgoGetIds(void*, int, int, int, int, int, int, int requested, int* ids, int* count) {
    *count = std::min(requested, ALGORITHMS);
    for (int i = 0; i < *count; i++) ids[i] = i;
    return SUCCESS;
}

API int cublasLtMatmulAlgoInit(void*, int, int, int, int, int, int, int id, Algorithm* algorithm) {
    if (id < 0 || id >= ALGORITHMS) return INVALID_VALUE;
    *algorithm = {};
    algorithm->data[0] = SIGN | uint64_t(id);
    return SUCCESS;
}

API int cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int attribute, void* buffer, size_t bytes, size_t* written) {
    const int value = attribute == 0 ? int(algorithm->data[0] & 0xff) : attribute == 2 ? (int(algorithm->data[0] & 0xff) == 1 ? 2 : 1) : attribute == 3 ? (int(algorithm->data[0] & 0xff) == 1 ? int(REDUCTION_OF_HALVES) : 0) : 0;
    return attribute >= 0 && attribute <= 9 ? get(value, buffer, bytes, written) : INVALID_VALUE;
}

API int cublasLtMatmulAlgoConfigSetAttribute(Algorithm*, int attribute, const void*, size_t) {
    return attribute == 0 ? INVALID_VALUE : NOT_SUPPORTED;
}

API int cublasLtMatmulAlgoCapGetAttribute(const Algorithm*, int attribute, void* buffer, size_t bytes, size_t* written) {
    const unsigned value = attribute >= 16 && attribute <= 19 ? 16 : attribute == 3 || attribute == 4 ? 1 : 0;
    return get(value, buffer, bytes, written);
}

API int cublasLtMatmulAlgoCheck(void* handle, void* desc, void* a, void* b, void* c, void* d, const Algorithm* algorithm, Result* result) {
    if (!handle || !desc || !a || !b || !c || !d || !algorithm || !result) return INVALID_VALUE;
    size_t m, n, k;
    const int code = check(*static_cast<Desc*>(desc), *static_cast<Layout*>(a), *static_cast<Layout*>(b), *static_cast<Layout*>(c), *static_cast<Layout*>(d), m, n, k);
    if (code) return code;
    if ((algorithm->data[0] & ~uint64_t(0xff)) != SIGN || (algorithm->data[0] & 0xff) >= ALGORITHMS) return INVALID_VALUE;
    *result = {};
    result->algorithm = *algorithm;
    result->workspace = workspace_of(int(algorithm->data[0] & 0xff), m, n);
    result->waves = 1.0f;
    return SUCCESS;
}

API int cublasLtMatmul(void* handle, void* desc_handle, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout, const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
    if (!handle || !desc_handle || !a_layout || !b_layout || !c_layout || !d_layout || !alpha || !beta || !a || !b || !d) return INVALID_VALUE;
    auto product = std::make_unique<Product>();
    product->desc = *static_cast<Desc*>(desc_handle);
    product->a = *static_cast<Layout*>(a_layout);
    product->b = *static_cast<Layout*>(b_layout);
    product->c = *static_cast<Layout*>(c_layout);
    product->d = *static_cast<Layout*>(d_layout);
    const Desc& desc = product->desc;
    const int code = check(desc, product->a, product->b, product->c, product->d, product->m, product->n, product->k);
    if (code) return code;
    if (desc.pointer_mode != 0) return NOT_SUPPORTED;
    if ((desc.epilogue & BIAS) && !desc.bias) return INVALID_VALUE;
    // Scalars are read when the product is enqueued.
    std::memcpy(&product->alpha, alpha, 4);
    std::memcpy(&product->beta, beta, 4);
    if (product->beta != 0.0f && !c) return INVALID_VALUE;
    if (product->beta != 0.0f && (desc.epilogue & BIAS) && emulated_without_bias_sum()) return NOT_SUPPORTED;
    if (c == d && product->c.ld != product->d.ld) return INVALID_VALUE;
    for (const void* pointer : {a, b, c, static_cast<const void*>(d)}) {
        if (uintptr_t(pointer) % 16 != 0) return NOT_SUPPORTED;
    }
    product->algorithm = 0;
    if (algorithm) {
        if ((algorithm->data[0] & ~uint64_t(0xff)) != SIGN || (algorithm->data[0] & 0xff) >= ALGORITHMS) return INVALID_VALUE;
        product->algorithm = int(algorithm->data[0] & 0xff);
    }
    const size_t needed = workspace_of(product->algorithm, product->m, product->n);
    if (needed > workspace_bytes || (needed > 0 && (!workspace || uintptr_t(workspace) % 16 != 0))) return INVALID_VALUE;
    product->from_a = a;
    product->from_b = b;
    product->from_c = c;
    product->to = d;
    product->workspace = workspace;
    char what[96];
    std::snprintf(what, sizeof what, "product %zu x %zu x %zu by algorithm %d", product->m, product->n, product->k, product->algorithm);
    int most;
    uint64_t seed;
    emulated_algorithms(&most, &seed);
    // Microseconds at some tenths of a petaflop per second, which of the algorithms is fastest being the seed's.
    const double slowness = 1.0 + 0.1 * double((uint64_t(product->algorithm) + seed) % ALGORITHMS);
    const double cost = 3 + 2.0 * double(product->m) * double(product->n) * double(product->k) * slowness / 4e8;
    return from_driver(emulated_enqueue(stream, "matmul", what, cost, execute, product.release(), drop));
}
