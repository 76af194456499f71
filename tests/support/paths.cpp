#include "support/paths.h"

namespace vmoba::test {

std::string source_dir() {
  return VMOBA_SOURCE_DIR;
}
std::string fixtures() {
  return source_dir() + "/tests/fixtures";
}
std::string bin_dir() {
  return VMOBA_BIN_DIR;
}
std::string python() {
  return source_dir() + "/.venv-tests/bin/python";
}

}  // namespace vmoba::test
