#include "core/file.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "core/check.h"
#include "support/catch.h"
#include "support/file_size_limit.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba;
using test::contains;
using test::error_of;
namespace fs = std::filesystem;

namespace {

size_t entries(const std::string& folder) {
  return size_t(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

}  // namespace

TEST_CASE("a file is written whole and replaces the old one") {
  const test::TemporaryFolder temp;
  const std::string path = temp.path() + "/file";
  const std::string bytes = std::string("\0binary\n\xff", 9) + std::string(1 << 20, 'x');
  write_file_atomically(path, "old");
  CHECK(read_file(path, 10, "a test file") == "old");
  write_file_atomically(path, bytes);
  CHECK(read_file(path, 2 << 20, "a test file") == bytes);
  write_file_atomically(path, "");
  CHECK(read_file(path, 0, "a test file").empty());
  CHECK(entries(temp.path()) == 1);  // no temporary file is left
}

TEST_CASE("a relative name without a folder works") {
  const test::TemporaryFolder temp;
  const fs::path before = fs::current_path();
  fs::current_path(temp.path());
  write_file_atomically("plain", "x");
  CHECK(read_file("plain", 10, "a test file") == "x");
  fs::current_path(before);
}

TEST_CASE("where the disk is full the old file stays and nothing else is left") {
  const test::TemporaryFolder temp;
  const std::string path = temp.path() + "/file";
  write_file_atomically(path, "old");
  std::string message;
  {
    const test::FileSizeLimit limit(1000);
    message = error_of(ErrorKind::kRuntime, [&] { write_file_atomically(path, std::string(5000, 'x')); });
  }
  INFO(message);
  CHECK(contains(message, path));
  CHECK(contains(message, "File too large"));
  CHECK(read_file(path, 10, "a test file") == "old");
  CHECK(entries(temp.path()) == 1);
}

TEST_CASE("on a really full file system too") {
  const test::TemporaryFolder temp;
  if (::mount("tmpfs", temp.path().c_str(), "tmpfs", 0, "size=64k") != 0) {
    WARN("no right to mount a tmpfs (" << std::strerror(errno) << "); the file size limit above stands in for it");
    return;
  }
  std::string message;
  {
    const std::string path = temp.path() + "/file";
    write_file_atomically(path, "old");
    message = error_of(ErrorKind::kRuntime, [&] { write_file_atomically(path, std::string(1 << 20, 'x')); });
    CHECK(read_file(path, 10, "a test file") == "old");
    CHECK(entries(temp.path()) == 1);
    write_file_atomically(path, "new");  // the failed write gave its space back
    CHECK(read_file(path, 10, "a test file") == "new");
  }
  REQUIRE(::umount(temp.path().c_str()) == 0);
  INFO(message);
  CHECK(contains(message, "No space left on device"));
  CHECK(contains(message, "free disk space"));
}

TEST_CASE("a folder that is missing, is a file or may not be written is an error that names it") {
  const test::TemporaryFolder temp;
  write_file_atomically(temp.path() + "/file", "x");
  CHECK(
      contains(error_of(ErrorKind::kRuntime, [&] { write_file_atomically(temp.path() + "/none/f", "x"); }), "none/f"));
  CHECK(
      contains(error_of(ErrorKind::kRuntime, [&] { write_file_atomically(temp.path() + "/file/f", "x"); }), "file/f"));
  if (::geteuid() != 0) {  // root may write anywhere
    fs::permissions(temp.path(), fs::perms::owner_read | fs::perms::owner_exec);
    CHECK(contains(error_of(ErrorKind::kRuntime, [&] { write_file_atomically(temp.path() + "/f", "x"); }),
                   "Permission denied"));
    fs::permissions(temp.path(), fs::perms::owner_all);
  }
  CHECK(contains(error_of(ErrorKind::kRuntime, [&] { write_file_atomically("/proc/self/vmoba", "x"); }), "/proc/self"));
  // The target is a folder: renaming fails, the temporary file goes.
  fs::create_directory(temp.path() + "/target");
  CHECK(error_of(ErrorKind::kRuntime, [&] { write_file_atomically(temp.path() + "/target", "x"); }) != "");
  CHECK(entries(temp.path()) == 2);
}

TEST_CASE("reading refuses what is missing, too large or no file") {
  const test::TemporaryFolder temp;
  const std::string path = temp.path() + "/file";
  write_file_atomically(path, "12345");
  CHECK(read_file(path, 5, "a manifest") == "12345");
  const std::string large = error_of(ErrorKind::kInput, [&] { read_file(path, 4, "a manifest"); });
  CHECK(large == "expected a manifest of at most 4 bytes at '" + path + "', found 5");
  CHECK(contains(error_of(ErrorKind::kInput, [&] { read_file(path + "x", 4, "a manifest"); }), "No such file"));
  CHECK(contains(error_of(ErrorKind::kInput, [&] { read_file(temp.path(), 4, "a manifest"); }), "no regular file"));
  CHECK(contains(error_of(ErrorKind::kInput, [&] { read_file("/dev/zero", 4, "a manifest"); }), "no regular file"));
  // A sparse file of 1 TiB must be refused by its size, before any memory is taken.
  const int fd = ::open((temp.path() + "/sparse").c_str(), O_WRONLY | O_CREAT, 0644);
  const bool made = ::ftruncate(fd, off_t{1} << 40) == 0;
  ::close(fd);
  if (made)
    CHECK(contains(error_of(ErrorKind::kInput, [&] { read_file(temp.path() + "/sparse", 1000, "a manifest"); }),
                   "1099511627776"));
}

TEST_CASE("a FIFO without a writer is refused and does not hang") {
  const test::TemporaryFolder temp;
  const std::string path = temp.path() + "/fifo";
  REQUIRE(::mkfifo(path.c_str(), 0644) == 0);
  CHECK(contains(error_of(ErrorKind::kInput, [&] { read_file(path, 10, "a manifest"); }), "no regular file"));
}

TEST_CASE("syncing a path that is not there is an error") {
  const test::TemporaryFolder temp;
  sync_path(temp.path());
  CHECK(contains(error_of(ErrorKind::kRuntime, [&] { sync_path(temp.path() + "/none"); }), "none"));
}
