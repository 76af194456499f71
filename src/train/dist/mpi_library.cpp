#include "train/dist/mpi_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "core/check.h"

namespace vmoba::train::dist {
namespace {

constexpr const char* kCure =
    "install Open MPI on every host (Debian, Ubuntu: apt-get install openmpi-bin), or set VMOBA_MPI_LIBRARY to the "
    "path "
    "of its libmpi.so.40";

struct Library {
  void* handle = nullptr;
  std::string trouble;  // why there is none
};

Library opened_library() {
  const char* named = std::getenv("VMOBA_MPI_LIBRARY");
  const std::string path = named != nullptr ? named : "libmpi.so.40";
  // Open MPI's plugins look for its symbols among the global ones.
  Library out{::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL), ""};
  if (out.handle == nullptr) {
    out.trouble = ::dlerror();
  } else if (::dlsym(out.handle, "ompi_mpi_comm_world") == nullptr) {
    out = {nullptr, path + " of another MPI"};
  }
  return out;
}

const Library& library() {
  static const Library instance = opened_library();
  return instance;
}

}  // namespace

void open_mpi_library(int ranks) {
  VMOBA_CHECK_INPUT(library().handle != nullptr,
                    "expected Open MPI's library, which connects the {} ranks, found: {}; {}", ranks, library().trouble,
                    kCure);
}

bool has_mpi_library() {
  return library().handle != nullptr;
}

void* mpi_symbol(const char* name) {
  void* const symbol = library().handle == nullptr ? nullptr : ::dlsym(library().handle, name);
  VMOBA_CHECK(symbol != nullptr, "expected {} in Open MPI's library, found none; {}", name, kCure);
  return symbol;
}

}  // namespace vmoba::train::dist

// The functions of mpi.h that this folder calls: nothing but the library's own.
#define VMOBA_MPI_FUNCTION(name, parameters, arguments)                                                      \
  int name parameters {                                                                                      \
    static const auto function = reinterpret_cast<decltype(&name)>(::vmoba::train::dist::mpi_symbol(#name)); \
    return function arguments;                                                                               \
  }

extern "C" {
VMOBA_MPI_FUNCTION(MPI_Abort, (MPI_Comm comm, int code), (comm, code))
VMOBA_MPI_FUNCTION(MPI_Allgather,
                   (const void* send, int sends, MPI_Datatype send_type, void* receive, int receives,
                    MPI_Datatype receive_type, MPI_Comm comm),
                   (send, sends, send_type, receive, receives, receive_type, comm))
VMOBA_MPI_FUNCTION(MPI_Cancel, (MPI_Request * request), (request))
VMOBA_MPI_FUNCTION(MPI_Comm_dup, (MPI_Comm comm, MPI_Comm* out), (comm, out))
VMOBA_MPI_FUNCTION(MPI_Comm_free, (MPI_Comm * comm), (comm))
VMOBA_MPI_FUNCTION(MPI_Comm_rank, (MPI_Comm comm, int* rank), (comm, rank))
VMOBA_MPI_FUNCTION(MPI_Comm_set_errhandler, (MPI_Comm comm, MPI_Errhandler handler), (comm, handler))
VMOBA_MPI_FUNCTION(MPI_Comm_size, (MPI_Comm comm, int* size), (comm, size))
VMOBA_MPI_FUNCTION(MPI_Comm_split, (MPI_Comm comm, int color, int key, MPI_Comm* out), (comm, color, key, out))
VMOBA_MPI_FUNCTION(MPI_Comm_split_type, (MPI_Comm comm, int type, int key, MPI_Info info, MPI_Comm* out),
                   (comm, type, key, info, out))
VMOBA_MPI_FUNCTION(MPI_Error_string, (int code, char* text, int* length), (code, text, length))
VMOBA_MPI_FUNCTION(MPI_Finalize, (), ())
VMOBA_MPI_FUNCTION(MPI_Get_processor_name, (char* name, int* length), (name, length))
VMOBA_MPI_FUNCTION(MPI_Init_thread, (int* argc, char*** argv, int required, int* provided),
                   (argc, argv, required, provided))
VMOBA_MPI_FUNCTION(MPI_Irecv,
                   (void* bytes, int count, MPI_Datatype type, int from, int tag, MPI_Comm comm, MPI_Request* request),
                   (bytes, count, type, from, tag, comm, request))
VMOBA_MPI_FUNCTION(MPI_Isend,
                   (const void* bytes, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
                    MPI_Request* request),
                   (bytes, count, type, to, tag, comm, request))
VMOBA_MPI_FUNCTION(MPI_Request_free, (MPI_Request * request), (request))
VMOBA_MPI_FUNCTION(MPI_Request_get_status, (MPI_Request request, int* done, MPI_Status* status),
                   (request, done, status))
VMOBA_MPI_FUNCTION(MPI_Test, (MPI_Request * request, int* done, MPI_Status* status), (request, done, status))
VMOBA_MPI_FUNCTION(MPI_Testall, (int count, MPI_Request* requests, int* done, MPI_Status* statuses),
                   (count, requests, done, statuses))
}
