// NVML without a GPU: the driver's version, each card's name and memory, no process on it.
#include "nullgpu.h"
#include <string.h>

#define NOT_SUPPORTED 3
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    strncpy(text, "595.10", size);
    return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 13020;
    return 0;
}
int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)DEVICES;
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **card) {
    *card = (void *)(size_t)(index + 1);
    return 0;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **card) { return nvmlDeviceGetHandleByIndex_v2(0, card); }
int nvmlDeviceGetName(void *card, char *text, unsigned size) {
    strncpy(text, nullgpu_name(), size);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *card, unsigned long long *memory) {  // total, free, used
    memory[0] = (unsigned long long)MEMORY;
    memory[1] = nullgpu_free_bytes();
    memory[2] = memory[0] - memory[1];
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses(void *card, unsigned *count, void *processes) {
    *count = 0;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned *count, void *processes) {
    return nvmlDeviceGetComputeRunningProcesses(card, count, processes);
}
int nvmlDeviceGetNvLinkState() { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkVersion() { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkCapability() { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemoteDeviceType() { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2() { return NOT_SUPPORTED; }
int nvmlDeviceGetFieldValues() { return NOT_SUPPORTED; }
int nvmlDeviceGetGpuFabricInfo() { return NOT_SUPPORTED; }
int nvmlDeviceGetGpuFabricInfoV() { return NOT_SUPPORTED; }
