// What every program begins and ends with: the one place that catches, turns exceptions into a logged message and an
// exit code.
//   0 done, 1 runtime error, 2 usage, configuration or input error, 75 saved and left after a signal.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/log.h"

namespace vmoba::apps {

// Prepares the process, parses with `app`, to which it adds --version, then runs `body`.
//
// Preparing: threads of OpenMP sleep while they wait (they collapse on a busy machine where they spin), which the
// library reads before main(), so that the program starts itself again with OMP_WAIT_POLICY=passive unless the user set
// that or GOMP_SPINCOUNT; products on the CPU are repeatable; a closed pipe and a file-size limit are errors of the
// call that meets them, and a mapped file cut short is a message (core/mapped_file.h), instead of a silent end by
// signal.
int guarded_main(CLI::App& app, int argc, char** argv, const std::function<int()>& body);

// "vmoba 0.1.0 (commit 9f1d1e3), CUDA 13.0.88, libtorch 2.11.0"
std::string version_text();

// Runs every check; all that they refuse as Error(kInput), one a line, so that it can be mended in one go, or "".
std::string refusals_of(const std::vector<std::function<void()>>& checks);

// Of options: a whole number of 64 bits. CLI11 takes the nearest one in place of a greater.
CLI::Validator whole_number();

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
