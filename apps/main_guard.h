// The one place that catches: turns exceptions into a logged message and an exit code.
//   0 done, 1 runtime error, 2 usage, configuration or input error, 75 saved and left after a signal.
#pragma once
#include <c10/util/Exception.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/cpu_numerics.h"
#include "core/log.h"

namespace vmoba::apps {

// Parses with `app`, then runs `body`.
inline int guarded_main(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  make_products_repeatable();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  try {
    return body();
  } catch (const Error& e) {
    log_error("{}", e.what());
    return e.kind() == ErrorKind::kInput ? 2 : 1;
  } catch (const c10::Error& e) {
    log_error("tensor operation failed: {}", e.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    log_error("out of memory: expected to fit; lower train.micro_batch, data.frames or data.height x data.width");
  } catch (const std::exception& e) {
    log_error("unexpected failure: {}", e.what());
  }
  return 1;
}

// Runs every check and throws one Error(kInput) with all that they refuse, so that it can be mended in one go.
inline void check_all(const std::vector<std::function<void()>>& checks) {
  std::vector<std::string> refusals;
  for (const auto& check : checks) {
    try {
      check();
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::kInput) throw;
      refusals.push_back(e.what());
    }
  }
  if (!refusals.empty()) throw_input("{}", fmt::join(refusals, "\n"));
}

// `--config FILE key.sub=value...`, shared by the programs that read a configuration.
struct ConfigArguments {
  std::string path;
  std::vector<std::string> overrides;

  void add_to(CLI::App& app) {
    app.add_option("--config", path, "YAML configuration (docs/config.md)");
    app.add_option("overrides", overrides, "key.sub=value: replaces a value of the configuration");
  }
};

}  // namespace vmoba::apps
