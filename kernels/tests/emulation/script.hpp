// What the variable VIRNUCPRO_EMULATED_CUDA asks of the emulated libraries.
//
// Items are separated by ";" (spaces around them are ignored):
//
//     devices=2                 GPUs of the machine; 1 unless said otherwise
//     memory=512M,1G            bytes of each GPU (K, M, G); the last one holds for all further GPUs. 512M
//     used=100M                 of them, what other processes have taken. 0
//     capability=9.0,7.5        compute capability of each GPU, likewise. 9.0
//     multiprocessors=8         of every GPU. 8
//     name=Emulated GPU         of every GPU
//     driver=13000              what cuDriverGetVersion says. 13000
//     seed=7                    draws the order of execution. 1
//     algorithms=1              how many cuBLASLt offers for a product, of the four there are; which one is fastest
//                               by the GPU's clock, the seed draws. 4
//     without=bias_sum          cuBLASLt refuses products with a bias that are added to what is there
//     graphs=90                 time of a graph's work, in hundredths of what it takes outside of one. 100
//     order=mixed               `late`: only what is waited for is executed; `early`: whatever may be executed
//                               may come first; `mixed`: either, drawn anew at every wait. mixed
//     trace=/path               calls and executions are appended there, a line each: process, GPU, what;
//                               so are exit handlers, when a process runs them
//     fail=KIND@N:CODE          the N-th call (from 1) of a kind fails. CODE is a name of the driver's API in small
//                               letters without "cuda_error_" or "cublas_status_", or its number
//     exit=KIND@N[:STATUS]      the process ends in the N-th call of a kind (status 70 unless given)
//     abort=KIND@N              the process aborts there
//     hang=KIND@N               it never ends: what is enqueued stays undone, any other call never returns
//     slow=KIND@N:MILLISECONDS  it takes that long
//     once=/path                each of these happens in one process only: in the one that creates the file.
//                               The first one's file is the path itself, the others' have .1, .2 behind it
//
// N+ instead of N: that call and all later ones. Behind any of the five, ":device=1" limits it to one GPU of the
// machine (counted without regard to CUDA_VISIBLE_DEVICES), ":once=/path" gives it a file of its own. Calls are
// counted by GPU. Kinds:
//
//     init     cuInit (a code of which says that there is no usable driver)
//     context  contexts created or retained      load     modules loaded
//     alloc    device memory, of either kind     host     pinned memory, allocated or registered
//     copy     copies, in any direction          memset
//     launch   kernels                           graph    graphs launched
//     capture  captures begun and ended          instantiate  graphs made ready
//     matmul   products of cuBLASLt              heuristic   its choices of algorithms
//     record   events recorded                   wait     streams told to wait
//     sync     streams, events, contexts         query    streams, events
//     compile  programs of NVRTC
//
// A code that a device reports of work done (illegal_address, launch_failed, ecc_uncorrectable, ...) comes as there:
// copies, memsets, kernels, products and graphs are accepted and fail when executed, and from then on every call
// on that GPU fails with the same code. Any other code is returned by the call itself, which does nothing else.

#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace emulated {

struct Name {
    const char* name;
    int code;
};

