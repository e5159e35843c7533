// The CUDA driver's library without a GPU: device memory is memory, kernels run on fibers (device.hpp).
//
// What makes it a test is the order. Work is not executed when it is enqueued but when somebody waits for it, and
// then in an order drawn at random among those that streams and events allow: a missing wait between streams or a
// staging buffer that is used again too early gives wrong results. Memory is not a number (0xff) when
// allocated, is followed by marks that are checked after every kernel, and is gone when freed.
//
// script.hpp says what may be asked of it. One operation runs at a time in a process, whatever its GPUs.

#include "script.hpp"

#include <dlfcn.h>
#include <elf.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <strings.h>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#define API extern "C" __attribute__((visibility("default")))

namespace {

using emulated::Action;
using emulated::Fault;
using emulated::sticky;
using Lock = std::unique_lock<std::mutex>;

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, FILE_NOT_FOUND = 301, INVALID_HANDLE = 400,
    NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, HOST_ALREADY_REGISTERED = 712, HOST_NOT_REGISTERED = 713, NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_UNMATCHED = 903, CAPTURE_UNJOINED = 904,
    CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907, CAPTURE_WRONG_THREAD = 908, GRAPH_EXEC_UPDATE_FAILURE = 910,
};

constexpr size_t PAGE = 4096;
constexpr size_t GRAIN = 512;
constexpr size_t MARK_BYTES = 64;
constexpr unsigned char MARK = 0xa5, UNWRITTEN = 0xff;
// Beyond this, only both ends of an allocation are filled.
constexpr size_t FILLED_BYTES = 256 << 20;

struct Device;
struct Context;
struct Stream;
struct Capture;

struct Op {
    std::string what;
    std::function<int()> run;
    std::vector<std::shared_ptr<Op>> deps;
    Stream* stream = nullptr;
    bool done = false, hangs = false, host = false;
    unsigned visited = 0;
    // Microseconds that it takes on the device's own clock, and that clock when it was done.
    double cost = 0, finished = 0;
};

// What a stream would have done, if it were not captured.
struct Node {
    std::string what;
    std::function<int()> run;
    std::vector<int> deps;
    double cost = 0;
};

struct Capture {
    std::vector<Node> nodes;
    Stream* origin = nullptr;
    std::set<Stream*> streams;
    std::thread::id thread;
    int mode = 0;
    bool invalid = false;
};

struct Graph {
    std::vector<Node> nodes;
};

struct Stream {
    Context* context = nullptr;
    std::deque<std::shared_ptr<Op>> queue;
    std::shared_ptr<Op> last;
    bool blocking = true, null = false;
    int priority = 0;
    uint64_t rank = 0;
    std::shared_ptr<Capture> capture;
    std::vector<int> tails;
};

struct Event {
    Context* context = nullptr;
    bool timed = true;
    std::shared_ptr<Op> last;
    std::shared_ptr<Capture> capture;
    std::vector<int> nodes;
};

struct EntryPoint {
    const char* name;
    void (*call)(void* arguments);
    unsigned parameters;
    const size_t* sizes;
    unsigned threads_max;
};

struct Module {
    void* handle = nullptr;
    int architecture = 0;
    void (*launch)(const uint32_t*, const uint32_t*, void (*)(void*), void*) = nullptr;
    const EntryPoint* entries = nullptr;
    ~Module() {
        if (handle) dlclose(handle);
    }
};

struct Function {
    std::shared_ptr<Module> module;
    const EntryPoint* entry;
};

struct LoadedModule {
    Context* context;
    std::shared_ptr<Module> module;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

struct Memory {
    size_t bytes, mapped;
    Context* context;
};

struct Context {
    Device* device = nullptr;
    bool primary = false;
    std::unique_ptr<Stream> null;
    std::map<std::thread::id, std::unique_ptr<Stream>> of_threads;
    std::vector<std::unique_ptr<Stream>> streams;
    std::set<LoadedModule*> modules;
    size_t limits[16] = {1024, 1 << 20, 8 << 20, 2, 2048};
    unsigned flags = 0;
};

struct Device {
    int ordinal = 0, of_machine = 0;
    uint64_t total = 0, allocated = 0;
    std::pair<int, int> capability;
    std::unique_ptr<Context> primary;
    int retained = 0;
    // Of work that failed: from then on every call's.
    int failure = 0;
    // Microseconds, by the costs of what was executed: times between events are the same in every run.
    double clock = 0;
};

struct World;
World& world();

struct World {
    emulated::Script script;
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::unique_ptr<Device>> devices;
    bool initialized = false, executing = false, early = false, watched = false;
    unsigned visit = 0;
    uint64_t random;
    std::map<uint64_t, Memory> memory;
    std::map<uint64_t, size_t> pinned;
    std::map<uint64_t, size_t> registered;
    std::unordered_set<const void*> streams, events, contexts, modules, functions, graphs, executables;
    std::vector<std::unique_ptr<Context>> others;
    std::vector<std::shared_ptr<Capture>> captures;
    int trace = -1;

    World() : random(script.seed * 0x9e3779b97f4a7c15u + 0x1234567) {
        if (!script.trace.empty()) trace = open(script.trace.c_str(), O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0644);
        std::atexit([] { world().note(-1, "exit handler"); });
    }
    uint64_t draw(uint64_t below) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return (random >> 20) % below;
    }
    void note(int device, const std::string& what) {
        if (trace < 0) return;
        const std::string line = std::to_string(getpid()) + " " + std::to_string(device) + " " + what + "\n";
        if (write(trace, line.data(), line.size()) < 0) std::perror("emulated CUDA: trace");
    }
};

// Never destroyed: threads may still call at the end of the process.
World& world() {
    static World& world = *new World();
    return world;
}

thread_local std::vector<Context*> stack;
thread_local const char* kernel_here = nullptr;

// ---- identities ----------------------------------------------------------------------------------------------

// GPU-e0000000-cafe-4000-8000-0000000000NN
void uuid_of(int of_machine, unsigned char (&bytes)[16]) {
    const unsigned char fixed[16] = {0xe0, 0, 0, 0, 0xca, 0xfe, 0x40, 0, 0x80};
    std::memcpy(bytes, fixed, 16);
    bytes[15] = (unsigned char)of_machine;
}

std::string uuid_text(int of_machine) {
    char text[64];
    std::snprintf(text, sizeof text, "GPU-e0000000-cafe-4000-8000-%012x", of_machine);
    return text;
}

int bus_of(int of_machine) {
    return 0x10 + of_machine;
}

// As the driver does: indices or beginnings of UUIDs that name one GPU; the list ends at the first that does not.
std::vector<int> visible(int count) {
    std::vector<int> all, seen;
    for (int i = 0; i < count; i++) all.push_back(i);
    const char* variable = std::getenv("CUDA_VISIBLE_DEVICES");
    if (!variable) return all;
    for (const std::string& item : emulated::Script::split(variable, ',')) {
        int found = -1;
        char* end = nullptr;
        const long index = std::strtol(item.c_str(), &end, 10);
        if (!item.empty() && *end == 0) {
            if (index >= 0 && index < count) found = int(index);
        } else if (item.rfind("GPU-", 0) == 0) {
            int matches = 0;
            for (int i = 0; i < count; i++) {
                if (strncasecmp(uuid_text(i).c_str(), item.c_str(), item.size()) == 0) found = i, matches++;
            }
            if (matches != 1) found = -1;
        }
        if (found < 0) break;
        // Twice the same makes the whole list void.
        if (std::find(seen.begin(), seen.end(), found) != seen.end()) return {};
        seen.push_back(found);
    }
    return seen;
}

// ---- memory --------------------------------------------------------------------------------------------------

uint64_t free_bytes(const Device& device) {
    const uint64_t taken = device.allocated + world().script.used;
    return taken < device.total ? device.total - taken : 0;
}

void fill(unsigned char* at, size_t bytes) {
    if (bytes <= FILLED_BYTES) {
        std::memset(at, UNWRITTEN, bytes);
    } else {
        std::memset(at, UNWRITTEN, FILLED_BYTES / 2);
        std::memset(at + bytes - FILLED_BYTES / 2, UNWRITTEN, FILLED_BYTES / 2);
    }
}

size_t rounded(size_t bytes, size_t to) {
    return (bytes + to - 1) / to * to;
}

int allocate(Context* context, size_t bytes, uint64_t* address) {
    Device& device = *context->device;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > device.total || rounded(bytes, GRAIN) > free_bytes(device)) return OUT_OF_MEMORY;
    // A page that may not be touched on either side.
    const size_t mapped = rounded(bytes + MARK_BYTES, PAGE) + 2 * PAGE;
    void* region = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) return OUT_OF_MEMORY;
    auto* start = static_cast<unsigned char*>(region) + PAGE;
    if (mprotect(start, mapped - 2 * PAGE, PROT_READ | PROT_WRITE) != 0) {
        munmap(region, mapped);
        return OUT_OF_MEMORY;
    }
    fill(start, bytes);
    std::memset(start + bytes, MARK, mapped - 2 * PAGE - bytes);
    *address = uint64_t(start);
    world().memory[*address] = {bytes, mapped, context};
    device.allocated += rounded(bytes, GRAIN);
    return SUCCESS;
}

void check_marks(uint64_t address, const Memory& memory, bool all, const char* after) {
    const auto* end = reinterpret_cast<const unsigned char*>(address + memory.bytes);
    const size_t count = all ? memory.mapped - 2 * PAGE - memory.bytes : MARK_BYTES;
    for (size_t i = 0; i < count; i++) {
        if (end[i] == MARK) continue;
        std::fprintf(stderr, "emulated CUDA: byte %zu behind the %zu allocated at %#llx was written, noticed after %s\n", i, memory.bytes, (unsigned long long)address, after);
        world().note(memory.context->device->of_machine, "violation " + std::string(after));
        std::abort();
    }
}

