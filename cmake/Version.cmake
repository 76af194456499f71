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