// Codes of the driver's API.
static const Name CODES[] = {
    {"SUCCESS", 0}, {"INVALID_VALUE", 1}, {"OUT_OF_MEMORY", 2}, {"NOT_INITIALIZED", 3}, {"DEINITIALIZED", 4},
    {"STUB_LIBRARY", 34}, {"DEVICE_UNAVAILABLE", 46}, {"NO_DEVICE", 100}, {"INVALID_DEVICE", 101},
    {"DEVICE_NOT_LICENSED", 102}, {"INVALID_IMAGE", 200}, {"INVALID_CONTEXT", 201}, {"MAP_FAILED", 205},
    {"NO_BINARY_FOR_GPU", 209}, {"ECC_UNCORRECTABLE", 214}, {"UNSUPPORTED_LIMIT", 215}, {"INVALID_PTX", 218},
    {"NVLINK_UNCORRECTABLE", 220}, {"UNSUPPORTED_PTX_VERSION", 222}, {"INVALID_SOURCE", 300},
    {"FILE_NOT_FOUND", 301}, {"SHARED_OBJECT_SYMBOL_NOT_FOUND", 302}, {"SHARED_OBJECT_INIT_FAILED", 303},
    {"OPERATING_SYSTEM", 304}, {"INVALID_HANDLE", 400}, {"ILLEGAL_STATE", 401}, {"NOT_FOUND", 500},
    {"NOT_READY", 600}, {"ILLEGAL_ADDRESS", 700}, {"LAUNCH_OUT_OF_RESOURCES", 701}, {"LAUNCH_TIMEOUT", 702},
    {"PRIMARY_CONTEXT_ACTIVE", 708}, {"CONTEXT_IS_DESTROYED", 709}, {"ASSERT", 710},
    {"HOST_MEMORY_ALREADY_REGISTERED", 712}, {"HOST_MEMORY_NOT_REGISTERED", 713}, {"HARDWARE_STACK_ERROR", 714},
    {"ILLEGAL_INSTRUCTION", 715}, {"MISALIGNED_ADDRESS", 716}, {"INVALID_ADDRESS_SPACE", 717}, {"INVALID_PC", 718},
    {"LAUNCH_FAILED", 719}, {"NOT_PERMITTED", 800}, {"NOT_SUPPORTED", 801}, {"SYSTEM_NOT_READY", 802},
    {"SYSTEM_DRIVER_MISMATCH", 803}, {"COMPAT_NOT_SUPPORTED_ON_DEVICE", 804},
    {"STREAM_CAPTURE_UNSUPPORTED", 900}, {"STREAM_CAPTURE_INVALIDATED", 901}, {"STREAM_CAPTURE_MERGE", 902},
    {"STREAM_CAPTURE_UNMATCHED", 903}, {"STREAM_CAPTURE_UNJOINED", 904}, {"STREAM_CAPTURE_ISOLATION", 905},
    {"STREAM_CAPTURE_IMPLICIT", 906}, {"CAPTURED_EVENT", 907}, {"STREAM_CAPTURE_WRONG_THREAD", 908},
    {"TIMEOUT", 909}, {"GRAPH_EXEC_UPDATE_FAILURE", 910}, {"EXTERNAL_DEVICE", 911}, {"UNKNOWN", 999},
};

// Codes of cuBLASLt, for the kinds `matmul` and `heuristic`; so much is added to tell them from the driver's.
constexpr int BLAS = 10000;
static const Name BLAS_CODES[] = {
    {"NOT_INITIALIZED", 1}, {"ALLOC_FAILED", 3}, {"INVALID_VALUE", 7}, {"ARCH_MISMATCH", 8}, {"MAPPING_ERROR", 11},
    {"EXECUTION_FAILED", 13}, {"INTERNAL_ERROR", 14}, {"NOT_SUPPORTED", 15},
};

// Whether a code tells of work that the device could not do, after which the context is of no more use.
inline bool sticky(int code) {
    return code == 214 || code == 220 || code == 700 || code == 702 || (code >= 710 && code <= 719 && code != 712 && code != 713)
        || code == 46 || code == 999;
}

enum class Action { None, Fail, Exit, Abort, Hang, Slow };

struct Fault {
    Action action = Action::None;
    std::string kind;
    long first = 0;
    bool later = false;
    int value = 0;
    int device = -1;
    std::string once;
};

[[noreturn]] inline void refuse(const std::string& item) {
    std::fprintf(stderr, "VIRNUCPRO_EMULATED_CUDA: `%s` is not understood\n", item.c_str());
    std::abort();
}

struct Script {
    int devices = 1, multiprocessors = 8, driver = 13000, algorithms = 4, graphs = 100;
    bool without_bias_sum = false;
    std::vector<uint64_t> memory = {512ull << 20};
    uint64_t used = 0, seed = 1;
    std::vector<std::pair<int, int>> capability = {{9, 0}};
    std::string name = "Emulated GPU", order = "mixed", trace;
    std::vector<Fault> faults;
    std::map<std::pair<std::string, int>, long> calls;

    static std::vector<std::string> split(const std::string& text, char by) {
        std::vector<std::string> parts;
        size_t from = 0;
        for (size_t at; (at = text.find(by, from)) != std::string::npos; from = at + 1) parts.push_back(text.substr(from, at - from));
        parts.push_back(text.substr(from));
        for (auto& part : parts) {
            const size_t begin = part.find_first_not_of(" \t\n"), end = part.find_last_not_of(" \t\n");
            part = begin == std::string::npos ? "" : part.substr(begin, end - begin + 1);
        }
        return parts;
    }

    static uint64_t number(const std::string& text, const std::string& item) {
        char* end = nullptr;
        const uint64_t value = std::strtoull(text.c_str(), &end, 0);
        if (text.empty() || end == text.c_str()) refuse(item);
        switch (*end) {
            case 0: return value;
            case 'K': return value << 10;
            case 'M': return value << 20;
            case 'G': return value << 30;
            default: refuse(item);
        }
    }

