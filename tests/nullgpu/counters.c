// Counters, kernels by name, and the card's name. Python reads all three through ctypes (tests/nullgpu/counted.py).
#define _GNU_SOURCE
#include "nullgpu.h"
#include <pthread.h>
#include <stdint.h>

Count nullgpu_counters[COUNTER_KINDS];
#define ENTRY(name) #name,
const char *nullgpu_names[] = {COUNTERS(ENTRY) NULL};
#undef ENTRY

void nullgpu_add(int counter, Count n) { __atomic_add_fetch(&nullgpu_counters[counter], n, __ATOMIC_RELAXED); }

const char *nullgpu_name(void) {
    const char *name = getenv("NULLGPU_NAME");
    return name ? name : "NVIDIA H100 80GB HBM3";
}

int nullgpu_shared_bytes(void) {
    Count capability = CAPABILITY;
    if (capability == 75) return 64 << 10;
    if (capability == 80) return 163 << 10;
    return capability == 90 || (capability >= 100 && capability < 120) ? 227 << 10 : 99 << 10;
}

// ---- kernels of torch's libraries, registered when these are loaded: an open hash table, some ten thousand entries

#define SLOTS (1 << 18)
static struct {
    const void *function;
    const char *name;
    Count launches;
} kernels[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned slot(const void *function) {
    unsigned at = (unsigned)((uintptr_t)function >> 4) * 2654435761u % SLOTS;
    while (kernels[at].function && kernels[at].function != function) at = (at + 1) % SLOTS;
    kernels[at].function = function;
    return at;
}

void nullgpu_register(const void *function, const char *name) {
    pthread_mutex_lock(&lock);
    kernels[slot(function)].name = name;
    pthread_mutex_unlock(&lock);
}

void nullgpu_launched(const void *function) {
    pthread_mutex_lock(&lock);
    kernels[slot(function)].launches++;
    pthread_mutex_unlock(&lock);
}

// Names (mangled) and launches of at most `most` kernels that were launched; returns their number.
int nullgpu_kernels(const char **names, Count *launches, int most) {
    int found = 0;
    for (int at = 0; at < SLOTS && found < most; at++)
        if (kernels[at].launches) {
            names[found] = kernels[at].name;
            launches[found++] = kernels[at].launches;
        }
    return found;
}
