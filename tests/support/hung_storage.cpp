// Preloaded into a program under test: calls that open or read a file whose path holds VMOBA_HUNG_PATH do not return
// while the file VMOBA_HUNG_WHILE exists, as on a network file system whose server does not answer.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

namespace {

template <typename Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

void hang(const char* path) {
  const char *part = ::getenv("VMOBA_HUNG_PATH"), *marker = ::getenv("VMOBA_HUNG_WHILE");
  if (part == nullptr || marker == nullptr || ::strstr(path, part) == nullptr) return;
  while (::access(marker, F_OK) == 0) ::usleep(50'000);
}

int mode_of(int flags, va_list arguments) {
  return (flags & O_CREAT) != 0 ? va_arg(arguments, int) : 0;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const int mode = mode_of(flags, arguments);
  va_end(arguments);
  hang(path);
  return next<int (*)(const char*, int, ...)>("open")(path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const int mode = mode_of(flags, arguments);
  va_end(arguments);
  hang(path);
  return next<int (*)(const char*, int, ...)>("open64")(path, flags, mode);
}

FILE* fopen64(const char* path, const char* mode) {
  hang(path);
  return next<FILE* (*)(const char*, const char*)>("fopen64")(path, mode);
}

ssize_t read(int file, void* bytes, size_t count) {
  char link[64], path[4096];
  ::snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = ::readlink(link, path, sizeof path - 1);
  if (length > 0) {
    path[length] = '\0';
    hang(path);
  }
  return next<ssize_t (*)(int, void*, size_t)>("read")(file, bytes, count);
}
}
