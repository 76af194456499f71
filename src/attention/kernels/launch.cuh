// Launches a chain of short kernels with less of a gap between them: on sm_90 a kernel may be set up while the one
// before it in the stream still runs (programmatic dependent launch). Contract: such a kernel calls
// start_after_previous() before it touches memory, so nothing but the launch itself overlaps.
#pragma once
#include <cuda_runtime.h>

namespace vmoba::kernels {

// Lets the next kernel of the stream be set up, then waits until the previous one has finished and its writes are seen.
__device__ __forceinline__ void start_after_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

struct Launcher {
  cudaStream_t stream;
  bool overlap;  // sm_90

  template <typename... Parameters, typename... Arguments>
  cudaError_t operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                         Arguments... arguments) const {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
    config.attrs = &attribute, config.numAttrs = overlap ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  }
};

}  // namespace vmoba::kernels
