// The CUDA runtime without a GPU, loaded before torch's libcudart: devices, launches, streams, events, graphs. Every call succeeds.
#define _GNU_SOURCE
#include "nullgpu.h"
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

void nullgpu_register(const void *function, const char *name);
void nullgpu_launched(const void *function);

// ---- kernels: torch's libraries register theirs when they are loaded

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[4];
    return handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external, size_t size, int constant, int global) {}
void __cudaRegisterFunction(void **handle, const char *function, char *device, const char *name, int threads, void *thread, void *block,
                            void *block_size, void *grid_size, int *warp) {
    nullgpu_register(function, name);
}

static cudaError_t launched(const void *function) {
    nullgpu_work(COUNT_launches);
    nullgpu_launched(function);
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
    return launched(kernel);
}
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
    return launched(function);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) { return launched(function); }
cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
    return launched(function);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t function, void *argument) {  // the stream is always at its end
    function(argument);
    return cudaSuccess;
}

// <<<grid, block>>> is compiled to a push, and a pop in the kernel's own launcher.
static __thread struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} pushed[8];
static __thread int depth;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    pushed[depth].grid = grid;
    pushed[depth].block = block;
    pushed[depth].shared = shared;
    pushed[depth++].stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    depth--;
    *grid = pushed[depth].grid;
    *block = pushed[depth].block;
    *shared = pushed[depth].shared;
    *(void **)stream = pushed[depth].stream;
    return cudaSuccess;
}

// A kernel's version is compared with the card's: torch's wheels have none for 8.9, where 8.6's run.
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = CAPABILITY == 89 ? 86 : (int)CAPABILITY;
    attributes->maxDynamicSharedSizeBytes = 48 << 10;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) { return cudaSuccess; }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, enum cudaFuncAttribute attribute, int value, int device) {
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads, size_t shared) {
    *blocks = 2;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads, size_t shared,
                                                                   unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}

// ---- devices

static __thread int current;
cudaError_t cudaGetDeviceCount(int *count) {
    *count = (int)DEVICES;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = current;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    current = device;
    return cudaSuccess;
}

#undef cudaGetDeviceProperties
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *card, int device) {
    int capability = (int)CAPABILITY;
    memset(card, 0, sizeof *card);
    strncpy(card->name, nullgpu_name(), sizeof card->name - 1);
    card->totalGlobalMem = (size_t)MEMORY;
    card->major = capability / 10;
    card->minor = capability % 10;
    card->multiProcessorCount = (int)MULTIPROCESSORS;
    card->warpSize = 32;
    card->regsPerBlock = card->regsPerMultiprocessor = 65536;
    card->maxThreadsPerBlock = 1024;
    card->maxThreadsPerMultiProcessor = capability == 75 ? 1024 : capability == 86 || capability == 89 || capability >= 120 ? 1536 : 2048;
    card->maxBlocksPerMultiProcessor = 24;
    card->sharedMemPerBlock = 48 << 10;
    card->sharedMemPerBlockOptin = nullgpu_shared_bytes();
    card->sharedMemPerMultiprocessor = nullgpu_shared_bytes() + 1024;
    for (int axis = 0; axis < 3; axis++) {
        card->maxThreadsDim[axis] = axis == 2 ? 64 : 1024;
        card->maxGridSize[axis] = axis ? 65535 : 2147483647;
    }
    card->l2CacheSize = (int)L2_BYTES;
    card->textureAlignment = 512;
    card->unifiedAddressing = card->concurrentKernels = card->cooperativeLaunch = 1;
    card->memoryBusWidth = 5120;
    card->pciBusID = device + 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp card;
    cudaGetDeviceProperties(&card, device);
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = card.multiProcessorCount; break;
        case cudaDevAttrComputeCapabilityMajor: *value = card.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = card.minor; break;
        case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: *value = 1024; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)card.sharedMemPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)card.sharedMemPerBlockOptin; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)card.sharedMemPerMultiprocessor; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = card.maxThreadsPerMultiProcessor; break;
        case cudaDevAttrMaxGridDimX: *value = card.maxGridSize[0]; break;
        case cudaDevAttrMaxGridDimY: *value = card.maxGridSize[1]; break;
        case cudaDevAttrL2CacheSize: *value = card.l2CacheSize; break;
        case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
        case cudaDevAttrClockRate: *value = 1980000; break;
        default: *value = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, (size_t)size, "0000:%02x:00.0", device + 1);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}
static cudaError_t waited(int counter) { return nullgpu_wait(counter) ? cudaSuccess : cudaErrorStreamCaptureUnsupported; }
cudaError_t cudaDeviceSynchronize(void) { return waited(COUNT_device_syncs); }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) {
    *can = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int device, unsigned flags) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }
cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }

// ---- streams and events: handles that differ from each other, on which everything has happened already

static void *handle(void) { return calloc(1, 64); }
cudaError_t cudaStreamCreate(cudaStream_t *s) {
    *s = handle();
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return cudaStreamCreate(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) {
    *priority = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return waited(COUNT_stream_syncs); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t event, unsigned flags) { return cudaSuccess; }
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t function, void *argument, unsigned flags) {
    function(s, cudaSuccess, argument);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = handle();
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t s, unsigned flags) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return waited(COUNT_event_syncs); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t a, cudaEvent_t b) {
    *milliseconds = 1;  // Triton's autotuner divides by it
    return cudaSuccess;
}

// ---- graphs: a thread's work between the beginning and the end of a capture is recorded, and one launch replays it. NULLGPU_GRAPHS=0
// makes every capture invalid.

static __thread struct {
    cudaStream_t stream;
    unsigned long long id;
    Count nodes;
    int invalid;
} capture;
int nullgpu_capturing(void) { return capture.stream != NULL; }
int nullgpu_work(int counter) {
    if (capture.stream) capture.nodes++;
    nullgpu_add(capture.stream ? COUNT_captured : counter, 1);
    return !capture.stream;
}
int nullgpu_wait(int counter) {
    if (capture.stream) capture.invalid = 1;
    else nullgpu_add(counter, 1);
    return !capture.stream;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    static unsigned long long captures;
    capture.stream = s;
    capture.id = __atomic_add_fetch(&captures, 1, __ATOMIC_RELAXED);
    capture.nodes = 0;
    capture.invalid = setting("NULLGPU_GRAPHS", 1) == 0;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    capture.stream = NULL;
    *graph = NULL;
    if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
    *graph = handle();
    *(Count *)*graph = capture.nodes;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = s && s == capture.stream ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
    if (id) *id = capture.id;
    if (count) *count = 0;
    return cudaStreamIsCapturing(s, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    *count = (size_t)*(Count *)graph;  // torch warns about an empty graph
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *instance, cudaGraph_t graph, unsigned long long flags) {
    *instance = handle();
    *(Count *)*instance = *(Count *)graph;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *instance, cudaGraph_t graph, unsigned long long flags) {
    return cudaGraphInstantiate(instance, graph, flags);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t instance, cudaStream_t s) {
    ADD(graph_launches, 1);
    ADD(replayed, *(Count *)instance);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t instance) { return cudaSuccess; }

// The driver's functions by name, as c10 asks for them; one that is not here does nothing and succeeds.
static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (!*function) *function = (void *)nothing;
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
