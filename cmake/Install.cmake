# `cmake --install build --prefix P` gives a tree that can be moved: programs in bin, libtorch and CUDA libraries in
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
