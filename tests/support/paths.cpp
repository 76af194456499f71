#include "support/paths.h"

namespace vmoba::test {

const std::string& source_dir() {
  static const std::string path = VMOBA_SOURCE_DIR;
  return path;
}

const std::string& fixtures() {
  static const std::string path = source_dir() + "/tests/fixtures";
  return path;
}

const std::string& bin_dir() {
  static const std::string path = VMOBA_BIN_DIR;
  return path;
}

const std::string& python() {
  static const std::string path = source_dir() + "/.venv-tests/bin/python";
  return path;
}

}  // namespace vmoba::test