void check_all_marks(const char* after) {
    for (const auto& [address, memory] : world().memory) check_marks(address, memory, false, after);
}

int release(uint64_t address) {
    const auto found = world().memory.find(address);
    if (found == world().memory.end()) return INVALID_VALUE;
    check_marks(address, found->second, true, "its end");
    found->second.context->device->allocated -= rounded(found->second.bytes, GRAIN);
    munmap(reinterpret_cast<void*>(address - PAGE), found->second.mapped);
    world().memory.erase(found);
    return SUCCESS;
}

// The allocation that holds these bytes, or nothing.
const Memory* memory_of(uint64_t address, size_t bytes) {
    auto after = world().memory.upper_bound(address);
    if (after == world().memory.begin()) return nullptr;
    const auto& [start, memory] = *--after;
    return address - start <= memory.bytes && bytes <= memory.bytes - (address - start) ? &memory : nullptr;
}

bool within(const std::map<uint64_t, size_t>& ranges, uint64_t address, size_t bytes) {
    auto after = ranges.upper_bound(address);
    if (after == ranges.begin()) return false;
    const auto& [start, length] = *--after;
    return address - start <= length && bytes <= length - (address - start);
}

bool is_pinned(const void* pointer, size_t bytes) {
    return within(world().pinned, uint64_t(pointer), bytes) || within(world().registered, uint64_t(pointer), bytes);
}

// ---- execution -----------------------------------------------------------------------------------------------

struct sigaction action_before;

void on_segv(int signal, siginfo_t* info, void* context) {
    if (kernel_here) {
        char text[256];
        const int length = std::snprintf(text, sizeof text, "emulated CUDA: %s touches %p, which is not allocated\n", kernel_here, info->si_addr);
        if (write(2, text, size_t(length)) < 0) _exit(70);
        signal = SIGSEGV;
        ::signal(SIGSEGV, SIG_DFL);
        raise(SIGSEGV);
        return;
    }
    if (action_before.sa_flags & SA_SIGINFO) {
        action_before.sa_sigaction(signal, info, context);
    } else {
        sigaction(SIGSEGV, &action_before, nullptr);
    }
}

void each_stream(const std::function<void(Stream&)>& body) {
    auto of_context = [&](Context& context) {
        body(*context.null);
        for (auto& entry : context.of_threads) body(*entry.second);
        for (auto& stream : context.streams) body(*stream);
    };
    for (auto& device : world().devices) {
        if (device->primary) of_context(*device->primary);
    }
    for (auto& context : world().others) of_context(*context);
}

bool deps_done(const Op& op) {
    return std::all_of(op.deps.begin(), op.deps.end(), [](const auto& dep) { return dep->done; });
}

void drop_queue(Stream& stream) {
    for (auto& op : stream.queue) {
        op->done = true;
        op->run = nullptr;
        op->deps.clear();
    }
    stream.queue.clear();
    stream.last = nullptr;
}

// A device that failed does nothing more.
void fail_device(Device& device, int code) {
    if (device.failure == 0) device.failure = code;
    each_stream([&](Stream& stream) {
        if (stream.context->device == &device) drop_queue(stream);
    });
    world().changed.notify_all();
}

void needed(Op& op, std::vector<Op*>& ready) {
    Stream& stream = *op.stream;
    bool first = true;
    for (auto& ahead : stream.queue) {
        if (ahead->visited != world().visit) {
            ahead->visited = world().visit;
            for (auto& dep : ahead->deps) {
                if (!dep->done) needed(*dep, ready);
            }
            if (first && !ahead->hangs && deps_done(*ahead)) ready.push_back(ahead.get());
        }
        first = false;
        if (ahead.get() == &op) return;
    }
}

void execute(Lock& lock, Op& chosen) {
    World& all = world();
    const std::shared_ptr<Op> op = chosen.stream->queue.front();
    Device& device = *op->stream->context->device;
    all.executing = true;
    all.note(device.of_machine, "run " + op->what);
    lock.unlock();
    kernel_here = op->what.c_str();
    const int code = op->run ? op->run() : SUCCESS;
    kernel_here = nullptr;
    lock.lock();
    all.executing = false;
    check_all_marks(op->what.c_str());
    op->done = true;
    op->run = nullptr;
    op->deps.clear();
    device.clock += op->cost;
    op->finished = device.clock;
    if (!op->stream->queue.empty() && op->stream->queue.front() == op) op->stream->queue.pop_front();
    if (op->stream->last == op) op->stream->last = nullptr;
    if (code != SUCCESS) fail_device(device, code);
    all.changed.notify_all();
}

// One operation on the way to these, or any other that may come first. False where there is none.
bool step(Lock& lock, const std::vector<std::shared_ptr<Op>>& targets) {
    World& all = world();
    std::vector<Op*> ready;
    if (all.early) {
        each_stream([&](Stream& stream) {
            if (!stream.queue.empty() && !stream.queue.front()->hangs && deps_done(*stream.queue.front())) ready.push_back(stream.queue.front().get());
        });
        // Some streams run ahead of others for long, which finds more than a fair choice.
        if (all.draw(16) == 0) {
            each_stream([&](Stream& stream) { stream.rank = all.draw(1 << 20); });
        }
        std::sort(ready.begin(), ready.end(), [](Op* a, Op* b) { return a->stream->rank > b->stream->rank; });
        if (!ready.empty()) {
            execute(lock, *ready[0]);
            return true;
        }
        return false;
    }
    all.visit++;
    for (auto& target : targets) {
        if (!target->done) needed(*target, ready);
    }
    if (ready.empty()) return false;
    execute(lock, *ready[all.draw(ready.size())]);
    return true;
}

void draw_order() {
    World& all = world();
    const std::string& order = all.script.order;
    all.early = order == "early" || (order == "mixed" && all.draw(2) == 0);
}

bool all_done(const std::vector<std::shared_ptr<Op>>& targets) {
    return std::all_of(targets.begin(), targets.end(), [](const auto& op) { return op->done; });
}

// Returns once these are done; never, where one of them hangs.
void finish(Lock& lock, const std::vector<std::shared_ptr<Op>>& targets) {
    World& all = world();
    draw_order();
    while (!all_done(targets)) {
        if (all.executing) {
            all.changed.wait(lock);
        } else if (!step(lock, targets)) {
            all.changed.wait_for(lock, std::chrono::milliseconds(50));
        }
    }
}

// Some progress, as there is between two looks at a device.
void progress(Lock& lock, const std::vector<std::shared_ptr<Op>>& targets) {
    World& all = world();
    draw_order();
    for (uint64_t steps = 1 + all.draw(8); steps > 0 && !all.executing && !all_done(targets); steps--) {
        if (!step(lock, targets)) return;
    }
}

std::vector<std::shared_ptr<Op>> work_of(const Context& context) {
    std::vector<std::shared_ptr<Op>> targets;
    each_stream([&](Stream& stream) {
        if (stream.context == &context && !stream.queue.empty()) targets.push_back(stream.queue.back());
    });
    return targets;
}

// A host function runs without anybody who waits for it.
void watch_host_functions() {
    World& all = world();
    if (all.watched) return;
    all.watched = true;
    std::thread([&all] {
        Lock lock(all.mutex);
        for (;;) {
            std::vector<std::shared_ptr<Op>> targets;
            each_stream([&](Stream& stream) {
                for (auto& op : stream.queue) {
                    if (op->host) targets.push_back(op);
                }
            });
            if (!targets.empty() && !all.executing) step(lock, targets);
            if (targets.empty()) all.changed.wait(lock);
            else all.changed.wait_for(lock, std::chrono::milliseconds(1));
        }
    }).detach();
}

// ---- calls ---------------------------------------------------------------------------------------------------

// Lets a call take its time, or all of it.
void delay(Lock& lock, const Fault& fault) {
    while (fault.action == Action::Hang) world().changed.wait(lock);
    if (fault.action != Action::Slow) return;
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::milliseconds(fault.value));
    lock.lock();
}

// The beginning of every call on a context: it holds the lock and knows why the call cannot go on.
struct Call {
    Lock lock{world().mutex};
    Context* context = stack.empty() ? nullptr : stack.back();
    int code = SUCCESS;

    Call(const char* name, bool survives_failure = false) {
        if (!world().initialized) code = NOT_INITIALIZED;
        else if (!context || !world().contexts.count(context)) code = INVALID_CONTEXT;
        else if (!survives_failure) code = context->device->failure;
        world().note(context && code != INVALID_CONTEXT && code != NOT_INITIALIZED ? context->device->of_machine : -1, name);
    }
    explicit operator bool() const {
        return code == SUCCESS;
    }
    Device& device() {
        return *context->device;
    }
    // Any fault but of work done: what fails or hangs here does so now.
    int fault(const char* kind) {
        const Fault fault = world().script.call(kind, device().of_machine);
        delay(lock, fault);
        if (fault.action != Action::Fail) return SUCCESS;
        if (sticky(fault.value)) fail_device(device(), fault.value);
        return fault.value;
    }
};

Stream* stream_of(Context* context, void* handle) {
    if (handle == nullptr || handle == reinterpret_cast<void*>(1)) return context->null.get();
    if (handle == reinterpret_cast<void*>(2)) {
        auto& stream = context->of_threads[std::this_thread::get_id()];
        if (!stream) {
            stream = std::make_unique<Stream>();
            stream->context = context;
        }
        return stream.get();
    }
    return world().streams.count(handle) ? static_cast<Stream*>(handle) : nullptr;
}

