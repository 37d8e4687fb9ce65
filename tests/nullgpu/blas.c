// cuBLAS and cuBLASLt without a GPU: each product is counted with its operations.
#include "nullgpu.h"
#include <cublasLt.h>
#include <cublas_v2.h>
#include <string.h>

#define OK(name, ...) \
    cublasStatus_t name(__VA_ARGS__) { return CUBLAS_STATUS_SUCCESS; }

static cublasStatus_t product(Count m, Count n, Count k, Count batch) {
    if (nullgpu_work(COUNT_products)) ADD(product_mflop, 2 * m * n * k * batch / 1000000);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t object(void *to, size_t bytes) {
    *(void **)to = calloc(1, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) { return object(handle, 4096); }
OK(cublasDestroy_v2, cublasHandle_t handle)
OK(cublasSetStream_v2, cublasHandle_t handle, cudaStream_t s)
OK(cublasSetWorkspace_v2, cublasHandle_t handle, void *space, size_t bytes)
OK(cublasSetMathMode, cublasHandle_t handle, cublasMath_t mode)
cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) {
    *mode = CUBLAS_DEFAULT_MATH;
    return CUBLAS_STATUS_SUCCESS;
}
OK(cublasSetPointerMode_v2, cublasHandle_t handle, cublasPointerMode_t mode)
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t *mode) {
    *mode = CUBLAS_POINTER_MODE_HOST;
    return CUBLAS_STATUS_SUCCESS;
}
OK(cublasSetSmCountTarget, cublasHandle_t handle, int count)

typedef cublasOperation_t Op;
typedef cudaDataType Type;
cublasStatus_t cublasGemmEx(cublasHandle_t handle, Op ta, Op tb, int m, int n, int k, const void *alpha, const void *a, Type at, int lda,
                            const void *b, Type bt, int ldb, const void *beta, void *c, Type ct, int ldc, cublasComputeType_t type,
                            cublasGemmAlgo_t algorithm) {
    return product(m, n, k, 1);
}
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, Op ta, Op tb, int m, int n, int k, const void *alpha, const void *a,
                                          Type at, int lda, long long sa, const void *b, Type bt, int ldb, long long sb, const void *beta,
                                          void *c, Type ct, int ldc, long long sc, int batch, cublasComputeType_t type,
                                          cublasGemmAlgo_t algorithm) {
    return product(m, n, k, batch);
}
cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, Op ta, Op tb, int m, int n, int k, const float *alpha, const float *a, int lda,
                              const float *b, int ldb, const float *beta, float *c, int ldc) {
    return product(m, n, k, 1);
}
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, Op ta, Op tb, int m, int n, int k, const float *alpha, const float *a,
                                         int lda, long long sa, const float *b, int ldb, long long sb, const float *beta, float *c,
                                         int ldc, long long sc, int batch) {
    return product(m, n, k, batch);
}
cublasStatus_t cublasSgemv_v2(cublasHandle_t handle, Op t, int m, int n, const float *alpha, const float *a, int lda, const float *x,
                              int ix, const float *beta, float *y, int iy) {
    return product(m, n, 1, 1);
}
OK(cublasSdot_v2, cublasHandle_t handle, int n, const float *x, int ix, const float *y, int iy, float *result)

// cuBLASLt: a layout keeps its size, from which the operations follow; the other objects are empty.
typedef struct {
    Count rows, columns, batch;
} Layout;
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *to, Type type, uint64_t rows, uint64_t columns, int64_t stride) {
    Layout *layout = calloc(1, 256);
    *layout = (Layout){(Count)rows, (Count)columns, 1};
    *to = (cublasLtMatrixLayout_t)(void *)layout;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t of, cublasLtMatrixLayoutAttribute_t name, const void *value,
                                                size_t bytes) {
    if (name == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) ((Layout *)(void *)of)->batch = *(const int32_t *)value;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    free((void *)layout);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *to, cublasComputeType_t compute, Type type) { return object(to, 1024); }
OK(cublasLtMatmulDescSetAttribute, cublasLtMatmulDesc_t of, cublasLtMatmulDescAttributes_t name, const void *value, size_t bytes)
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t of) {
    free((void *)of);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *to) { return object(to, 256); }
OK(cublasLtMatmulPreferenceSetAttribute, cublasLtMatmulPreference_t of, cublasLtMatmulPreferenceAttributes_t name, const void *value,
   size_t bytes)
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t of) {
    free((void *)of);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t of, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted, cublasLtMatmulHeuristicResult_t *results,
                                              int *found) {
    memset(results, 0, sizeof *results);  // an algorithm without workspace
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t of, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta, const void *c,
                              cublasLtMatrixLayout_t lc, void *d, cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algorithm,
                              void *space, size_t bytes, cudaStream_t s) {
    const Layout *first = (const void *)la, *result = (const void *)ld;
    return product(result->rows, result->columns, first->rows * first->columns / result->rows, result->batch);
}
