# VMOBA_VERSION: the release that the sources are, from git's last tag vX.Y.Z (X.Y.Z, or X.Y.Z.postN+gCOMMIT behind it),
# else the project's version. VMOBA_COMMIT: the commit's short name, or "unknown".
execute_process(COMMAND git describe --tags --long --match "v[0-9]*" WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}"
  OUTPUT_VARIABLE _described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
set(VMOBA_VERSION "${PROJECT_VERSION}")
if(_described MATCHES "^v([0-9]+\\.[0-9]+\\.[0-9]+)-([0-9]+)-(g[0-9a-f]+)$")
  set(VMOBA_VERSION "${CMAKE_MATCH_1}")
  if(CMAKE_MATCH_2 GREATER 0)
    string(APPEND VMOBA_VERSION ".post${CMAKE_MATCH_2}+${CMAKE_MATCH_3}")
  endif()
endif()
execute_process(COMMAND git rev-parse --short HEAD WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}"
  OUTPUT_VARIABLE VMOBA_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT VMOBA_COMMIT)
  set(VMOBA_COMMIT "unknown")
endif()
# A new commit configures again, so that programs name the commit that they were built from.
execute_process(COMMAND git rev-parse --git-path logs/HEAD WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}"
  OUTPUT_VARIABLE _head_log OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(_head_log)
  get_filename_component(_head_log "${_head_log}" ABSOLUTE BASE_DIR "${CMAKE_SOURCE_DIR}")
  if(EXISTS "${_head_log}")
    set_property(DIRECTORY "${CMAKE_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${_head_log}")
  endif()
endif()