std::shared_ptr<Op> add(Stream& stream, std::string what, std::function<int()> run, double cost = 0, std::vector<std::shared_ptr<Op>> deps = {}) {
    auto op = std::make_shared<Op>();
    op->what = std::move(what);
    op->run = std::move(run);
    op->deps = std::move(deps);
    op->cost = cost;
    op->stream = &stream;
    Context& context = *stream.context;
    if (stream.null) {
        each_stream([&](Stream& other) {
            if (other.context == &context && other.blocking && !other.null && other.last) op->deps.push_back(other.last);
        });
    } else if (stream.blocking && context.null->last) {
        op->deps.push_back(context.null->last);
    }
    stream.queue.push_back(op);
    stream.last = op;
    world().changed.notify_all();
    return op;
}

// Appends to a capture what would have been enqueued.
int capture_node(Stream& stream, std::string what, std::function<int()> run, double cost = 0) {
    if (stream.capture->invalid) return CAPTURE_INVALIDATED;
    stream.capture->nodes.push_back({std::move(what), std::move(run), stream.tails, cost});
    stream.tails = {int(stream.capture->nodes.size()) - 1};
    return SUCCESS;
}

// Whether this thread may not wait or allocate now; what does so spoils the capture.
int forbidden_in_capture() {
    int code = SUCCESS;
    for (auto& capture : world().captures) {
        if (capture->mode == 2 || (capture->mode == 1 && capture->thread != std::this_thread::get_id())) continue;
        capture->invalid = true;
        code = CAPTURE_UNSUPPORTED;
    }
    return code;
}

// Enqueues work that counts as `kind`; what befalls it befalls it when it is executed.
int enqueue(Call& call, Stream& stream, const char* kind, std::string what, std::function<int()> run, double cost) {
    if (stream.null) {
        for (auto& capture : world().captures) {
            for (Stream* captured : capture->streams) {
                if (captured->blocking && captured->context == stream.context) {
                    capture->invalid = true;
                    return CAPTURE_IMPLICIT;
                }
            }
        }
    }
    const Fault fault = world().script.call(kind, call.device().of_machine);
    if (fault.action == Action::Fail && !sticky(fault.value)) return fault.value;
    if (fault.action == Action::Fail) {
        run = [code = fault.value] { return code; };
    } else if (fault.action == Action::Slow) {
        cost += 1000.0 * fault.value;
        run = [run, milliseconds = fault.value] {
            std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
            return run();
        };
    }
    if (stream.capture) return capture_node(stream, std::move(what), std::move(run), cost);
    add(stream, std::move(what), std::move(run), cost)->hangs = fault.action == Action::Hang;
    return SUCCESS;
}

std::unique_ptr<Context> new_context(Device& device, unsigned flags, bool primary) {
    auto context = std::make_unique<Context>();
    context->device = &device;
    context->primary = primary;
    context->flags = flags;
    context->null = std::make_unique<Stream>();
    context->null->context = context.get();
    context->null->null = true;
    world().contexts.insert(context.get());
    return context;
}

void end_context(Lock& lock, Context& context) {
    if (context.device->failure == 0) finish(lock, work_of(context));
    std::vector<uint64_t> left;
    for (auto& [address, memory] : world().memory) {
        if (memory.context == &context) left.push_back(address);
    }
    for (uint64_t address : left) release(address);
    for (auto& stream : context.streams) {
        drop_queue(*stream);
        world().streams.erase(stream.get());
    }
    for (LoadedModule* module : context.modules) {
        world().modules.erase(module);
        for (auto& entry : module->functions) world().functions.erase(entry.second.get());
        delete module;
    }
    world().contexts.erase(&context);
}

Device* device_of(int ordinal) {
    return ordinal >= 0 && size_t(ordinal) < world().devices.size() ? world().devices[size_t(ordinal)].get() : nullptr;
}

#define BEGIN(name)                    \
    Call call(name);                   \
    if (!call) return call.code
#define STREAM(handle)                                                        \
    Stream* const stream = stream_of(call.context, handle);                   \
    if (!stream) return INVALID_HANDLE;                                       \
    if (stream->context != call.context) return INVALID_CONTEXT

}  // namespace

// ---- for the other emulated libraries ----------------------------------------------------------------------------

API int emulated_enqueue(void* handle, const char* kind, const char* what, double cost, int (*run)(void*), void* context, void (*drop)(void*)) {
    const std::shared_ptr<void> held(context, drop);
    BEGIN(what);
    STREAM(handle);
    return enqueue(call, *stream, kind, what, [run, held] { return run(held.get()); }, cost);
}

// What the script says of algorithms: how many there are, and a number to draw their speed by.
API void emulated_algorithms(int* count, uint64_t* seed) {
    const Lock lock(world().mutex);
    *count = world().script.algorithms;
    *seed = world().script.seed;
}

API int emulated_without_bias_sum() {
    const Lock lock(world().mutex);
    return world().script.without_bias_sum;
}

API int emulated_fault(const char* kind) {
    BEGIN(kind);
    return call.fault(kind);
}

// Whether these bytes are device memory.
API int emulated_holds(const void* pointer, size_t bytes) {
    const Lock lock(world().mutex);
    return memory_of(uint64_t(pointer), bytes) != nullptr;
}

// Compute capability of the current context's device, times ten; 0 without one.
API int emulated_capability() {
    Call call("capability", true);
    return call ? call.device().capability.first * 10 + call.device().capability.second : 0;
}

// ---- errors, initialisation, devices ---------------------------------------------------------------------------------

API int cuGetErrorName(int code, const char** name) {
    static const auto& names = *[] {
        auto* names = new std::unordered_map<int, std::string>();
        for (const auto& known : emulated::CODES) (*names)[known.code] = std::string(known.code ? "CUDA_ERROR_" : "CUDA_") + known.name;
        return names;
    }();
    const auto found = names.find(code);
    *name = found == names.end() ? nullptr : found->second.c_str();
    return *name ? SUCCESS : INVALID_VALUE;
}

API int cuGetErrorString(int code, const char** text) {
    static const auto& texts = *[] {
        auto* texts = new std::unordered_map<int, std::string>();
        for (const auto& known : emulated::CODES) {
            std::string text;
            for (const char* c = known.name; *c; c++) text += *c == '_' ? ' ' : char(*c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c);
            (*texts)[known.code] = known.code ? text : "no error";
        }
        return texts;
    }();
    const auto found = texts.find(code);
    *text = found == texts.end() ? nullptr : found->second.c_str();
    return *text ? SUCCESS : INVALID_VALUE;
}

API int cuInit(unsigned flags) {
    Lock lock(world().mutex);
    if (flags != 0) return INVALID_VALUE;
    world().note(-1, "cuInit");
    const Fault fault = world().script.call("init", -1);
    if (fault.action == Action::Fail) return fault.value;
    delay(lock, fault);
    if (world().initialized) return SUCCESS;
    const auto& script = world().script;
    for (int of_machine : visible(script.devices)) {
        auto device = std::make_unique<Device>();
        device->ordinal = int(world().devices.size());
        device->of_machine = of_machine;
        device->total = script.memory[std::min(size_t(of_machine), script.memory.size() - 1)];
        device->capability = script.capability[std::min(size_t(of_machine), script.capability.size() - 1)];
        world().devices.push_back(std::move(device));
    }
    if (world().devices.empty()) return NO_DEVICE;
    struct sigaction action = {};
    action.sa_sigaction = on_segv;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &action_before);
    world().initialized = true;
    return SUCCESS;
}

API int cuDriverGetVersion(int* version) {
    *version = world().script.driver;
    return SUCCESS;
}

API int cuDeviceGetCount(int* count) {
    const Lock lock(world().mutex);
    *count = int(world().devices.size());
    return world().initialized ? SUCCESS : NOT_INITIALIZED;
}

