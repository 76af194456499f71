#include "support/stderr_capture.h"

#include <pty.h>
#include <unistd.h>

#include <cstdio>
#include <regex>
#include <stdexcept>
#include <thread>

namespace vmoba::test {
namespace {

// Descriptor 2 is `replacement` while this lives.
class Redirect {
 public:
  explicit Redirect(int replacement) {
    std::fflush(stderr);
    saved_ = ::dup(STDERR_FILENO);
    if (saved_ < 0 || ::dup2(replacement, STDERR_FILENO) < 0) throw std::runtime_error("dup2 failed");
  }
  ~Redirect() {
    std::fflush(stderr);
    ::dup2(saved_, STDERR_FILENO);
    ::close(saved_);
  }
  Redirect(const Redirect&) = delete;
  Redirect& operator=(const Redirect&) = delete;

 private:
  int saved_;
};

std::string without_colors(const std::string& text) {
  return std::regex_replace(text, std::regex("\x1b\\[[0-9;]*m"), "");
}

}  // namespace

std::string capture_stderr(const std::function<void()>& action) {
  std::FILE* file = std::tmpfile();
  if (file == nullptr) throw std::runtime_error("tmpfile failed");
  {
    const Redirect redirect(::fileno(file));
    action();
  }
  std::string text;
  std::rewind(file);
  char buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, file)) > 0;) text.append(buffer, got);
  std::fclose(file);
  return without_colors(text);
}

std::string capture_terminal(int columns, const std::function<void()>& action) {
  int main_end = -1, terminal = -1;
  winsize size{};
  size.ws_row = 24;
  size.ws_col = static_cast<unsigned short>(columns);
  if (::openpty(&main_end, &terminal, nullptr, nullptr, &size) != 0) throw std::runtime_error("openpty failed");
  std::string text;
  std::thread reader([&] {
    char buffer[4096];
    for (ssize_t got; (got = ::read(main_end, buffer, sizeof buffer)) > 0;) text.append(buffer, size_t(got));
  });
  {
    const Redirect redirect(terminal);
    action();
  }
  ::close(terminal);  // the last one: the reader's read() ends with EIO
  reader.join();
  ::close(main_end);
  return without_colors(text);
}

}  // namespace vmoba::test