    static int code(const std::string& kind, const std::string& text, const std::string& item) {
        if (!text.empty() && text[0] >= '0' && text[0] <= '9') return int(number(text, item));
        std::string name;
        for (char c : text) name += char(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
        if (kind == "matmul" || kind == "heuristic") {
            for (const Name& known : BLAS_CODES) {
                if (name == known.name) return BLAS + known.code;
            }
        }
        for (const Name& known : CODES) {
            if (name == known.name) return known.code;
        }
        refuse(item);
    }

    void fault(Action action, const std::string& text, const std::string& item) {
        const auto parts = split(text, ':');
        Fault fault;
        fault.action = action;
        const size_t at = parts[0].find('@');
        if (at == std::string::npos) refuse(item);
        fault.kind = parts[0].substr(0, at);
        static const char* const KINDS[] = {"init", "context", "load", "alloc", "host", "copy", "memset", "launch", "graph", "capture", "instantiate", "matmul", "heuristic", "record", "wait", "sync", "query", "compile"};
        bool known = false;
        for (const char* kind : KINDS) known = known || fault.kind == kind;
        if (!known) refuse(item);
        std::string count = parts[0].substr(at + 1);
        fault.later = !count.empty() && count.back() == '+';
        if (fault.later) count.pop_back();
        fault.first = long(number(count, item));
        bool valued = false;
        for (size_t i = 1; i < parts.size(); i++) {
            if (parts[i].rfind("device=", 0) == 0) {
                fault.device = int(number(parts[i].substr(7), item));
            } else if (parts[i].rfind("once=", 0) == 0) {
                fault.once = parts[i].substr(5);
            } else {
                fault.value = action == Action::Fail ? code(fault.kind, parts[i], item) : int(number(parts[i], item));
                valued = true;
            }
        }
        if (!valued && (action == Action::Fail || action == Action::Slow)) refuse(item);
        if (!valued && action == Action::Exit) fault.value = 70;
        faults.push_back(fault);
    }

    Script() {
        const char* variable = std::getenv("VIRNUCPRO_EMULATED_CUDA");
        std::string once;
        for (const auto& item : split(variable ? variable : "", ';')) {
            if (item.empty()) continue;
            const size_t at = item.find('=');
            if (at == std::string::npos) refuse(item);
            const std::string key = item.substr(0, at), value = item.substr(at + 1);
            if (key == "devices") devices = int(number(value, item));
            else if (key == "multiprocessors") multiprocessors = int(number(value, item));
            else if (key == "algorithms") algorithms = int(number(value, item));
            else if (key == "graphs") graphs = int(number(value, item));
            else if (key == "without" && value == "bias_sum") without_bias_sum = true;
            else if (key == "driver") driver = int(number(value, item));
            else if (key == "used") used = number(value, item);
            else if (key == "seed") seed = number(value, item);
            else if (key == "name") name = value;
            else if (key == "order" && (value == "late" || value == "early" || value == "mixed")) order = value;
            else if (key == "trace") trace = value;
            else if (key == "once") once = value;
            else if (key == "memory") {
                memory.clear();
                for (const auto& part : split(value, ',')) memory.push_back(number(part, item));
            } else if (key == "capability") {
                capability.clear();
                for (const auto& part : split(value, ',')) {
                    const auto parts = split(part, '.');
                    if (parts.size() != 2) refuse(item);
                    capability.push_back({int(number(parts[0], item)), int(number(parts[1], item))});
                }
            } else if (key == "fail") fault(Action::Fail, value, item);
            else if (key == "exit") fault(Action::Exit, value, item);
            else if (key == "abort") fault(Action::Abort, value, item);
            else if (key == "hang") fault(Action::Hang, value, item);
            else if (key == "slow") fault(Action::Slow, value, item);
            else refuse(item);
        }
        for (size_t i = 0; i < faults.size() && !once.empty(); i++) {
            if (faults[i].once.empty()) faults[i].once = i == 0 ? once : once + "." + std::to_string(i);
        }
    }

    // Counts a call and says what is to befall it. `device`: of the machine; -1 where none is concerned.
    Fault call(const std::string& kind, int device) {
        const long count = ++calls[{kind, device}];
        for (const Fault& fault : faults) {
            if (fault.kind != kind || (fault.device >= 0 && fault.device != device)) continue;
            if (count != fault.first && !(fault.later && count > fault.first)) continue;
            if (!fault.once.empty() && !mine(fault)) continue;
            if (fault.action == Action::Exit) {
                std::fprintf(stderr, "emulated CUDA: %s %ld of GPU %d ends the process\n", kind.c_str(), count, device);
                _exit(fault.value);
            }
            if (fault.action == Action::Abort) std::abort();
            return fault;
        }
        return Fault();
    }

  private:
    std::map<std::string, bool> created;

    bool mine(const Fault& fault) {
        const auto known = created.find(fault.once);
        if (known != created.end()) return known->second;
        const int file = open(fault.once.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
        if (file >= 0) close(file);
        return created[fault.once] = file >= 0;
    }
};

}  // namespace emulated
