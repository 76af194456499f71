#include "core/mapped_file.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "core/check.h"
#include "core/file_descriptor.h"
#include "core/file_kind.h"

namespace vmoba {
namespace {

// What the handler needs, readable at any instant without a lock. More files than places are mapped unguarded.
struct Place {
  std::atomic<bool> taken{false};
  std::atomic<uintptr_t> begin{0}, end{0};  // end 0: nothing
  std::atomic<const char*> path{nullptr};
};
constexpr size_t kPlaces = 4096;
std::array<Place, kPlaces> places;

size_t take_place(const uint8_t* base, int64_t bytes, const char* path) {
  for (size_t i = 0; i < kPlaces; ++i) {
    if (places[i].taken.exchange(true)) continue;
    places[i].path = path;
    places[i].begin = reinterpret_cast<uintptr_t>(base);
    places[i].end = reinterpret_cast<uintptr_t>(base) + uintptr_t(bytes);
    return i;
  }
  return kPlaces;
}

void put(const char* text) {
  // Nothing can be done about a stderr that takes no text.
  if (::write(STDERR_FILENO, text, std::strlen(text)) < 0) return;
}

void on_bus_error(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Place& place : places) {
    const uintptr_t end = place.end;
    if (end == 0 || address < place.begin || address >= end) continue;
    put("error: expected '");
    put(place.path);
    put("' to stay as it was while it is read, found it cut short or its disk failing; put the whole file back and "
        "start again (a training run: with --resume latest)\n");
    ::_exit(1);
  }
  ::signal(SIGBUS, SIG_DFL);  // no file of ours: the touch is repeated and ends the process as always
}

}  // namespace

MappedFile::MappedFile(const std::string& path, int64_t least_bytes, const std::string& what) : path_(path) {
  const FileDescriptor file(path, O_RDONLY | O_NONBLOCK);  // without it, opening a FIFO waits for a writer
  VMOBA_CHECK_INPUT(file.get() >= 0, "expected {} at '{}', found: {}", what, path, std::strerror(errno));
  struct stat info {};
  VMOBA_CHECK_INPUT(::fstat(file.get(), &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0,
                    "expected {} at '{}', found {}", what, path, what_is_this(path));
  bytes_ = int64_t(info.st_size);
  VMOBA_CHECK_INPUT(bytes_ >= least_bytes, "expected {} of at least {} bytes at '{}', found {}", what, least_bytes,
                    path, bytes_);
  void* address = ::mmap(nullptr, size_t(bytes_), PROT_READ, MAP_PRIVATE, file.get(), 0);
  VMOBA_CHECK(address != MAP_FAILED, "expected to map '{}' ({} bytes), found: {}", path, bytes_, std::strerror(errno));
  base_ = static_cast<uint8_t*>(address);
  place_ = take_place(base_, bytes_, path_.c_str());
}

MappedFile::~MappedFile() {
  if (place_ < kPlaces) {
    places[place_].end = 0;
    places[place_].path = nullptr;
    places[place_].taken = false;
  }
  ::munmap(base_, size_t(bytes_));
}

void MappedFile::read(int64_t begin, int64_t count, void* out) const {
  const FileDescriptor file(path_, O_RDONLY | O_NONBLOCK);
  VMOBA_CHECK_INPUT(file.get() >= 0, "expected '{}', found: {}", path_, std::strerror(errno));
  for (int64_t done = 0; done < count;) {
    const ssize_t got = ::pread(file.get(), static_cast<char*>(out) + done, size_t(count - done), off_t(begin + done));
    if (got < 0 && errno == EINTR) continue;
    VMOBA_CHECK_INPUT(
        got > 0, "expected {} bytes at byte {} of '{}', found {}", count, begin, path_,
        got < 0 ? std::string(std::strerror(errno)) : fmt::format("only {}: the file was cut short", done));
    done += got;
  }
}

void MappedFile::release(int64_t begin, int64_t end) const {
  static const uintptr_t page = uintptr_t(::sysconf(_SC_PAGESIZE));
  const uintptr_t data = reinterpret_cast<uintptr_t>(base_);
  const uintptr_t first = (data + uintptr_t(begin)) / page * page, last = data + uintptr_t(end);
  // Pages shared with neighbours may go too: the mapping is only read. Failure costs memory, nothing else.
  if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

void guard_mapped_files() {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace vmoba