API int cuDeviceGet(int* device, int ordinal) {
    const Lock lock(world().mutex);
    if (!world().initialized) return NOT_INITIALIZED;
    if (!device_of(ordinal)) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

API int cuDeviceGetName(char* name, int length, int ordinal) {
    const Lock lock(world().mutex);
    if (!device_of(ordinal)) return INVALID_DEVICE;
    std::snprintf(name, size_t(length), "%s", world().script.name.c_str());
    return SUCCESS;
}

API int cuDeviceGetUuid_v2(unsigned char (*uuid)[16], int ordinal) {
    const Lock lock(world().mutex);
    const Device* device = device_of(ordinal);
    if (!device) return INVALID_DEVICE;
    uuid_of(device->of_machine, *uuid);
    return SUCCESS;
}

API int cuDeviceGetUuid(unsigned char (*uuid)[16], int ordinal) {
    return cuDeviceGetUuid_v2(uuid, ordinal);
}

API int cuDeviceGetPCIBusId(char* id, int length, int ordinal) {
    const Lock lock(world().mutex);
    const Device* device = device_of(ordinal);
    if (!device) return INVALID_DEVICE;
    if (length < 13) return INVALID_VALUE;
    std::snprintf(id, size_t(length), "0000:%02X:00.0", bus_of(device->of_machine));
    return SUCCESS;
}

API int cuDeviceGetByPCIBusId(int* ordinal, const char* id) {
    const Lock lock(world().mutex);
    unsigned parts[4] = {0, 0, 0, 0};
    if (std::sscanf(id, "%x:%x:%x.%x", &parts[0], &parts[1], &parts[2], &parts[3]) != 4) {
        parts[0] = parts[3] = 0;
        if (std::sscanf(id, "%x:%x.%x", &parts[1], &parts[2], &parts[3]) < 2) return INVALID_VALUE;
    }
    for (auto& device : world().devices) {
        if (parts[0] == 0 && int(parts[1]) == bus_of(device->of_machine) && parts[2] == 0 && parts[3] == 0) {
            *ordinal = device->ordinal;
            return SUCCESS;
        }
    }
    return INVALID_DEVICE;
}

API int cuDeviceTotalMem_v2(size_t* bytes, int ordinal) {
    const Lock lock(world().mutex);
    const Device* device = device_of(ordinal);
    if (!device) return INVALID_DEVICE;
    *bytes = device->total;
    return SUCCESS;
}

API int cuDeviceGetAttribute(int* value, int attribute, int ordinal) {
    const Lock lock(world().mutex);
    const Device* device = device_of(ordinal);
    if (!device) return INVALID_DEVICE;
    const bool old = device->capability.first < 8;
    switch (attribute) {
        case 1: case 2: case 3: *value = 1024; break;
        case 4: *value = 64; break;
        case 5: *value = 0x7fffffff; break;
        case 6: case 7: *value = 65535; break;
        case 8: *value = 48 << 10; break;
        case 9: *value = 64 << 10; break;
        case 10: *value = 32; break;
        case 11: *value = 0x7fffffff; break;
        case 12: case 82: *value = 65536; break;
        case 13: *value = 1980000; break;
        case 14: case 30: *value = 512; break;
        case 16: *value = world().script.multiprocessors; break;
        case 33: *value = bus_of(device->of_machine); break;
        case 36: *value = 2619000; break;
        case 37: *value = 5120; break;
        case 38: *value = 50 << 20; break;
        case 39: *value = old ? 1024 : 2048; break;
        case 40: *value = 3; break;
        case 75: *value = device->capability.first; break;
        case 76: *value = device->capability.second; break;
        case 81: *value = old ? 64 << 10 : 228 << 10; break;
        case 97: *value = old ? 64 << 10 : 227 << 10; break;
        case 106: *value = old ? 16 : 32; break;
        case 111: *value = old ? 0 : 1024; break;
        // What it can: overlap, mapped memory, unified addresses, priorities, registered memory, pools.
        case 15: case 19: case 31: case 41: case 78: case 79: case 80: case 91: case 95: case 99: case 115: *value = 1; break;
        default: *value = 0;
    }
    return attribute > 0 ? SUCCESS : INVALID_VALUE;
}

API int cuDeviceComputeCapability(int* major, int* minor, int ordinal) {
    const Lock lock(world().mutex);
    const Device* device = device_of(ordinal);
    if (!device) return INVALID_DEVICE;
    *major = device->capability.first;
    *minor = device->capability.second;
    return SUCCESS;
}

API int cuDeviceCanAccessPeer(int* can, int, int) {
    *can = 0;
    return SUCCESS;
}

// ---- contexts ------------------------------------------------------------------------------------------------------

API int cuDevicePrimaryCtxRetain(void** context, int ordinal) {
    Lock lock(world().mutex);
    Device* device = device_of(ordinal);
    if (!world().initialized) return NOT_INITIALIZED;
    if (!device) return INVALID_DEVICE;
    world().note(device->of_machine, "cuDevicePrimaryCtxRetain");
    if (device->failure) return device->failure;
    const Fault fault = world().script.call("context", device->of_machine);
    delay(lock, fault);
    if (fault.action == Action::Fail) {
        if (sticky(fault.value)) fail_device(*device, fault.value);
        return fault.value;
    }
    if (!device->primary) device->primary = new_context(*device, 0, true);
    device->retained++;
    *context = device->primary.get();
    return SUCCESS;
}

API int cuDevicePrimaryCtxReset_v2(int ordinal) {
    Lock lock(world().mutex);
    Device* device = device_of(ordinal);
    if (!device) return INVALID_DEVICE;
    if (device->primary) {
        end_context(lock, *device->primary);
        device->primary = nullptr;
    }
    return SUCCESS;
}

API int cuDevicePrimaryCtxRelease_v2(int ordinal) {
    {
        const Lock lock(world().mutex);
        Device* device = device_of(ordinal);
        if (!device) return INVALID_DEVICE;
        world().note(device->of_machine, "cuDevicePrimaryCtxRelease");
        if (device->retained == 0) return INVALID_CONTEXT;
        if (--device->retained > 0) return SUCCESS;
    }
    return cuDevicePrimaryCtxReset_v2(ordinal);
}

API int cuDevicePrimaryCtxSetFlags_v2(int ordinal, unsigned) {
    const Lock lock(world().mutex);
    return device_of(ordinal) ? SUCCESS : INVALID_DEVICE;
}

API int cuDevicePrimaryCtxGetState(int ordinal, unsigned* flags, int* active) {
    const Lock lock(world().mutex);
    Device* device = device_of(ordinal);
    if (!device) return INVALID_DEVICE;
    *active = device->primary != nullptr;
    *flags = device->primary ? device->primary->flags : 0;
    return SUCCESS;
}

API int cuCtxCreate_v4(void** context, void*, unsigned flags, int ordinal) {
    const Lock lock(world().mutex);
    Device* device = device_of(ordinal);
    if (!world().initialized) return NOT_INITIALIZED;
    if (!device) return INVALID_DEVICE;
    if (device->failure) return device->failure;
    const Fault fault = world().script.call("context", device->of_machine);
    if (fault.action == Action::Fail) return fault.value;
    world().others.push_back(new_context(*device, flags, false));
    *context = world().others.back().get();
    stack.push_back(world().others.back().get());
    return SUCCESS;
}

API int cuCtxCreate_v2(void** context, unsigned flags, int ordinal) {
    return cuCtxCreate_v4(context, nullptr, flags, ordinal);
}

API int cuCtxDestroy_v2(void* handle) {
    Lock lock(world().mutex);
    auto& others = world().others;
    const auto found = std::find_if(others.begin(), others.end(), [&](auto& context) { return context.get() == handle; });
    if (found == others.end()) return INVALID_CONTEXT;
    end_context(lock, **found);
    if (!stack.empty() && stack.back() == handle) stack.pop_back();
    others.erase(std::find_if(others.begin(), others.end(), [&](auto& context) { return context.get() == handle; }));
    return SUCCESS;
}

API int cuCtxGetCurrent(void** context) {
    *context = stack.empty() ? nullptr : stack.back();
    return world().initialized ? SUCCESS : NOT_INITIALIZED;
}

API int cuCtxSetCurrent(void* context) {
    const Lock lock(world().mutex);
    if (!world().initialized) return NOT_INITIALIZED;
    if (context && !world().contexts.count(context)) return INVALID_CONTEXT;
    if (!stack.empty()) stack.pop_back();
    if (context) stack.push_back(static_cast<Context*>(context));
    return SUCCESS;
}

API int cuCtxPushCurrent_v2(void* context) {
    const Lock lock(world().mutex);
    if (!world().contexts.count(context)) return INVALID_CONTEXT;
    stack.push_back(static_cast<Context*>(context));
    return SUCCESS;
}

API int cuCtxPopCurrent_v2(void** context) {
    if (stack.empty()) return INVALID_CONTEXT;
    if (context) *context = stack.back();
    stack.pop_back();
    return SUCCESS;
}

API int cuCtxGetDevice(int* ordinal) {
    Call call("cuCtxGetDevice", true);
    if (!call) return call.code;
    *ordinal = call.device().ordinal;
    return SUCCESS;
}

API int cuCtxGetApiVersion(void*, unsigned* version) {
    *version = 13000;
    return SUCCESS;
}

API int cuCtxGetFlags(unsigned* flags) {
    BEGIN("cuCtxGetFlags");
    *flags = call.context->flags;
    return SUCCESS;
}

API int cuCtxSetFlags(unsigned flags) {
    BEGIN("cuCtxSetFlags");
    call.context->flags = flags;
    return SUCCESS;
}

API int cuCtxGetLimit(size_t* value, int limit) {
    BEGIN("cuCtxGetLimit");
    if (limit < 0 || limit > 8) return 215;
    *value = call.context->limits[limit];
    return SUCCESS;
}

API int cuCtxSetLimit(int limit, size_t value) {
    BEGIN("cuCtxSetLimit");
    if (limit < 0 || limit > 8) return 215;
    call.context->limits[limit] = value;
    return SUCCESS;
}

API int cuCtxGetCacheConfig(int* config) {
    BEGIN("cuCtxGetCacheConfig");
    *config = 0;
    return SUCCESS;
}

API int cuCtxSetCacheConfig(int) {
    BEGIN("cuCtxSetCacheConfig");
    return SUCCESS;
}

API int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    BEGIN("cuCtxGetStreamPriorityRange");
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return SUCCESS;
}

API int cuCtxSynchronize() {
    BEGIN("cuCtxSynchronize");
    if (int code = forbidden_in_capture()) return code;
    if (int code = call.fault("sync")) return code;
    Device& device = call.device();
    finish(call.lock, work_of(*call.context));
    return device.failure;
}

API int cuProfilerStart() {
    return SUCCESS;
}

API int cuProfilerStop() {
    return SUCCESS;
}

// ---- streams and events ------------------------------------------------------------------------------------------------

API int cuStreamCreateWithPriority(void** handle, unsigned flags, int priority) {
    BEGIN("cuStreamCreate");
    if (flags > 1) return INVALID_VALUE;
    auto stream = std::make_unique<Stream>();
    stream->context = call.context;
    stream->blocking = flags == 0;
    stream->priority = std::clamp(priority, -5, 0);
    stream->rank = world().draw(1 << 20);
    *handle = stream.get();
    world().streams.insert(stream.get());
    call.context->streams.push_back(std::move(stream));
    return SUCCESS;
}

API int cuStreamCreate(void** handle, unsigned flags) {
    return cuStreamCreateWithPriority(handle, flags, 0);
}

