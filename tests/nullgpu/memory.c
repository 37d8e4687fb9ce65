// Memory of the null GPU: allocations are counted against the card and refused beyond it. Device memory holds zeros, whatever was copied
// into it, and is never touched, so that a card of 80 GB needs no page of this machine.
#define _GNU_SOURCE
#include "nullgpu.h"
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t used;

// Live ranges of addresses, of the device and of pinned host memory.
#define RANGES 65536
static struct {
    uintptr_t begin;
    size_t bytes;
    int host;
} ranges[RANGES];
static int range_count;

static int find(const void *address) {
    uintptr_t at = (uintptr_t)address;
    for (int i = 0; i < range_count; i++)
        if (ranges[i].bytes && at >= ranges[i].begin && at - ranges[i].begin < ranges[i].bytes) return i;
    return -1;
}

static void *map(size_t bytes, int host) {
    bytes = (bytes + 4095) & ~(size_t)4095;
    void *begin = mmap(NULL, bytes, host ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin == MAP_FAILED) return NULL;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < range_count && ranges[i].bytes) i++;
    if (i == RANGES) abort();
    if (i == range_count) range_count++;
    ranges[i].begin = (uintptr_t)begin;
    ranges[i].bytes = bytes;
    ranges[i].host = host;
    pthread_mutex_unlock(&lock);
    return begin;
}

void *nullgpu_reserve(size_t bytes) { return map(bytes, 0); }

size_t nullgpu_release(void *address) {
    pthread_mutex_lock(&lock);
    int i = find(address);
    size_t bytes = i < 0 ? 0 : ranges[i].bytes;
    if (bytes) {
        munmap((void *)ranges[i].begin, bytes);
        ranges[i].bytes = 0;
    }
    pthread_mutex_unlock(&lock);
    return bytes;
}

int nullgpu_on_device(const void *address) {
    pthread_mutex_lock(&lock);
    int i = find(address);
    int device = i >= 0 && !ranges[i].host;
    pthread_mutex_unlock(&lock);
    return device;
}

int nullgpu_take(size_t bytes) {
    pthread_mutex_lock(&lock);
    int fits = used + bytes <= (size_t)(MEMORY - CONTEXT);
    if (fits) used += bytes;
    pthread_mutex_unlock(&lock);
    if (!fits) ADD(refusals, 1);
    return fits;
}

void nullgpu_give(size_t bytes) {
    pthread_mutex_lock(&lock);
    used -= bytes;
    pthread_mutex_unlock(&lock);
}

size_t nullgpu_free_bytes(void) { return (size_t)(MEMORY - CONTEXT) - used; }

cudaError_t cudaMalloc(void **address, size_t bytes) {
    ADD(allocations, 1);
    bytes = (bytes + 4095) & ~(size_t)4095;
    if (!nullgpu_take(bytes)) return cudaErrorMemoryAllocation;
    *address = nullgpu_reserve(bytes);
    return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *address) {
    if (address) {  // cudaFree(NULL) is how libraries start the runtime
        ADD(releases, 1);
        nullgpu_give(nullgpu_release(address));
    }
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t s) { return cudaMalloc(address, bytes); }
cudaError_t cudaFreeAsync(void *address, cudaStream_t s) { return cudaFree(address); }

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = (size_t)MEMORY;
    *available = nullgpu_free_bytes();
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    ADD(host_allocations, 1);
    *address = map(bytes, 1);
    return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaMallocHost(void **address, size_t bytes) { return cudaHostAlloc(address, bytes, 0); }

cudaError_t cudaFreeHost(void *address) {
    nullgpu_release(address);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned flags) { return cudaSuccess; }
cudaError_t cudaHostUnregister(void *address) { return cudaSuccess; }

// torch asks this of every pointer that it did not allocate, to know whether a copy may be asynchronous.
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
    memset(attributes, 0, sizeof *attributes);
    pthread_mutex_lock(&lock);
    int i = find(address);
    attributes->type = i < 0 ? cudaMemoryTypeUnregistered : ranges[i].host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    if (i >= 0 && ranges[i].host) attributes->hostPointer = (void *)address;
    if (i >= 0) attributes->devicePointer = (void *)address;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

// A copy into device memory is counted only: what kernels would make of it is not computed either, and a value that nothing overwrites
// (a stop flag, an id) would be read again much later. So a copy back brings zeros.
static void copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    if (kind == cudaMemcpyDefault) {
        int source = nullgpu_on_device(from), target = nullgpu_on_device(to);
        kind = source ? (target ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost) : target ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost;
    }
    if (kind == cudaMemcpyHostToDevice) {
        if (nullgpu_work(COUNT_uploads)) ADD(uploaded_bytes, bytes);
    } else if (kind == cudaMemcpyDeviceToHost) {
        if (nullgpu_work(COUNT_downloads)) ADD(downloaded_bytes, bytes);
        memset(to, 0, bytes);
    } else if (kind == cudaMemcpyDeviceToDevice) {
        nullgpu_work(COUNT_device_copies);
    } else {
        memcpy(to, from, bytes);
    }
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    if (!nullgpu_wait(COUNT_blocking_copies)) return cudaErrorStreamCaptureUnsupported;
    copy(to, from, bytes, kind);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s) {
    copy(to, from, bytes, kind);
    return cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(void *to, int there, const void *from, int here, size_t bytes, cudaStream_t s) {
    ADD(device_copies, 1);
    return cudaSuccess;
}

cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t bytes, size_t offset, enum cudaMemcpyKind kind) {
    return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {  // of a table of constants, which only kernels read
    static void *constants;
    if (!constants) constants = nullgpu_reserve(1 << 20);
    *address = constants;
    return cudaSuccess;
}

cudaError_t cudaMemset(void *address, int value, size_t bytes) {
    nullgpu_work(COUNT_fills);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *address, int value, size_t bytes, cudaStream_t s) { return cudaMemset(address, value, bytes); }
