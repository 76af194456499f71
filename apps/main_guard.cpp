#include "apps/main_guard.h"

#include <c10/util/Exception.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <exception>

#include "core/cpu_numerics.h"
#include "core/mapped_file.h"

namespace vmoba::apps {
namespace {

// Returns where there is nothing to change, or the restart failed: then it is slower on a busy machine, no worse.
void wait_passively(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  char self[PATH_MAX] = {};
  if (::readlink("/proc/self/exe", self, sizeof self - 1) <= 0) return;
  ::setenv("OMP_WAIT_POLICY", "passive", /*replace=*/1);
  ::execv(self, argv);
}

// A thread that throws ends the process; it should not do so without a word.
[[noreturn]] void on_terminate() {
  std::string what = "an unknown exception";
  try {
    if (const std::exception_ptr error = std::current_exception()) std::rethrow_exception(error);
  } catch (const std::exception& e) {
    what = e.what();
  } catch (...) {
  }
  log_error("unexpected end: {}", what);
  ::_exit(1);
}

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

bool is_host_memory(const std::string& what) {
  return what.find("DefaultCPUAllocator") != std::string::npos;
}

int host_memory_error() {
  log_error(
      "host memory: expected enough for this run, found none left; lower train.micro_batch, data.prefetch_clips or "
      "data.frames");
  return 1;
}

int run(const std::function<int()>& body) {
  try {
    return body();
  } catch (const Error& e) {
    log_error("{}", e.what());
    return e.kind() == ErrorKind::kInput ? 2 : 1;
  } catch (const c10::OutOfMemoryError& e) {
    log_error(
        "GPU memory: expected enough for this run, found {}; vmoba-train --dry-run says what fits and what to set: "
        "model.recompute, train.micro_batch, model.offload, train.optimizer.type, model.weights_dtype, data.frames, "
        "data.height x data.width, parallel.shard",
        first_line(e.what_without_backtrace()));
  } catch (const c10::Error& e) {
    if (is_host_memory(e.what_without_backtrace())) return host_memory_error();
    log_error("tensor operation failed: {}", e.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return host_memory_error();
  } catch (const std::exception& e) {
    log_error("unexpected failure: {}", e.what());
  }
  return 1;
}

// Other tools write keys of the configuration as options.
void explain_dashes(const CLI::App& app) {
  if (app.get_option_no_throw("overrides") == nullptr) return;
  for (const std::string& word : app.remaining())
    if (word.starts_with("--") && word.find_first_of("=._") != std::string::npos)
      log_error("expected a key of the configuration without dashes, key.sub=value, found '{}'; write '{}'", word,
                word.find('=') == std::string::npos ? word.substr(2) + "=VALUE" : word.substr(2));
}

}  // namespace

std::string version_text() {
  return fmt::format("vmoba {} (commit {}), CUDA {}, libtorch {}", VMOBA_VERSION, VMOBA_COMMIT, VMOBA_CUDA,
                     TORCH_VERSION);
}

int guarded_main(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  wait_passively(argv);
  std::set_terminate(on_terminate);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
  guard_mapped_files();
  make_products_repeatable();
  app.set_version_flag("--version", version_text());
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (app.exit(e) == 0) return 0;
    explain_dashes(app);
    return 2;
  }
  return run(body);
}

CLI::Validator whole_number() {
  return {[](std::string& text) -> std::string {
            int64_t number = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
            if (error == std::errc() && end == text.data() + text.size()) return "";
            return fmt::format("expected a whole number of at most 64 bits, found '{}'", text);
          },
          "INT", "whole_number"};
}

std::string refusals_of(const std::vector<std::function<void()>>& checks) {
  std::vector<std::string> refusals;
  for (const auto& check : checks) {
    try {
      check();
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::kInput) throw;
      // Two checks may meet the same missing file.
      if (std::find(refusals.begin(), refusals.end(), e.what()) == refusals.end()) refusals.push_back(e.what());
    }
  }
  return fmt::format("{}", fmt::join(refusals, "\n"));
}

}  // namespace vmoba::apps