API int cuStreamDestroy_v2(void* handle) {
    BEGIN("cuStreamDestroy");
    if (!world().streams.count(handle)) return INVALID_HANDLE;
    auto* stream = static_cast<Stream*>(handle);
    if (stream->capture) {
        stream->capture->invalid = true;
        stream->capture->streams.erase(stream);
    }
    // What was enqueued is still done; the stream's place is kept until the context ends.
    world().streams.erase(handle);
    return SUCCESS;
}

API int cuStreamGetPriority(void* handle, int* priority) {
    BEGIN("cuStreamGetPriority");
    STREAM(handle);
    *priority = stream->priority;
    return SUCCESS;
}

API int cuStreamGetFlags(void* handle, unsigned* flags) {
    BEGIN("cuStreamGetFlags");
    STREAM(handle);
    *flags = stream->blocking ? 0 : 1;
    return SUCCESS;
}

API int cuStreamGetCtx(void* handle, void** context) {
    BEGIN("cuStreamGetCtx");
    STREAM(handle);
    *context = stream->context;
    return SUCCESS;
}

API int cuStreamSynchronize(void* handle) {
    BEGIN("cuStreamSynchronize");
    STREAM(handle);
    if (stream->capture) {
        stream->capture->invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    if (int code = forbidden_in_capture()) return code;
    if (int code = call.fault("sync")) return code;
    Device& device = call.device();
    if (!stream->queue.empty()) finish(call.lock, {stream->queue.back()});
    return device.failure;
}

API int cuStreamQuery(void* handle) {
    BEGIN("cuStreamQuery");
    STREAM(handle);
    if (stream->capture) {
        stream->capture->invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    if (int code = forbidden_in_capture()) return code;
    if (int code = call.fault("query")) return code;
    Device& device = call.device();
    if (stream->queue.empty()) return SUCCESS;
    const auto target = stream->queue.back();
    progress(call.lock, {target});
    return device.failure ? device.failure : target->done ? SUCCESS : NOT_READY;
}

API int cuEventCreate(void** handle, unsigned flags) {
    BEGIN("cuEventCreate");
    auto* event = new Event();
    event->context = call.context;
    event->timed = (flags & 2) == 0;
    world().events.insert(event);
    *handle = event;
    return SUCCESS;
}

API int cuEventDestroy_v2(void* handle) {
    BEGIN("cuEventDestroy");
    if (!world().events.erase(handle)) return INVALID_HANDLE;
    delete static_cast<Event*>(handle);
    return SUCCESS;
}

API int cuEventRecord(void* handle, void* stream_handle) {
    BEGIN("cuEventRecord");
    STREAM(stream_handle);
    if (!world().events.count(handle)) return INVALID_HANDLE;
    auto* event = static_cast<Event*>(handle);
    if (event->context->device != stream->context->device) return INVALID_HANDLE;
    if (int code = call.fault("record")) return code;
    if (stream->capture) {
        if (stream->capture->invalid) return CAPTURE_INVALIDATED;
        event->capture = stream->capture;
        event->nodes = stream->tails;
        return SUCCESS;
    }
    event->capture = nullptr;
    event->last = add(*stream, "record", nullptr);
    return SUCCESS;
}

API int cuEventRecordWithFlags(void* handle, void* stream, unsigned) {
    return cuEventRecord(handle, stream);
}

API int cuStreamWaitEvent(void* stream_handle, void* handle, unsigned) {
    BEGIN("cuStreamWaitEvent");
    STREAM(stream_handle);
    if (!world().events.count(handle)) return INVALID_HANDLE;
    auto* event = static_cast<Event*>(handle);
    if (int code = call.fault("wait")) return code;
    if (event->capture) {
        if (stream->capture && stream->capture != event->capture) return 902;
        if (event->capture->invalid) return CAPTURE_INVALIDATED;
        const auto& captures = world().captures;
        if (std::find(captures.begin(), captures.end(), event->capture) == captures.end()) return CAPTURED_EVENT;
        // The stream joins the capture.
        if (!stream->capture) stream->tails.clear();
        stream->capture = event->capture;
        stream->capture->streams.insert(stream);
        for (int node : event->nodes) {
            if (std::find(stream->tails.begin(), stream->tails.end(), node) == stream->tails.end()) stream->tails.push_back(node);
        }
        return SUCCESS;
    }
    if (stream->capture) {
        // An event from outside of the capture.
        if (!event->last) return SUCCESS;
        stream->capture->invalid = true;
        return 905;
    }
    if (event->last && !event->last->done) add(*stream, "wait", nullptr, 0, {event->last});
    return SUCCESS;
}

API int cuEventQuery(void* handle) {
    BEGIN("cuEventQuery");
    if (!world().events.count(handle)) return INVALID_HANDLE;
    auto* event = static_cast<Event*>(handle);
    if (event->capture) return CAPTURED_EVENT;
    if (int code = forbidden_in_capture()) return code;
    if (int code = call.fault("query")) return code;
    Device& device = call.device();
    const auto target = event->last;
    if (!target || target->done) return SUCCESS;
    progress(call.lock, {target});
    return device.failure ? device.failure : target->done ? SUCCESS : NOT_READY;
}

API int cuEventSynchronize(void* handle) {
    BEGIN("cuEventSynchronize");
    if (!world().events.count(handle)) return INVALID_HANDLE;
    auto* event = static_cast<Event*>(handle);
    if (event->capture) return CAPTURED_EVENT;
    if (int code = forbidden_in_capture()) return code;
    if (int code = call.fault("sync")) return code;
    Device& device = call.device();
    if (event->last) finish(call.lock, {event->last});
    return device.failure;
}

API int cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    BEGIN("cuEventElapsedTime");
    if (!world().events.count(from) || !world().events.count(to)) return INVALID_HANDLE;
    auto *start = static_cast<Event*>(from), *end = static_cast<Event*>(to);
    if (!start->timed || !end->timed || !start->last || !end->last) return INVALID_HANDLE;
    if (!start->last->done || !end->last->done) return NOT_READY;
    *milliseconds = float((end->last->finished - start->last->finished) / 1000);
    return SUCCESS;
}

API int cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

API int cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) {
    BEGIN("cuLaunchHostFunc");
    STREAM(handle);
    auto run = [function, data] {
        function(data);
        return int(SUCCESS);
    };
    if (stream->capture) return capture_node(*stream, "host function", run);
    add(*stream, "host function", run)->host = true;
    watch_host_functions();
    return SUCCESS;
}

API int cuStreamAddCallback(void* handle, void (*function)(void*, int, void*), void* data, unsigned) {
    BEGIN("cuStreamAddCallback");
    STREAM(handle);
    if (stream->capture) return CAPTURE_UNSUPPORTED;
    add(*stream, "callback", [function, handle, data] {
        function(handle, SUCCESS, data);
        return int(SUCCESS);
    })->host = true;
    watch_host_functions();
    return SUCCESS;
}

// ---- memory ----------------------------------------------------------------------------------------------------------

API int cuMemGetInfo_v2(size_t* free, size_t* total) {
    BEGIN("cuMemGetInfo");
    *free = free_bytes(call.device());
    *total = call.device().total;
    return SUCCESS;
}

API int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    BEGIN("cuMemAlloc");
    if (int code = forbidden_in_capture()) return code;
    if (int code = call.fault("alloc")) return code;
    return allocate(call.context, bytes, address);
}

API int cuMemAllocPitch_v2(uint64_t* address, size_t* pitch, size_t width, size_t height, unsigned) {
    *pitch = rounded(width, GRAIN);
    return cuMemAlloc_v2(address, *pitch * height);
}

API int cuMemFree_v2(uint64_t address) {
    BEGIN("cuMemFree");
    if (address == 0) return SUCCESS;
    if (int code = forbidden_in_capture()) return code;
    const auto found = world().memory.find(address);
    if (found == world().memory.end()) return INVALID_VALUE;
    Device& device = call.device();
    finish(call.lock, work_of(*found->second.context));
    return device.failure ? device.failure : release(address);
}

API int cuMemAllocAsync(uint64_t* address, size_t bytes, void* handle) {
    BEGIN("cuMemAllocAsync");
    STREAM(handle);
    if (stream->capture) return NOT_SUPPORTED;
    if (int code = call.fault("alloc")) return code;
    int code = allocate(call.context, bytes, address);
    if (code == OUT_OF_MEMORY) {
        // As a pool does: what is freed on the way is used again.
        finish(call.lock, work_of(*call.context));
        if (call.device().failure) return call.device().failure;
        code = allocate(call.context, bytes, address);
    }
    return code;
}

API int cuMemFreeAsync(uint64_t address, void* handle) {
    BEGIN("cuMemFreeAsync");
    STREAM(handle);
    if (address == 0) return SUCCESS;
    if (stream->capture) return NOT_SUPPORTED;
    if (!world().memory.count(address)) return INVALID_VALUE;
    add(*stream, "free", [address] {
        const Lock lock(world().mutex);
        return release(address) == SUCCESS ? int(SUCCESS) : int(ILLEGAL_ADDRESS);
    });
    return SUCCESS;
}

API int cuDeviceGetDefaultMemPool(void** pool, int ordinal) {
    const Lock lock(world().mutex);
    Device* device = device_of(ordinal);
    if (!device) return INVALID_DEVICE;
    *pool = device;
    return SUCCESS;
}

API int cuDeviceGetMemPool(void** pool, int ordinal) {
    return cuDeviceGetDefaultMemPool(pool, ordinal);
}

API int cuDeviceSetMemPool(int ordinal, void*) {
    const Lock lock(world().mutex);
    return device_of(ordinal) ? SUCCESS : INVALID_DEVICE;
}

