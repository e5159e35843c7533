/* A management library without a GPU: the entry points that we use, with answers from a script.
 *
 * The script lies beside the library, at its path + ".script", and is read anew for every call, so that a test
 * changes what the driver says while it is asked. A line is a question and its answer:
 *
 *     init !9                                     nvmlInit_v2 fails with error 9
 *     driver 580.82.07
 *     count 2
 *     0.memory 85520809984 1073741824 524288000   GPU 0: total, used, reserved
 *     1 !15                                       everything asked of GPU 1 fails with error 15
 *     0.xid 31 79                                 two critical errors, each told once
 *     0.hangs yes                                 nothing asked of GPU 0 is ever answered; a file ".hangs" says so
 *
 * The last answer to a question counts. What the script does not mention is "not supported" (3), as a driver says of what a GPU lacks. Compiled with
 * -DOLD, the functions that came with driver 510 are absent.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10 };
enum { GPUS_MAX = 8, ANSWER_MAX = 512 };

typedef struct { int index; unsigned long long xids_told; int watched; } Gpu;
static Gpu gpus[GPUS_MAX] = {{0, 0, 0}, {1, 0, 0}, {2, 0, 0}, {3, 0, 0}, {4, 0, 0}, {5, 0, 0}, {6, 0, 0}, {7, 0, 0}};
static int sets_open;

/* Finds the answer to a question; an answer "!N" is error N. */
static int answer_to(const char *question, char *answer) {
    Dl_info own;
    char path[4096], line[ANSWER_MAX];
    if (!dladdr((void *)gpus, &own)) return 999;
    snprintf(path, sizeof path, "%s.script", own.dli_fname);
    FILE *script = fopen(path, "r");
    if (!script) return NOT_SUPPORTED;
    int code = NOT_SUPPORTED;
    size_t length = strlen(question);
    while (fgets(line, sizeof line, script)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, question, length) || line[length] != ' ') continue;
        snprintf(answer, ANSWER_MAX, "%s", line + length + 1);
        code = answer[0] == '!' ? atoi(answer + 1) : SUCCESS;
    }
    fclose(script);
    return code;
}

static void hang(void) {
    Dl_info own;
    char path[4096];
    if (dladdr((void *)gpus, &own)) {
        snprintf(path, sizeof path, "%s.hangs", own.dli_fname);
        FILE *sign = fopen(path, "w");
        if (sign) fclose(sign);
    }
    for (;;) pause();
}

static int of_gpu(Gpu *gpu, const char *what, char *answer) {
    char question[64];
    if (!gpu) return INVALID_ARGUMENT;
    snprintf(question, sizeof question, "%d", gpu->index);
    int code = answer_to(question, answer);
    if (code != SUCCESS && code != NOT_SUPPORTED) return code;
    snprintf(question, sizeof question, "%d.hangs", gpu->index);
    if (answer_to(question, answer) == SUCCESS) hang();
    snprintf(question, sizeof question, "%d.%s", gpu->index, what);
    return answer_to(question, answer);
}

static int text_of(Gpu *gpu, const char *what, char *text, unsigned length) {
    char answer[ANSWER_MAX];
    int code = of_gpu(gpu, what, answer);
    if (code == SUCCESS) snprintf(text, length, "%s", answer);
    return code;
}

static int number_of(Gpu *gpu, const char *what, unsigned *number) {
    char answer[ANSWER_MAX];
    int code = of_gpu(gpu, what, answer);
    if (code == SUCCESS) *number = strtoul(answer, 0, 0);
    return code;
}

