// NCCL without other ranks: a collective is counted with the bytes that this rank sends or receives.
#include "nullgpu.h"
#include <nccl.h>
#include <string.h>

#define OK(name, ...) \
    ncclResult_t name(__VA_ARGS__) { return ncclSuccess; }

static int ranks = 1, own;
static size_t width(ncclDataType_t type) {
    switch (type) {
        case ncclInt64: case ncclUint64: case ncclFloat64: return 8;
        case ncclInt32: case ncclUint32: case ncclFloat32: return 4;
        case ncclFloat16: case ncclBfloat16: return 2;
        default: return 1;
    }
}
static ncclResult_t collective(size_t bytes) {
    ADD(collectives, 1);
    ADD(collective_bytes, bytes);
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 1, sizeof *id);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t *group, int count, ncclUniqueId id, int rank) {
    ranks = count;
    own = rank;
    *group = calloc(1, 64);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *group, int count, ncclUniqueId id, int rank, ncclConfig_t *config) {
    return ncclCommInitRank(group, count, id, rank);
}
ncclResult_t ncclCommInitRankScalable(ncclComm_t *group, int count, int rank, int ids, ncclUniqueId *id, ncclConfig_t *config) {
    return ncclCommInitRank(group, count, *id, rank);
}
ncclResult_t ncclCommUserRank(ncclComm_t group, int *rank) {
    *rank = own;
    return ncclSuccess;
}
ncclResult_t ncclCommCount(ncclComm_t group, int *count) {
    *count = ranks;
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t group, ncclResult_t *error) {
    *error = ncclSuccess;
    return ncclSuccess;
}
OK(ncclCommDestroy, ncclComm_t group)
OK(ncclCommAbort, ncclComm_t group)
OK(ncclCommFinalize, ncclComm_t group)
OK(ncclGroupStart, void)
OK(ncclGroupEnd, void)
ncclResult_t ncclCommRegister(ncclComm_t group, void *buffer, size_t bytes, void **handle) {
    *handle = NULL;
    return ncclSuccess;
}
OK(ncclCommDeregister, ncclComm_t group, void *handle)

ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t group, cudaStream_t s) {
    return collective(2 * n * width(type));  // a ring's, by the leading term
}
ncclResult_t ncclReduceScatter(const void *from, void *to, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t group,
                               cudaStream_t s) {
    return collective(n * (size_t)ranks * width(type));
}
ncclResult_t ncclAllGather(const void *from, void *to, size_t n, ncclDataType_t type, ncclComm_t group, cudaStream_t s) {
    return collective(n * (size_t)ranks * width(type));
}
ncclResult_t ncclBroadcast(const void *from, void *to, size_t n, ncclDataType_t type, int root, ncclComm_t group, cudaStream_t s) {
    return collective(n * width(type));
}