API int cuMemAllocFromPoolAsync(uint64_t* address, size_t bytes, void*, void* stream) {
    return cuMemAllocAsync(address, bytes, stream);
}

API int cuMemPoolSetAttribute(void*, int, void*) {
    return SUCCESS;
}

API int cuMemPoolGetAttribute(void* pool, int attribute, void* value) {
    const Lock lock(world().mutex);
    // 5 to 8: bytes reserved and used, now and at most.
    if (attribute >= 5) *static_cast<uint64_t*>(value) = static_cast<Device*>(pool)->allocated;
    else if (attribute == 4) *static_cast<uint64_t*>(value) = 0;
    else *static_cast<int*>(value) = 1;
    return SUCCESS;
}

API int cuMemPoolTrimTo(void*, size_t) {
    return SUCCESS;
}

API int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    BEGIN("cuMemHostAlloc");
    if (int code = forbidden_in_capture()) return code;
    if (bytes == 0) return INVALID_VALUE;
    if (int code = call.fault("host")) return code;
    void* region = mmap(nullptr, rounded(bytes, PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region == MAP_FAILED) return OUT_OF_MEMORY;
    fill(static_cast<unsigned char*>(region), bytes);
    world().pinned[uint64_t(region)] = bytes;
    *pointer = region;
    return SUCCESS;
}

API int cuMemAllocHost_v2(void** pointer, size_t bytes) {
    return cuMemHostAlloc(pointer, bytes, 0);
}

API int cuMemFreeHost(void* pointer) {
    BEGIN("cuMemFreeHost");
    if (int code = forbidden_in_capture()) return code;
    const auto found = world().pinned.find(uint64_t(pointer));
    if (found == world().pinned.end()) return INVALID_VALUE;
    Device& device = call.device();
    finish(call.lock, work_of(*call.context));
    munmap(pointer, rounded(found->second, PAGE));
    world().pinned.erase(uint64_t(pointer));
    return device.failure;
}

API int cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned) {
    BEGIN("cuMemHostRegister");
    if (!pointer || bytes == 0) return INVALID_VALUE;
    if (int code = call.fault("host")) return code;
    if (is_pinned(pointer, 1)) return HOST_ALREADY_REGISTERED;
    world().registered[uint64_t(pointer)] = bytes;
    return SUCCESS;
}

API int cuMemHostUnregister(void* pointer) {
    BEGIN("cuMemHostUnregister");
    finish(call.lock, work_of(*call.context));
    return world().registered.erase(uint64_t(pointer)) ? SUCCESS : HOST_NOT_REGISTERED;
}

API int cuMemHostGetDevicePointer_v2(uint64_t* address, void* pointer, unsigned) {
    BEGIN("cuMemHostGetDevicePointer");
    if (!is_pinned(pointer, 1)) return INVALID_VALUE;
    *address = uint64_t(pointer);
    return SUCCESS;
}

API int cuMemHostGetFlags(unsigned* flags, void*) {
    *flags = 0;
    return SUCCESS;
}

API int cuMemGetAddressRange_v2(uint64_t* start, size_t* bytes, uint64_t address) {
    BEGIN("cuMemGetAddressRange");
    auto after = world().memory.upper_bound(address);
    if (after == world().memory.begin() || !memory_of(address, 1)) return NOT_FOUND;
    --after;
    if (start) *start = after->first;
    if (bytes) *bytes = after->second.bytes;
    return SUCCESS;
}

API int cuPointerGetAttribute(void* value, int attribute, uint64_t address) {
    BEGIN("cuPointerGetAttribute");
    const Memory* memory = memory_of(address, 1);
    if (!memory && !is_pinned(reinterpret_cast<void*>(address), 1)) return INVALID_VALUE;
    switch (attribute) {
        case 1: *static_cast<void**>(value) = memory ? memory->context : call.context; return SUCCESS;
        case 2: *static_cast<unsigned*>(value) = memory ? 2 : 1; return SUCCESS;
        case 3: case 4: *static_cast<uint64_t*>(value) = address; return SUCCESS;
        case 9: *static_cast<int*>(value) = memory ? memory->context->device->ordinal : call.device().ordinal; return SUCCESS;
        default: return NOT_SUPPORTED;
    }
}

namespace {

// About that of PCI Express, and of the memory itself.
double copy_cost(size_t bytes) {
    return 5 + double(bytes) / 20e3;
}
double memory_cost(size_t bytes) {
    return 2 + double(bytes) / 1e6;
}

int copied(void* to, const void* from, size_t bytes) {
    std::memmove(to, from, bytes);
    return SUCCESS;
}

std::string sized(const char* what, size_t bytes) {
    return std::string(what) + " " + std::to_string(bytes);
}

int to_device(Call& call, Stream& stream, uint64_t to, const void* from, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    if (!from || !memory_of(to, bytes)) return INVALID_VALUE;
    auto* target = reinterpret_cast<void*>(to);
    if (is_pinned(from, bytes) || stream.capture) {
        return enqueue(call, stream, "copy", sized("copy to device", bytes), [=] { return copied(target, from, bytes); }, copy_cost(bytes));
    }
    // Pageable memory is read before the call returns.
    auto staged = std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    return enqueue(call, stream, "copy", sized("copy to device", bytes), [=] { return copied(target, staged->data(), bytes); }, copy_cost(bytes));
}

int to_host(Call& call, Stream& stream, void* to, uint64_t from, size_t bytes, bool wait) {
    if (bytes == 0) return SUCCESS;
    if (!to || !memory_of(from, bytes)) return INVALID_VALUE;
    const auto* source = reinterpret_cast<const void*>(from);
    Device& device = call.device();
    const bool pinned = is_pinned(to, bytes);
    const int code = enqueue(call, stream, "copy", sized("copy to host", bytes), [=] { return copied(to, source, bytes); }, copy_cost(bytes));
    if (code || stream.capture || (pinned && !wait)) return code;
    // Pageable memory is written before the call returns.
    if (!stream.queue.empty()) finish(call.lock, {stream.queue.back()});
    return device.failure;
}

int on_device(Call& call, Stream& stream, uint64_t to, uint64_t from, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    if (!memory_of(to, bytes) || !memory_of(from, bytes)) return INVALID_VALUE;
    return enqueue(call, stream, "copy", sized("copy on device", bytes), [=] { return copied(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes); }, memory_cost(bytes));
}

template <class T>
int set_memory(Call& call, Stream& stream, uint64_t to, T value, size_t count) {
    if (count == 0) return SUCCESS;
    if (to % sizeof(T) != 0 || !memory_of(to, count * sizeof(T))) return INVALID_VALUE;
    return enqueue(call, stream, "memset", sized("memset", count * sizeof(T)), [=] {
        std::fill_n(reinterpret_cast<T*>(to), count, value);
        return int(SUCCESS);
    }, memory_cost(count * sizeof(T)));
}

}  // namespace

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* handle) {
    BEGIN("cuMemcpyHtoDAsync");
    STREAM(handle);
    return to_device(call, *stream, to, from, bytes);
}

API int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    BEGIN("cuMemcpyHtoD");
    if (int code = forbidden_in_capture()) return code;
    Device& device = call.device();
    Stream& stream = *call.context->null;
    if (int code = to_device(call, stream, to, from, bytes)) return code;
    if (!stream.queue.empty()) finish(call.lock, {stream.queue.back()});
    return device.failure;
}

API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* handle) {
    BEGIN("cuMemcpyDtoHAsync");
    STREAM(handle);
    return to_host(call, *stream, to, from, bytes, false);
}

API int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    BEGIN("cuMemcpyDtoH");
    if (int code = forbidden_in_capture()) return code;
    return to_host(call, *call.context->null, to, from, bytes, true);
}

API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* handle) {
    BEGIN("cuMemcpyDtoDAsync");
    STREAM(handle);
    return on_device(call, *stream, to, from, bytes);
}

API int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    BEGIN("cuMemcpyDtoD");
    if (int code = forbidden_in_capture()) return code;
    return on_device(call, *call.context->null, to, from, bytes);
}

API int cuMemcpyPeerAsync(uint64_t to, void*, uint64_t from, void*, size_t bytes, void* handle) {
    BEGIN("cuMemcpyPeerAsync");
    STREAM(handle);
    return on_device(call, *stream, to, from, bytes);
}

API int cuMemcpyAsync(uint64_t to, uint64_t from, size_t bytes, void* handle) {
    BEGIN("cuMemcpyAsync");
    STREAM(handle);
    const bool there = memory_of(to, bytes), here = memory_of(from, bytes);
    if (there && here) return on_device(call, *stream, to, from, bytes);
    if (there) return to_device(call, *stream, to, reinterpret_cast<const void*>(from), bytes);
    if (here) return to_host(call, *stream, reinterpret_cast<void*>(to), from, bytes, false);
    return INVALID_VALUE;
}

API int cuMemcpy(uint64_t to, uint64_t from, size_t bytes) {
    if (int code = cuMemcpyAsync(to, from, bytes, nullptr)) return code;
    return cuStreamSynchronize(nullptr);
}

#define MEMSET(name, T)                                                                             \
    API int name##Async(uint64_t to, T value, size_t count, void* handle) {                         \
        BEGIN(#name "Async");                                                                       \
        STREAM(handle);                                                                             \
        return set_memory(call, *stream, to, value, count);                                         \
    }                                                                                               \
    API int name##_v2(uint64_t to, T value, size_t count) {                                         \
        BEGIN(#name);                                                                               \
        if (int code = forbidden_in_capture()) return code;                                         \
        return set_memory(call, *call.context->null, to, value, count);                             \
    }
