# Finds what scripts/setup.sh installed into the venv: libtorch, the CUDA tree nvidia/cu13, NCCL, cuDNN, CUTLASS.
# Included before project(), because the CUDA compiler must be known when the CUDA language is enabled.
set(VMOBA_VENV "${CMAKE_SOURCE_DIR}/.venv" CACHE PATH "venv made by scripts/setup.sh")
file(GLOB _vmoba_site "${VMOBA_VENV}/lib/python3*/site-packages")
if(NOT EXISTS "${_vmoba_site}/torch/lib/libtorch_cuda.so")
  message(FATAL_ERROR "expected libtorch under ${VMOBA_VENV}, found none; run ./scripts/setup.sh first")
endif()
set(VMOBA_SITE "${_vmoba_site}" CACHE INTERNAL "")
set(VMOBA_CUDA_ROOT "${_vmoba_site}/nvidia/cu13" CACHE INTERNAL "")
set(VMOBA_CUTLASS_INCLUDE "${_vmoba_site}/cutlass_library/source/include" CACHE INTERNAL "")
if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER "${VMOBA_CUDA_ROOT}/bin/nvcc" CACHE FILEPATH "")
endif()
set(CUDAToolkit_ROOT "${VMOBA_CUDA_ROOT}" CACHE PATH "")

# Imported targets, made by hand: torch's own CMake package rewrites CUDA architecture settings.
macro(vmoba_define_imported_targets)
  add_library(vmoba_torch INTERFACE)
  target_include_directories(vmoba_torch SYSTEM INTERFACE
    "${VMOBA_SITE}/torch/include" "${VMOBA_SITE}/torch/include/torch/csrc/api/include" "${VMOBA_CUDA_ROOT}/include")
  target_compile_definitions(vmoba_torch INTERFACE USE_CUDA)
  set(_t "${VMOBA_SITE}/torch/lib")
  target_link_libraries(vmoba_torch INTERFACE
    -Wl,--no-as-needed "${_t}/libtorch.so" "${_t}/libtorch_cpu.so" "${_t}/libtorch_cuda.so" "${_t}/libc10.so" "${_t}/libc10_cuda.so"
    -Wl,--as-needed "${VMOBA_CUDA_ROOT}/lib/libcudart.so.13" -Wl,--allow-shlib-undefined)

  add_library(vmoba_cuda INTERFACE)
  target_include_directories(vmoba_cuda SYSTEM INTERFACE "${VMOBA_CUDA_ROOT}/include" "${VMOBA_CUTLASS_INCLUDE}")
  target_link_libraries(vmoba_cuda INTERFACE "${VMOBA_CUDA_ROOT}/lib/libcudart.so.13")

  add_library(vmoba_nccl INTERFACE)
  target_include_directories(vmoba_nccl SYSTEM INTERFACE "${VMOBA_SITE}/nvidia/nccl/include")
  target_link_libraries(vmoba_nccl INTERFACE "${VMOBA_SITE}/nvidia/nccl/lib/libnccl.so.2")
endmacro()
