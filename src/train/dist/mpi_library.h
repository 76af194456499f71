// Open MPI, opened when a launcher has started ranks: programs do not link it, so that one process runs where there is
// none. mpi_library.cpp defines the functions of mpi.h that this folder calls by those of the opened library; here the
// predefined handles (MPI_COMM_WORLD, MPI_BYTE, ...) become objects in it. The binary interface is that of Open MPI 4
// and 5 (libmpi.so.40); other MPIs have other types. Included by src/train/dist only.
#pragma once
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#ifndef OPEN_MPI
#error "expected the mpi.h of Open MPI; install libopenmpi-dev"
#endif

namespace vmoba::train::dist {

// Opens libmpi.so.40, or the file that the environment names as VMOBA_MPI_LIBRARY. Throws Error(kInput) with what to
// install where it cannot be opened or is not Open MPI; `ranks` is for that message. Safe to call again.
void open_mpi_library(int ranks);
// Whether that will do.
bool has_mpi_library();

// An object or function of the opened library.
void* mpi_symbol(const char* name);

}  // namespace vmoba::train::dist

// Written as MPI_COMM_WORLD and so on; looked up once where it stands.
#undef OMPI_PREDEFINED_GLOBAL
#define OMPI_PREDEFINED_GLOBAL(type, global)                               \
  ([] {                                                                    \
    static void* const object = ::vmoba::train::dist::mpi_symbol(#global); \
    return static_cast<type>(object);                                      \
  }())