MEMSET(cuMemsetD8, unsigned char)
MEMSET(cuMemsetD16, unsigned short)
MEMSET(cuMemsetD32, unsigned)

// ---- modules and kernels -------------------------------------------------------------------------------------------

namespace {

// An image is a shared object of the emulated NVRTC, or its hexadecimal digits in the comment of a PTX text.
std::vector<unsigned char> image_bytes(const void* image, bool& text) {
    const auto* bytes = static_cast<const unsigned char*>(image);
    if (std::memcmp(bytes, ELFMAG, SELFMAG) == 0) {
        Elf64_Ehdr header;
        std::memcpy(&header, bytes, sizeof header);
        return {bytes, bytes + header.e_shoff + size_t(header.e_shentsize) * header.e_shnum};
    }
    text = true;
    const char* digits = bytes[0] == '/' || bytes[0] == '.' ? std::strstr(static_cast<const char*>(image), "// emulated: ") : nullptr;
    std::vector<unsigned char> object;
    if (!digits) return object;
    for (digits += 13; digits[0] > ' ' && digits[1] > ' '; digits += 2) {
        const char pair[3] = {digits[0], digits[1], 0};
        object.push_back((unsigned char)std::strtoul(pair, nullptr, 16));
    }
    return object;
}

int load_module(Call& call, void** handle, const void* image) {
    if (int code = call.fault("load")) return code;
    if (!image) return INVALID_VALUE;
    bool text = false;
    const auto object = image_bytes(image, text);
    if (object.empty()) return INVALID_IMAGE;
    // A file of its own: each load gets memory of its own, as on a device.
    const int file = int(syscall(SYS_memfd_create, "emulated cubin", 1u));
    if (file < 0 || write(file, object.data(), object.size()) != ssize_t(object.size())) {
        if (file >= 0) close(file);
        return OUT_OF_MEMORY;
    }
    auto module = std::make_shared<Module>();
    // The path is new for each load, since the loader knows a library again by it: a number, spelled by slashes.
    static unsigned loads = 0;
    std::string path = "/proc/self/";
    for (unsigned number = ++loads; number > 0; number /= 2) path += number % 2 ? ".//" : "./";
    path += "fd/" + std::to_string(file);
    module->handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    const std::string reason = module->handle ? "" : dlerror();
    close(file);
    if (!module->handle) {
        std::fprintf(stderr, "emulated CUDA: %s\n", reason.c_str());
        return INVALID_IMAGE;
    }
    const auto* architecture = static_cast<const int*>(dlsym(module->handle, "emulated_architecture"));
    const auto* entries = static_cast<const EntryPoint*>(dlsym(module->handle, "emulated_entries"));
    void* launch = dlsym(module->handle, "launch");
    if (!architecture || !entries || !launch) return INVALID_IMAGE;
    const auto [major, minor] = call.device().capability;
    // A binary is for one generation, a text for all from its own on.
    if (text ? *architecture > 10 * major + minor : *architecture / 10 != major || *architecture % 10 > minor) return NO_BINARY_FOR_GPU;
    module->architecture = *architecture;
    module->entries = entries;
    std::memcpy(&module->launch, &launch, sizeof launch);
    auto* loaded = new LoadedModule{call.context, module, {}};
    call.context->modules.insert(loaded);
    world().modules.insert(loaded);
    *handle = loaded;
    return SUCCESS;
}

}  // namespace

API int cuModuleLoadData(void** handle, const void* image) {
    BEGIN("cuModuleLoadData");
    return load_module(call, handle, image);
}

API int cuModuleLoadDataEx(void** handle, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(handle, image);
}

API int cuModuleLoadFatBinary(void** handle, const void* image) {
    return cuModuleLoadData(handle, image);
}

API int cuModuleLoad(void** handle, const char* path) {
    BEGIN("cuModuleLoad");
    FILE* file = std::fopen(path, "rb");
    if (!file) return FILE_NOT_FOUND;
    std::vector<char> image;
    char part[4096];
    for (size_t count; (count = std::fread(part, 1, sizeof part, file)) > 0;) image.insert(image.end(), part, part + count);
    std::fclose(file);
    image.push_back(0);
    return load_module(call, handle, image.data());
}

API int cuModuleUnload(void* handle) {
    BEGIN("cuModuleUnload");
    if (!world().modules.erase(handle)) return INVALID_HANDLE;
    auto* module = static_cast<LoadedModule*>(handle);
    for (auto& entry : module->functions) world().functions.erase(entry.second.get());
    module->context->modules.erase(module);
    // Work enqueued keeps the code itself.
    delete module;
    return SUCCESS;
}

API int cuModuleGetFunction(void** function, void* handle, const char* name) {
    BEGIN("cuModuleGetFunction");
    if (!world().modules.count(handle)) return INVALID_HANDLE;
    auto* module = static_cast<LoadedModule*>(handle);
    for (const EntryPoint* entry = module->module->entries; entry->name; entry++) {
        if (std::strcmp(entry->name, name) != 0) continue;
        auto& known = module->functions[name];
        if (!known) known.reset(new Function{module->module, entry});
        world().functions.insert(known.get());
        *function = known.get();
        return SUCCESS;
    }
    return NOT_FOUND;
}

API int cuModuleGetFunctionCount(unsigned* count, void* handle) {
    BEGIN("cuModuleGetFunctionCount");
    if (!world().modules.count(handle)) return INVALID_HANDLE;
    *count = 0;
    for (const EntryPoint* entry = static_cast<LoadedModule*>(handle)->module->entries; entry->name; entry++) ++*count;
    return SUCCESS;
}

API int cuModuleGetGlobal_v2(uint64_t*, size_t*, void*, const char*) {
    return NOT_FOUND;
}

API int cuModuleGetLoadingMode(int* mode) {
    *mode = 2;
    return SUCCESS;
}

API int cuFuncGetAttribute(int* value, int attribute, void* handle) {
    BEGIN("cuFuncGetAttribute");
    if (!world().functions.count(handle)) return INVALID_HANDLE;
    const auto* function = static_cast<Function*>(handle);
    switch (attribute) {
        case 0: *value = int(function->entry->threads_max); break;
        case 4: *value = 64; break;
        case 5: case 6: *value = function->module->architecture; break;
        default: *value = 0;
    }
    return SUCCESS;
}

API int cuFuncSetAttribute(void* handle, int attribute, int value) {
    BEGIN("cuFuncSetAttribute");
    if (!world().functions.count(handle)) return INVALID_HANDLE;
    // Dynamic shared memory, beyond what any block may have.
    if (attribute == 8 && value > 227 << 10) return INVALID_VALUE;
    return SUCCESS;
}

API int cuFuncSetCacheConfig(void* handle, int) {
    BEGIN("cuFuncSetCacheConfig");
    return world().functions.count(handle) ? SUCCESS : INVALID_HANDLE;
}

API int cuFuncGetName(const char** name, void* handle) {
    BEGIN("cuFuncGetName");
    if (!world().functions.count(handle)) return INVALID_HANDLE;
    *name = static_cast<Function*>(handle)->entry->name;
    return SUCCESS;
}

API int cuFuncLoad(void* handle) {
    BEGIN("cuFuncLoad");
    return world().functions.count(handle) ? SUCCESS : INVALID_HANDLE;
}

API int cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, void* stream_handle, void** parameters, void** extra) {
    BEGIN("cuLaunchKernel");
    STREAM(stream_handle);
    if (!world().functions.count(handle)) return INVALID_HANDLE;
    if (extra) return NOT_SUPPORTED;
    const Function function = *static_cast<Function*>(handle);
    const uint64_t threads = uint64_t(block_x) * block_y * block_z;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || threads == 0) return INVALID_VALUE;
    if (grid_x > 0x7fffffff || grid_y > 65535 || grid_z > 65535 || block_x > 1024 || block_y > 1024 || block_z > 64) return INVALID_VALUE;
    if (threads > 1024 || shared > 227 << 10) return INVALID_VALUE;
    if (threads > function.entry->threads_max) return 701;
    // Arguments are copied when the kernel is launched.
    struct Arguments {
        std::vector<std::vector<char>> values;
        std::vector<void*> pointers;
    };
    auto arguments = std::make_shared<Arguments>();
    for (unsigned i = 0; i < function.entry->parameters; i++) {
        if (!parameters || !parameters[i]) return INVALID_VALUE;
        const char* from = static_cast<const char*>(parameters[i]);
        arguments->values.emplace_back(from, from + function.entry->sizes[i]);
    }
    for (auto& value : arguments->values) arguments->pointers.push_back(value.data());
    const std::array<uint32_t, 3> grid = {grid_x, grid_y, grid_z}, block = {block_x, block_y, block_z};
    return enqueue(call, *stream, "launch", std::string("kernel ") + function.entry->name, [=] {
        function.module->launch(grid.data(), block.data(), function.entry->call, arguments->pointers.data());
        return int(SUCCESS);
    }, 3 + 0.05 * double(uint64_t(grid_x) * grid_y * grid_z));
}

API int cuLaunchCooperativeKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** parameters) {
    return cuLaunchKernel(handle, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters, nullptr);
}

struct LaunchConfig {
    unsigned grid[3], block[3], shared;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};

API int cuLaunchKernelEx(const LaunchConfig* config, void* handle, void** parameters, void** extra) {
    return cuLaunchKernel(handle, config->grid[0], config->grid[1], config->grid[2], config->block[0], config->block[1], config->block[2], config->shared, config->stream, parameters, extra);
}