int nvmlInit_v2(void) {
    char answer[ANSWER_MAX];
    int code = answer_to("init", answer);
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    char answer[ANSWER_MAX];
    int code = answer_to("driver", answer);
    if (code == SUCCESS) snprintf(version, length, "%s", answer);
    return code;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    char answer[ANSWER_MAX];
    int code = answer_to("cuda", answer);
    if (code == SUCCESS) *version = atoi(answer);
    return code;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    char answer[ANSWER_MAX];
    int code = answer_to("count", answer);
    *count = code == SUCCESS ? strtoul(answer, 0, 0) : 0;
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **gpu) {
    unsigned count;
    char answer[ANSWER_MAX];
    int code = nvmlDeviceGetCount_v2(&count);
    if (code != SUCCESS) return code;
    if (index >= count || index >= GPUS_MAX) return INVALID_ARGUMENT;
    *gpu = &gpus[index];
    code = of_gpu(*gpu, "handle", answer);
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

static int with_text(const char *what, const char *wanted, Gpu **gpu) {
    char text[ANSWER_MAX];
    for (unsigned index = 0; index < GPUS_MAX; index++)
        if (text_of(&gpus[index], what, text, sizeof text) == SUCCESS && !strcasecmp(text, wanted))
            return nvmlDeviceGetHandleByIndex_v2(index, gpu);
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Gpu **gpu) { return with_text("uuid", uuid, gpu); }

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, Gpu **gpu) {
    /* As the real one: the domain may have four digits or eight. */
    char full[ANSWER_MAX];
    snprintf(full, sizeof full, "%s%s", strcspn(id, ":") == 4 ? "0000" : "", id);
    return with_text("pci", full, gpu);
}

int nvmlDeviceGetName(Gpu *gpu, char *text, unsigned length) { return text_of(gpu, "name", text, length); }
int nvmlDeviceGetUUID(Gpu *gpu, char *text, unsigned length) { return text_of(gpu, "uuid", text, length); }

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;

int nvmlDeviceGetPciInfo_v3(Gpu *gpu, Pci *pci) { return text_of(gpu, "pci", pci->bus_id, sizeof pci->bus_id); }

int nvmlDeviceGetCudaComputeCapability(Gpu *gpu, int *major, int *minor) {
    char answer[ANSWER_MAX];
    int code = of_gpu(gpu, "capability", answer);
    if (code == SUCCESS) sscanf(answer, "%d.%d", major, minor);
    return code;
}

int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    *pending = 0;
    return number_of(gpu, "mig", current);
}

int nvmlDeviceGetUtilizationRates(Gpu *gpu, unsigned rates[2]) {
    char answer[ANSWER_MAX];
    int code = of_gpu(gpu, "busy", answer);
    if (code == SUCCESS) sscanf(answer, "%u %u", &rates[0], &rates[1]);
    return code;
}

static int memory_of(Gpu *gpu, unsigned long long *total, unsigned long long *used, unsigned long long *reserved) {
    char answer[ANSWER_MAX];
    int code = of_gpu(gpu, "memory", answer);
    *total = *used = *reserved = 0;
    if (code == SUCCESS) sscanf(answer, "%llu %llu %llu", total, used, reserved);
    return code;
}

typedef struct { unsigned long long total, free, used; } Memory;

int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *memory) {
    unsigned long long reserved;
    int code = memory_of(gpu, &memory->total, &memory->used, &reserved);
    /* The older question counts what the driver keeps as used. */
    memory->used += reserved;
    memory->free = memory->total - memory->used;
    return code;
}

int nvmlDeviceGetTemperature(Gpu *gpu, int sensor, unsigned *celsius) {
    return sensor ? INVALID_ARGUMENT : number_of(gpu, "temperature", celsius);
}

int nvmlDeviceGetPowerUsage(Gpu *gpu, unsigned *milliwatts) { return number_of(gpu, "power", milliwatts); }
int nvmlDeviceGetEnforcedPowerLimit(Gpu *gpu, unsigned *limit) { return number_of(gpu, "limit_enforced", limit); }
int nvmlDeviceGetPowerManagementLimit(Gpu *gpu, unsigned *limit) { return number_of(gpu, "limit", limit); }

