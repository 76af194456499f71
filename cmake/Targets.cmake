# vmoba_library(NAME [TORCH] SOURCES ... [LINKS ...])   static library of one folder
# vmoba_app(NAME SOURCES ... LINKS ...)                 program in build/bin
# vmoba_test(NAME [TORCH] SOURCES ... LINKS ... [LABELS ...])  one Catch2 program, one ctest entry for its plain
#   cases and one more for each of the tags [slow], [fuzz], [gpu], [mpi] that SLOW/FUZZ/GPU flags announce
# vmoba_checked_test(NAME SANITIZE s SOURCES ... CHECKED ... LINKS ...)   test program for `ctest -C sanitize`, or `threads`

# Warnings from the flow of inlined code: GCC 13 sees them inside libtorch's headers (vector<bool>::reserve in
# autograd::Function::apply), where nothing is wrong. They stay warnings under VMOBA_WERROR.
set(VMOBA_FLOW_WARNINGS "")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  set(VMOBA_FLOW_WARNINGS "-Wno-error=array-bounds;-Wno-error=stringop-overflow;-Wno-error=maybe-uninitialized")
endif()

function(_vmoba_compile_options target)
  target_include_directories(${target} PUBLIC "${CMAKE_SOURCE_DIR}/src")
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter>
    "$<$<AND:$<BOOL:${VMOBA_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror;${VMOBA_FLOW_WARNINGS}>")
  if(VMOBA_SANITIZE)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${VMOBA_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all>)
    target_link_options(${target} PUBLIC -fsanitize=${VMOBA_SANITIZE})
  endif()
endfunction()

# vmoba_kernel_options(TARGET [NO_SPILLS file.cu ...])   of a library of kernels; with VMOBA_WERROR warnings are errors
#   NO_SPILLS   files none of whose kernels may keep registers or arrays in local memory
function(vmoba_kernel_options target)
  cmake_parse_arguments(A "" "" "NO_SPILLS" ${ARGN})
  target_include_directories(${target} PUBLIC "${CMAKE_SOURCE_DIR}/src")
  target_link_libraries(${target} PUBLIC vmoba_cuda)
  set(error "$<$<BOOL:${VMOBA_WERROR}>:-Werror=all-warnings>" "$<$<BOOL:${VMOBA_WERROR}>:-Xcompiler=-Werror>")
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-lineinfo;-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter;${error}>")
  set_source_files_properties(${A_NO_SPILLS} PROPERTIES COMPILE_OPTIONS
    "-Xptxas=--warn-on-spills,--warn-on-local-memory-usage;$<$<BOOL:${VMOBA_WERROR}>:-Xptxas=--warning-as-error>")
endfunction()

# torch's fmt, compiled once for all targets that see torch: header-only it takes a third of their time to compile.
# Targets without torch have the system's fmt, header-only.
function(vmoba_fmt_of_torch)
  add_library(vmoba_fmt STATIC cmake/fmt.cpp)
  target_include_directories(vmoba_fmt SYSTEM PRIVATE "${VMOBA_SITE}/torch/include")
  target_link_libraries(vmoba_torch INTERFACE vmoba_fmt)
endfunction()

# vmoba_precompiled_header(NAME [options...])   library that owns a precompiled header of torch, see cmake/pch.h
function(vmoba_precompiled_header name)
  add_library(${name} STATIC cmake/pch.cpp)
  _vmoba_compile_options(${name})
  target_compile_options(${name} PRIVATE ${ARGN})
  _vmoba_sees_torch(${name})
  target_precompile_headers(${name} PRIVATE cmake/pch.h)
endfunction()

function(_vmoba_sees_torch target)
  target_link_libraries(${target} PUBLIC vmoba_torch)
  set_target_properties(${target} PROPERTIES VMOBA_TORCH ON)
endfunction()

function(_vmoba_torch target header)
  _vmoba_sees_torch(${target})
  target_precompile_headers(${target} REUSE_FROM ${header})
endfunction()

function(vmoba_library name)
  cmake_parse_arguments(A "TORCH" "" "SOURCES;LINKS" ${ARGN})
  add_library(${name} STATIC ${A_SOURCES})
  _vmoba_compile_options(${name})
  target_link_libraries(${name} PUBLIC ${A_LINKS})
  if(A_TORCH)
    _vmoba_torch(${name} vmoba_torch_pch)
  endif()
endfunction()

# _vmoba_executable(NAME HEADER [TORCH] SOURCES ... LINKS ...)   HEADER: the precompiled header that TORCH uses
function(_vmoba_executable name header)
  cmake_parse_arguments(A "TORCH" "" "SOURCES;LINKS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  _vmoba_compile_options(${name})
  target_link_libraries(${name} PRIVATE ${A_LINKS})
  # libtorch.so exports std::filesystem functions of its own, and its remove_all calls a null pointer. With libstdc++
  # first among the needed libraries the loader finds the system's.
  target_link_options(${name} PRIVATE "LINKER:--push-state,--no-as-needed" "-lstdc++" "LINKER:--pop-state")
  if(A_TORCH)
    # -fPIC and not an executable's -fPIE: the precompiled header was made with -fPIC.
    set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fPIC>)
    _vmoba_torch(${name} ${header})
  endif()
endfunction()

