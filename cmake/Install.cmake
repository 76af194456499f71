# `cmake --install build --prefix P` gives a tree that can be moved: programs in bin, headers and find_package(vmoba), libtorch and CUDA libraries in
# lib/vmoba in the layout that libtorch's own $ORIGIN search paths expect. FFmpeg, Cairo, yaml-cpp and MPI stay the system's.
install(DIRECTORY "${VMOBA_SITE}/torch/lib/" DESTINATION lib/vmoba/torch/lib USE_SOURCE_PERMISSIONS
  FILES_MATCHING PATTERN "*.so" PATTERN "*.so.*" PATTERN "libtorch_python.so" EXCLUDE PATTERN "libshm*" EXCLUDE)
foreach(part cu13 cudnn cusparselt nccl nvshmem)
  install(DIRECTORY "${VMOBA_SITE}/nvidia/${part}/lib/" DESTINATION lib/vmoba/nvidia/${part}/lib USE_SOURCE_PERMISSIONS
    FILES_MATCHING PATTERN "*.so.*" PATTERN "libcudnn*.so*")
endforeach()
install(DIRECTORY configs DESTINATION share/vmoba)
install(DIRECTORY assets DESTINATION share/vmoba)
install(FILES LICENSE README.md DESTINATION share/vmoba)

# `cmake --install build --component development --prefix P`: what a C++ program needs beside libtorch, and nothing else.
install(FILES src/attention/attention.h src/attention/observer.h src/attention/result_tape.h
  DESTINATION include/vmoba/attention COMPONENT development)
install(FILES src/attention/vmoba/config.h DESTINATION include/vmoba/attention/vmoba COMPONENT development)
install(FILES src/core/check.h src/core/choice.h src/core/config.h DESTINATION include/vmoba/core COMPONENT development)
install(FILES src/ops/options.h DESTINATION include/vmoba/ops COMPONENT development)
file(STRINGS "${VMOBA_SITE}/torch/version.py" _line REGEX "^__version__ = ")
string(REGEX REPLACE "^__version__ = '([0-9.]+).*$" "\\1" VMOBA_TORCH_VERSION "${_line}")
include(CMakePackageConfigHelpers)
configure_package_config_file(cmake/vmobaConfig.cmake.in "${CMAKE_BINARY_DIR}/vmobaConfig.cmake"
  INSTALL_DESTINATION lib/cmake/vmoba NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file("${CMAKE_BINARY_DIR}/vmobaConfigVersion.cmake" VERSION "${PROJECT_VERSION}"
  COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_BINARY_DIR}/vmobaConfig.cmake" "${CMAKE_BINARY_DIR}/vmobaConfigVersion.cmake"
  DESTINATION lib/cmake/vmoba COMPONENT development)