API int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void* handle, int threads, size_t shared, unsigned) {
    BEGIN("cuOccupancyMaxActiveBlocksPerMultiprocessor");
    if (!world().functions.count(handle)) return INVALID_HANDLE;
    if (threads <= 0) return INVALID_VALUE;
    const bool fits = unsigned(threads) <= static_cast<Function*>(handle)->entry->threads_max;
    *blocks = !fits ? 0 : std::min({2048 / threads, 65536 / (threads * 64), shared ? int((228 << 10) / shared) : 32, 32});
    return SUCCESS;
}

API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, size_t shared) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, handle, threads, shared, 0);
}

API int cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, void* handle, size_t (*)(int), size_t, int limit, unsigned) {
    BEGIN("cuOccupancyMaxPotentialBlockSize");
    if (!world().functions.count(handle)) return INVALID_HANDLE;
    *block = int(static_cast<Function*>(handle)->entry->threads_max);
    if (limit > 0) *block = std::min(*block, limit);
    *grid = world().script.multiprocessors;
    return SUCCESS;
}

API int cuOccupancyMaxPotentialBlockSize(int* grid, int* block, void* handle, size_t (*shared)(int), size_t bytes, int limit) {
    return cuOccupancyMaxPotentialBlockSizeWithFlags(grid, block, handle, shared, bytes, limit, 0);
}

API int cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, void* handle, int blocks, int) {
    BEGIN("cuOccupancyAvailableDynamicSMemPerBlock");
    if (!world().functions.count(handle) || blocks <= 0) return INVALID_VALUE;
    *bytes = size_t(227 << 10) / size_t(blocks);
    return SUCCESS;
}

// ---- capture and graphs ----------------------------------------------------------------------------------------------

namespace {

// The streams of a capture are themselves again.
void end_capture(Capture& capture) {
    for (Stream* stream : capture.streams) {
        stream->capture = nullptr;
        stream->tails.clear();
    }
    auto& captures = world().captures;
    captures.erase(std::remove_if(captures.begin(), captures.end(), [&](auto& other) { return other.get() == &capture; }), captures.end());
}

bool leads_to(const Capture& capture, int from, const std::vector<int>& ends) {
    std::vector<int> open(ends);
    std::vector<bool> seen(capture.nodes.size());
    while (!open.empty()) {
        const int node = open.back();
        open.pop_back();
        if (node == from) return true;
        if (seen[size_t(node)]) continue;
        seen[size_t(node)] = true;
        const auto& deps = capture.nodes[size_t(node)].deps;
        open.insert(open.end(), deps.begin(), deps.end());
    }
    return false;
}

// All nodes in an order drawn among those that they allow.
int run_nodes(const std::vector<Node>& nodes) {
    std::vector<bool> done(nodes.size());
    for (size_t left = nodes.size(); left > 0; left--) {
        std::vector<size_t> ready;
        for (size_t i = 0; i < nodes.size(); i++) {
            if (!done[i] && std::all_of(nodes[i].deps.begin(), nodes[i].deps.end(), [&](int dep) { return done[size_t(dep)]; })) ready.push_back(i);
        }
        size_t chosen;
        {
            const Lock lock(world().mutex);
            chosen = ready[world().draw(ready.size())];
            world().note(-1, "run in graph " + nodes[chosen].what);
        }
        kernel_here = nodes[chosen].what.c_str();
        if (int code = nodes[chosen].run ? nodes[chosen].run() : SUCCESS) return code;
        done[chosen] = true;
    }
    return SUCCESS;
}

}  // namespace

API int cuStreamBeginCapture_v2(void* handle, int mode) {
    BEGIN("cuStreamBeginCapture");
    STREAM(handle);
    if (stream->null) return CAPTURE_UNSUPPORTED;
    if (stream->capture) return 401;
    if (int code = call.fault("capture")) return code;
    auto capture = std::make_shared<Capture>();
    capture->origin = stream;
    capture->streams.insert(stream);
    capture->thread = std::this_thread::get_id();
    capture->mode = mode;
    stream->capture = capture;
    stream->tails.clear();
    world().captures.push_back(capture);
    return SUCCESS;
}

API int cuStreamEndCapture(void* handle, void** result) {
    BEGIN("cuStreamEndCapture");
    STREAM(handle);
    *result = nullptr;
    const auto capture = stream->capture;
    if (!capture) return 401;
    if (capture->origin != stream) return CAPTURE_UNMATCHED;
    if (capture->mode != 2 && capture->thread != std::this_thread::get_id()) return CAPTURE_WRONG_THREAD;
    const auto tails = stream->tails;
    bool joined = true;
    for (Stream* other : capture->streams) {
        for (int tail : other->tails) joined = joined && leads_to(*capture, tail, tails);
    }
    end_capture(*capture);
    if (int code = call.fault("capture")) return code;
    if (capture->invalid) return CAPTURE_INVALIDATED;
    if (!joined) return CAPTURE_UNJOINED;
    auto* graph = new Graph{capture->nodes};
    world().graphs.insert(graph);
    *result = graph;
    return SUCCESS;
}

API int cuStreamIsCapturing(void* handle, int* status) {
    BEGIN("cuStreamIsCapturing");
    STREAM(handle);
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return SUCCESS;
}

API int cuStreamGetCaptureInfo_v3(void* handle, int* status, uint64_t* id, void** graph, void*** nodes, void**, size_t* count) {
    BEGIN("cuStreamGetCaptureInfo");
    STREAM(handle);
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    if (id) *id = uint64_t(stream->capture.get());
    if (graph) *graph = nullptr;
    if (nodes) *nodes = nullptr;
    if (count) *count = 0;
    return SUCCESS;
}

API int cuStreamGetCaptureInfo_v2(void* handle, int* status, uint64_t* id, void** graph, void*** nodes, size_t* count) {
    return cuStreamGetCaptureInfo_v3(handle, status, id, graph, nodes, nullptr, count);
}

API int cuThreadExchangeStreamCaptureMode(int* mode) {
    static thread_local int current = 0;
    std::swap(current, *mode);
    return SUCCESS;
}

API int cuGraphCreate(void** result, unsigned) {
    BEGIN("cuGraphCreate");
    auto* graph = new Graph();
    world().graphs.insert(graph);
    *result = graph;
    return SUCCESS;
}

API int cuGraphDestroy(void* handle) {
    BEGIN("cuGraphDestroy");
    if (!world().graphs.erase(handle)) return INVALID_VALUE;
    delete static_cast<Graph*>(handle);
    return SUCCESS;
}

API int cuGraphGetNodes(void* handle, void** nodes, size_t* count) {
    BEGIN("cuGraphGetNodes");
    if (!world().graphs.count(handle)) return INVALID_VALUE;
    auto* graph = static_cast<Graph*>(handle);
    if (nodes) {
        for (size_t i = 0; i < std::min(*count, graph->nodes.size()); i++) nodes[i] = &graph->nodes[i];
    }
    *count = graph->nodes.size();
    return SUCCESS;
}

API int cuGraphInstantiateWithFlags(void** executable, void* handle, uint64_t) {
    BEGIN("cuGraphInstantiate");
    if (!world().graphs.count(handle)) return INVALID_VALUE;
    if (int code = forbidden_in_capture()) return code;
    if (int code = call.fault("instantiate")) return code;
    auto* copy = new Graph(*static_cast<Graph*>(handle));
    world().executables.insert(copy);
    *executable = copy;
    return SUCCESS;
}

API int cuGraphInstantiate_v2(void** executable, void* handle, void**, char*, size_t) {
    return cuGraphInstantiateWithFlags(executable, handle, 0);
}

API int cuGraphExecUpdate_v2(void* executable, void* handle, int* result) {
    BEGIN("cuGraphExecUpdate");
    if (!world().executables.count(executable) || !world().graphs.count(handle)) return INVALID_VALUE;
    auto *old = static_cast<Graph*>(executable), *graph = static_cast<Graph*>(handle);
    bool same = old->nodes.size() == graph->nodes.size();
    for (size_t i = 0; same && i < old->nodes.size(); i++) {
        const auto &a = old->nodes[i], &b = graph->nodes[i];
        same = a.deps == b.deps && a.what.substr(0, a.what.find(' ')) == b.what.substr(0, b.what.find(' '));
    }
    if (result) *result = same ? 0 : 2;
    if (!same) return GRAPH_EXEC_UPDATE_FAILURE;
    old->nodes = graph->nodes;
    return SUCCESS;
}

API int cuGraphExecDestroy(void* executable) {
    BEGIN("cuGraphExecDestroy");
    if (!world().executables.erase(executable)) return INVALID_VALUE;
    delete static_cast<Graph*>(executable);
    return SUCCESS;
}

API int cuGraphUpload(void* executable, void* handle) {
    BEGIN("cuGraphUpload");
    STREAM(handle);
    return world().executables.count(executable) ? SUCCESS : INVALID_VALUE;
}

API int cuGraphLaunch(void* executable, void* handle) {
    BEGIN("cuGraphLaunch");
    STREAM(handle);
    if (!world().executables.count(executable)) return INVALID_VALUE;
    auto nodes = std::make_shared<std::vector<Node>>(static_cast<Graph*>(executable)->nodes);
    double cost = 0;
    for (const Node& node : *nodes) cost += node.cost;
    cost *= world().script.graphs / 100.0;
    return enqueue(call, *stream, "graph", sized("graph", nodes->size()), [nodes] { return run_nodes(*nodes); }, cost);
}

// ---- entry points by name -----------------------------------------------------------------------------------------

API int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
    Dl_info own;
    void* library = dladdr(reinterpret_cast<void*>(&cuInit), &own) ? dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD) : nullptr;
    *function = nullptr;
    for (const char* version : {"_v4", "_v3", "_v2", ""}) {
        if (library && !*function) *function = dlsym(library, (std::string(name) + version).c_str());
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}

API int cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