function(vmoba_app name)
  _vmoba_executable(${name} vmoba_torch_pch ${ARGN})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin"
    INSTALL_RPATH "$ORIGIN/../lib/vmoba/torch/lib;$ORIGIN/../lib/vmoba/nvidia/cu13/lib;$ORIGIN/../lib/vmoba/nvidia/nccl/lib")
  install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

function(vmoba_test name)
  cmake_parse_arguments(A "TORCH;SLOW;FUZZ;GPU" "TIMEOUT" "SOURCES;LINKS;LABELS;ENV" ${ARGN})
  set(torch "")
  if(A_TORCH)
    set(torch TORCH)
  endif()
  _vmoba_executable(${name} vmoba_test_pch ${torch} SOURCES ${A_SOURCES} LINKS ${A_LINKS} vmoba_test_main)
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O1>)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  target_include_directories(${name} PRIVATE "${CMAKE_SOURCE_DIR}/tests")
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 600)
  endif()
  add_test(NAME ${name} COMMAND ${name} "~[slow]~[fuzz]~[gpu]" WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}")
  set_tests_properties(${name} PROPERTIES LABELS "cpu;${A_LABELS}" TIMEOUT ${A_TIMEOUT} ENVIRONMENT "${A_ENV}")
  foreach(kind SLOW FUZZ GPU)
    if(A_${kind})
      string(TOLOWER ${kind} tag)
      add_test(NAME ${name}_${tag} COMMAND ${name} "[${tag}]" CONFIGURATIONS ${tag} WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}")
      set_tests_properties(${name}_${tag} PROPERTIES LABELS "${tag}" TIMEOUT 7200 ENVIRONMENT "${A_ENV}")
    endif()
  endforeach()
endfunction()

# vmoba_checked_test(NAME SANITIZE address,undefined|thread SOURCES tests CHECKED files LINKS libraries [ENV ...])
#   The files CHECKED, of libraries, are compiled once more with the sanitizers, as are the tests; all else comes from
#   the libraries as they are. That takes minutes where the presets sanitize and tsan, which check everything, take the
#   better part of an hour. Not part of `all`: the targets are vmoba_checked, and vmoba_checked_threads for `thread`.
#   ctest runs the plain cases under the configuration and label `sanitize` or `threads`.
function(vmoba_checked_test name)
  cmake_parse_arguments(A "" "SANITIZE" "SOURCES;CHECKED;LINKS;ENV" ${ARGN})
  list(TRANSFORM A_CHECKED PREPEND "${CMAKE_SOURCE_DIR}/")
  set(core ${A_CHECKED})
  list(FILTER core INCLUDE REGEX "/src/core/")
  list(FILTER A_CHECKED EXCLUDE REGEX "/src/core/")
  add_library(${name}_core OBJECT EXCLUDE_FROM_ALL ${core})
  target_link_libraries(${name}_core PRIVATE yaml-cpp spdlog::spdlog_header_only PkgConfig::XXHASH
    nlohmann_json::nlohmann_json)
  target_compile_definitions(${name}_core PRIVATE FMT_HEADER_ONLY=1)
  add_library(${name}_rest OBJECT EXCLUDE_FROM_ALL ${A_CHECKED} ${A_SOURCES})
  target_link_libraries(${name}_rest PRIVATE ${A_LINKS} PkgConfig::LIBAV PkgConfig::SENTENCEPIECE CLI11::CLI11 Catch2::Catch2
    nlohmann_json::nlohmann_json)
  target_include_directories(${name}_rest PRIVATE "${CMAKE_SOURCE_DIR}" "${CMAKE_SOURCE_DIR}/tests")
  target_precompile_headers(${name}_rest PRIVATE "${CMAKE_SOURCE_DIR}/cmake/pch.h")
  if(Catch2_VERSION VERSION_GREATER_EQUAL 3)
    target_compile_definitions(${name}_rest PRIVATE VMOBA_CATCH2_V3)
  endif()
  add_executable(${name} EXCLUDE_FROM_ALL $<TARGET_OBJECTS:${name}_core> $<TARGET_OBJECTS:${name}_rest>)
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  target_link_libraries(${name} PRIVATE ${A_LINKS} vmoba_test_main PkgConfig::SENTENCEPIECE)
  target_link_options(${name} PRIVATE -fsanitize=${A_SANITIZE} "LINKER:--push-state,--no-as-needed" "-lstdc++" "LINKER:--pop-state")
  foreach(part core rest)
    target_include_directories(${name}_${part} PRIVATE "${CMAKE_SOURCE_DIR}/src")
    # Assertions of the standard library find what sanitizers cannot see: an index beyond a vector's size.
    target_compile_options(${name}_${part} PRIVATE -O1 -g1 -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS
      -fsanitize=${A_SANITIZE} -fno-sanitize-recover=all)
  endforeach()
  set(all vmoba_checked)
  set(suite sanitize)
  if(A_SANITIZE STREQUAL "thread")
    set(all vmoba_checked_threads)
    set(suite threads)
  endif()
  add_dependencies(${all} ${name})
  add_test(NAME ${name} COMMAND ${name} "~[fuzz]~[slow]" CONFIGURATIONS ${suite} WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}")
  set_tests_properties(${name} PROPERTIES LABELS ${suite} TIMEOUT 1800 ENVIRONMENT "${A_ENV}")
endfunction()
