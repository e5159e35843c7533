// NVRTC without CUDA: the C++ compiler builds the sources against device.hpp; a "cubin" is a shared object.
//
// The instructions of the device at the beginning of the sources (instructions.cuh) are PTX and are left out: device.hpp has the
// same functions. What was compiled once is kept in the folder of this library.

#include "script.hpp"

#include <dlfcn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

#ifndef COMPILER
#define COMPILER "c++"
#endif

namespace {

enum { SUCCESS = 0, INVALID_INPUT = 3, INVALID_PROGRAM = 4, INVALID_OPTION = 5, COMPILATION = 6, NAME_NOT_VALID = 10, INTERNAL = 11 };

struct Program {
    std::string source, log, object, text;
    bool names = false, compiled = false;
};

const int ARCHITECTURES[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

std::string folder() {
    Dl_info own;
    if (!dladdr(reinterpret_cast<const void*>(&ARCHITECTURES), &own)) return ".";
    const std::string path = own.dli_fname;
    const size_t end = path.rfind('/');
    return end == std::string::npos ? "." : path.substr(0, end);
}

std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
}

void write(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
}

std::string quoted(const std::string& text) {
    std::string result = "'";
    for (char c : text) result += c == '\'' ? "'\\''" : std::string(1, c);
    return result + "'";
}

// Runs the compiler; what it says is added to `log`.
bool compile(const std::string& arguments, std::string& log) {
    FILE* output = popen((std::string(COMPILER) + " " + arguments + " 2>&1").c_str(), "re");
    if (!output) return false;
    char part[4096];
    for (size_t count; (count = std::fread(part, 1, sizeof part, output)) > 0;) log.append(part, count);
    return pclose(output) == 0;
}

uint64_t hash(const std::string& text, uint64_t state) {
    for (unsigned char c : text) state = (state ^ c) * 0x100000001b3u;
    return state;
}

// The source for this machine: without the device's own instructions.
std::string portable(const std::string& source) {
    const std::string begin = "#line 1 \"instructions.cuh\"", end = "#line 1 \"numbers.cuh\"";
    const size_t from = source.find(begin), to = source.find(end);
    const std::string include = "#include \"device.hpp\"\n";
    if (from == std::string::npos || to == std::string::npos || to < from) return include + "#line 1\n" + source;
    return source.substr(0, from) + include + source.substr(to);
}

bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

// Takes the marks of kernels out of the preprocessed text and appends the table of their calls.
std::string with_entries(std::string text, int architecture) {
    const std::string global = "EMULATED_GLOBAL", bounds = "EMULATED_BOUNDS";
    std::string table;
    for (size_t at; (at = text.find(global)) != std::string::npos;) {
        text.replace(at, global.size(), global.size(), ' ');
        // `void [EMULATED_BOUNDS(threads, ...)] name(`, the bounds on either side of `void`.
        const size_t limit = text.find_first_of(";{", at);
        std::string threads = "1024";
        const size_t bound = text.find(bounds, at);
        if (bound < limit) {
            const size_t open = bound + bounds.size();
            size_t close = open, comma = std::string::npos;
            int depth = 0;
            do {
                if (text[close] == '(') depth++;
                if (text[close] == ')') depth--;
                if (text[close] == ',' && depth == 1 && comma == std::string::npos) comma = close;
                close++;
            } while (depth > 0 && close < text.size());
            threads = text.substr(open + 1, std::min(comma, close - 1) - open - 1);
            text.replace(bound, close - bound, close - bound, ' ');
        }
        const size_t open = text.find('(', at);
        size_t end = open;
        while (end > at && !is_word(text[end - 1])) end--;
        size_t start = end;
        while (start > at && is_word(text[start - 1])) start--;
        const std::string name = text.substr(start, end - start);
        table += "    {\"" + name + "\", EmulatedCall<&" + name + ">::call, EmulatedCall<&" + name + ">::count, EmulatedCall<&" + name + ">::sizes, unsigned(" + threads + ")},\n";
    }
    return text + "\nextern \"C\" const EmulatedEntry emulated_entries[] = {\n" + table + "    {nullptr, nullptr, 0, nullptr, 0}};\n" + "extern \"C\" const int emulated_architecture = " + std::to_string(architecture) + ";\n";
}

// Holds a file's lock, which ends with the process at the latest.
struct Turn {
    int file;
    explicit Turn(const std::string& path) : file(open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644)) {
        if (file >= 0) flock(file, LOCK_EX);
    }
    ~Turn() {
        if (file >= 0) close(file);
    }
};