int nvmlDeviceGetClockInfo(Gpu *gpu, int domain, unsigned *mhz) {
    return domain == 1 ? number_of(gpu, "clock_sm", mhz) : domain == 2 ? number_of(gpu, "clock_memory", mhz) : INVALID_ARGUMENT;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Gpu *gpu, unsigned long long *reasons) {
    unsigned bits;
    int code = number_of(gpu, "throttle", &bits);
    if (code == SUCCESS) *reasons = bits;
    return code;
}

int nvmlDeviceGetPcieThroughput(Gpu *gpu, int counter, unsigned *kilobytes_per_s) {
    return number_of(gpu, counter ? "pcie_received" : "pcie_sent", kilobytes_per_s);
}

int nvmlDeviceGetEccMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    *pending = 0;
    return number_of(gpu, "ecc", current);
}

/* Four counters: corrected and not since the driver was loaded, then both over the GPU's life. */
int nvmlDeviceGetTotalEccErrors(Gpu *gpu, int uncorrected, int lifetime, unsigned long long *count) {
    char answer[ANSWER_MAX];
    unsigned long long counts[4] = {0};
    int code = of_gpu(gpu, "ecc_errors", answer);
    if (code != SUCCESS) return code;
    sscanf(answer, "%llu %llu %llu %llu", &counts[0], &counts[1], &counts[2], &counts[3]);
    *count = counts[2 * (lifetime != 0) + (uncorrected != 0)];
    return SUCCESS;
}

typedef struct { unsigned handle_unused; } EventSetBody;
static EventSetBody the_set;

int nvmlEventSetCreate(EventSetBody **set) {
    char answer[ANSWER_MAX];
    int code = answer_to("events", answer);
    *set = &the_set;
    sets_open++;
    return code;
}

int nvmlEventSetFree(EventSetBody *set) {
    (void)set;
    if (--sets_open < 0) abort();
    for (int index = 0; index < GPUS_MAX; index++) gpus[index].watched = 0;
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(Gpu *gpu, unsigned long long kinds, EventSetBody *set) {
    (void)set;
    if (kinds != 8) return INVALID_ARGUMENT;
    gpu->watched = 1;
    return SUCCESS;
}

typedef struct { Gpu *gpu; unsigned long long kind, value; unsigned instance, part; } Event;

int nvmlEventSetWait_v2(EventSetBody *set, Event *event, unsigned timeout_ms) {
    (void)set, (void)timeout_ms;
    for (Gpu *gpu = gpus; gpu < gpus + GPUS_MAX; gpu++) {
        char answer[ANSWER_MAX];
        if (!gpu->watched || of_gpu(gpu, "xid", answer) != SUCCESS) continue;
        unsigned long long number = 0;
        char *rest = answer, *word;
        for (; (word = strsep(&rest, " ")); number++)
            if (number == gpu->xids_told) {
                gpu->xids_told++;
                *event = (Event){gpu, 8, strtoull(word, 0, 0), 0, 0};
                return SUCCESS;
            }
    }
    return TIMEOUT;
}

#ifndef OLD

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryNow;

int nvmlDeviceGetMemoryInfo_v2(Gpu *gpu, MemoryNow *memory) {
    if (memory->version != (sizeof *memory | 2u << 24)) return INVALID_ARGUMENT;
    int code = memory_of(gpu, &memory->total, &memory->used, &memory->reserved);
    memory->free = memory->total - memory->used - memory->reserved;
    return code;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned instance, part; } Process;

/* "4711:1073741824 4712:-": numbers and bytes, "-" where the driver does not tell. */
int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *count, Process *processes) {
    char answer[ANSWER_MAX];
    int code = of_gpu(gpu, "processes", answer);
    if (code != SUCCESS) return code;
    unsigned found = 0, room = *count;
    char *rest = answer, *word;
    while ((word = strsep(&rest, " ")))
        if (*word) {
            char *bytes = strchr(word, ':') + 1;
            if (found < room)
                processes[found] = (Process){strtoul(word, 0, 10),
                    *bytes == '-' ? ~0ull : strtoull(bytes, 0, 10), ~0u, ~0u};
            found++;
        }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#endif
