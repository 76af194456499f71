#include "core/hash.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/check.h"
#include "core/file_kind.h"

namespace vmoba {
namespace {

constexpr size_t kFileChunkBytes = 1 << 20;

}  // namespace

ContentHash::ContentHash(uint64_t seed) : state_(XXH64_createState()) {
  VMOBA_CHECK(state_ && XXH64_reset(state_.get(), seed) == XXH_OK, "expected memory for a hash, found none");
}

void ContentHash::Free::operator()(XXH64_state_s* state) const {
  XXH64_freeState(state);
}

void ContentHash::add(const void* bytes, size_t count) {
  if (count > 0) XXH64_update(state_.get(), bytes, count);
}

uint64_t ContentHash::value() const {
  return XXH64_digest(state_.get());
}

uint64_t content_hash(std::string_view bytes) {
  return XXH64(bytes.data(), bytes.size(), 0);
}

uint64_t file_hash(const std::string& path) {
  struct stat info {};
  VMOBA_CHECK_INPUT(::stat(path.c_str(), &info) != 0 || S_ISREG(info.st_mode),
                    "expected a readable file at '{}', found {}", path, what_is_this(path));
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  VMOBA_CHECK_INPUT(file != nullptr, "expected a readable file at '{}', found: {}", path, std::strerror(errno));
  std::vector<char> chunk(kFileChunkBytes);
  ContentHash hash;
  size_t count = 0;
  while ((count = std::fread(chunk.data(), 1, chunk.size(), file.get())) > 0) hash.add(chunk.data(), count);
  VMOBA_CHECK_INPUT(std::ferror(file.get()) == 0, "expected to read '{}', found: {}", path, std::strerror(errno));
  return hash.value();
}

std::string hash_text(uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

}  // namespace vmoba