std::mutex mutex;

emulated::Script& script() {
    static auto& script = *new emulated::Script();
    return script;
}

int fault() {
    std::unique_lock<std::mutex> lock(mutex);
    const emulated::Fault fault = script().call("compile", -1);
    lock.unlock();
    if (fault.action == emulated::Action::Hang) {
        for (;;) pause();
    }
    if (fault.action == emulated::Action::Slow) std::this_thread::sleep_for(std::chrono::milliseconds(fault.value));
    return fault.action == emulated::Action::Fail ? fault.value : SUCCESS;
}

}  // namespace

API int nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}

API int nvrtcGetNumSupportedArchs(int* count) {
    *count = int(sizeof ARCHITECTURES / sizeof ARCHITECTURES[0]);
    return SUCCESS;
}

API int nvrtcGetSupportedArchs(int* architectures) {
    std::memcpy(architectures, ARCHITECTURES, sizeof ARCHITECTURES);
    return SUCCESS;
}

API const char* nvrtcGetErrorString(int code) {
    static const char* const TEXTS[] = {"NVRTC_SUCCESS", "NVRTC_ERROR_OUT_OF_MEMORY", "NVRTC_ERROR_PROGRAM_CREATION_FAILURE", "NVRTC_ERROR_INVALID_INPUT", "NVRTC_ERROR_INVALID_PROGRAM", "NVRTC_ERROR_INVALID_OPTION", "NVRTC_ERROR_COMPILATION", "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE", "NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION", "NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION", "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID", "NVRTC_ERROR_INTERNAL_ERROR"};
    return code >= 0 && code < 12 ? TEXTS[code] : "NVRTC_ERROR unknown";
}

API int nvrtcCreateProgram(void** program, const char* source, const char*, int headers, const char* const*, const char* const*) {
    if (!source || headers != 0) return INVALID_INPUT;
    auto* created = new Program();
    created->source = source;
    *program = created;
    return SUCCESS;
}

API int nvrtcDestroyProgram(void** program) {
    if (!program || !*program) return INVALID_PROGRAM;
    delete static_cast<Program*>(*program);
    *program = nullptr;
    return SUCCESS;
}

API int nvrtcAddNameExpression(void* program, const char*) {
    static_cast<Program*>(program)->names = true;
    return SUCCESS;
}

API int nvrtcGetLoweredName(void*, const char*, const char**) {
    return NAME_NOT_VALID;
}

