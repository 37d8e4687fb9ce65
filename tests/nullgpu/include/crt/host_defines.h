// The words of CUDA's headers that only its compiler knows: torch's wheels bring the headers, but not this one, which is part of nvcc.
#pragma once
#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__
#define __grid_constant__
#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __forceinline__ inline
#define __noinline__
#define __no_return__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __location__(a)
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __CUDA_ARCH_HAS_FEATURE__(x) 0
#define CUDAAPI
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDA_CB