API int nvrtcCompileProgram(void* handle, int count, const char* const* options) {
    if (!handle) return INVALID_PROGRAM;
    auto& program = *static_cast<Program*>(handle);
    program.log.clear();
    int architecture = 75;
    bool real = false, fused = true;
    std::string defines;
    for (int i = 0; i < count; i++) {
        std::string option = options[i];
        if (option.rfind("--", 0) == 0) option.erase(0, 1);
        const size_t equals = option.find('=');
        const std::string key = option.substr(0, equals), value = equals == std::string::npos ? "" : option.substr(equals + 1);
        if (key == "-gpu-architecture" || key == "-arch") {
            const size_t digits = value.find_first_of("0123456789");
            real = value.rfind("sm_", 0) == 0;
            architecture = digits == std::string::npos ? 0 : std::atoi(value.c_str() + digits);
            bool known = false;
            for (int supported : ARCHITECTURES) known = known || supported == architecture;
            if (!known || (!real && value.rfind("compute_", 0) != 0)) {
                program.log = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
                return INVALID_OPTION;
            }
        } else if (key == "-fmad") {
            fused = value == "true";
        } else if (key == "-define-macro") {
            defines += " " + quoted("-D" + value);
        } else if (key.rfind("-D", 0) == 0 && key.size() > 2) {
            defines += " " + quoted(option);
        } else {
            static const char* const KNOWN[] = {"-std", "-ftz", "-prec-div", "-prec-sqrt", "-use_fast_math", "-maxrregcount", "-generate-line-info", "-lineinfo", "-device-debug", "-G", "-default-device", "-device-as-default-execution-space", "-restrict", "-w", "-disable-warnings", "-extra-device-vectorization", "-split-compile", "-minimal", "-dopt", "-ptxas-options", "-include-path", "-I", "-no-cache", "-device-int128"};
            bool known = false;
            for (const char* name : KNOWN) known = known || key == name;
            if (!known) {
                program.log = "nvrtc: error: unrecognized option " + std::string(options[i]) + " found\n";
                return INVALID_OPTION;
            }
        }
    }
    if (int code = fault()) {
        program.log = "emulated: the script wants this to fail\n";
        return code;
    }
    if (program.names) {
        program.log = "emulated: name expressions are not supported\n";
        return NAME_NOT_VALID;
    }
    const std::string source = portable(program.source), contract = fused ? "fast" : "off";
    const std::string key = source + "\n" + defines + "\n" + std::to_string(architecture) + contract;
    char name[64];
    std::snprintf(name, sizeof name, "/cubins/%016llx%016llx", (unsigned long long)hash(key, 0xcbf29ce484222325u), (unsigned long long)hash(key, 0x84222325cbf29ce4u));
    const std::string kept = folder() + name + ".so";
    struct stat there;
    // Whoever wants the same waits, instead of compiling it, too.
    mkdir((folder() + "/cubins").c_str(), 0755);
    const Turn turn(folder() + name + ".lock");
    if (stat(kept.c_str(), &there) != 0) {
        const std::string own = folder() + name + "." + std::to_string(getpid());
        const std::string text = own + ".cpp", preprocessed = own + ".ii", object = own + ".so";
        write(text, source);
        bool works = compile("-E -std=c++17 -march=native -DEMULATED_ENTRIES -DEMULATED_ARCHITECTURE=" + std::to_string(10 * architecture) + defines + " -I " + quoted(folder()) + " " + quoted(text) + " -o " + quoted(preprocessed), program.log);
        if (works) {
            write(preprocessed, with_entries(read(preprocessed), architecture));
            works = compile("-std=c++17 -O2 -march=native -ffp-contract=" + contract + " -fPIC -shared -fno-gnu-unique -Wl,-Bsymbolic -w " + quoted(preprocessed) + " -o " + quoted(object), program.log);
        }
        unlink(text.c_str());
        unlink(preprocessed.c_str());
        if (!works) {
            unlink(object.c_str());
            return COMPILATION;
        }
        if (rename(object.c_str(), kept.c_str()) != 0) return INTERNAL;
    }
    const std::string object = read(kept);
    program.object = real ? object : "";
    program.text = "// emulated: ";
    const char* const digits = "0123456789abcdef";
    for (unsigned char byte : object) {
        program.text += digits[byte >> 4];
        program.text += digits[byte & 15];
    }
    program.text += "\n.target sm_" + std::to_string(architecture) + "\n";
    program.compiled = true;
    return SUCCESS;
}

API int nvrtcGetCUBINSize(void* program, size_t* bytes) {
    if (!static_cast<Program*>(program)->compiled) return INVALID_PROGRAM;
    *bytes = static_cast<Program*>(program)->object.size();
    return SUCCESS;
}

API int nvrtcGetCUBIN(void* program, char* cubin) {
    const auto& object = static_cast<Program*>(program)->object;
    if (object.empty()) return INVALID_PROGRAM;
    std::memcpy(cubin, object.data(), object.size());
    return SUCCESS;
}

API int nvrtcGetPTXSize(void* program, size_t* bytes) {
    if (!static_cast<Program*>(program)->compiled) return INVALID_PROGRAM;
    *bytes = static_cast<Program*>(program)->text.size() + 1;
    return SUCCESS;
}

API int nvrtcGetPTX(void* program, char* text) {
    if (!static_cast<Program*>(program)->compiled) return INVALID_PROGRAM;
    std::strcpy(text, static_cast<Program*>(program)->text.c_str());
    return SUCCESS;
}

API int nvrtcGetProgramLogSize(void* program, size_t* bytes) {
    *bytes = static_cast<Program*>(program)->log.size() + 1;
    return SUCCESS;
}

API int nvrtcGetProgramLog(void* program, char* log) {
    std::strcpy(log, static_cast<Program*>(program)->log.c_str());
    return SUCCESS;
}
