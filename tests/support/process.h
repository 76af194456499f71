// Runs a program as a user would and keeps what it printed. POSIX only.
#pragma once
#include <sys/types.h>

#include <string>
#include <vector>

namespace vmoba::test {

struct ProcessResult {
  int exit_code = -1;  // 128 + signal where a signal ended it
  std::string output;  // stdout and stderr together
};

// Waits for the end. `environment`: NAME=value added to this process's.
ProcessResult run_process(const std::vector<std::string>& arguments, const std::vector<std::string>& environment = {});

// Starts without waiting; output goes to `log_path`.
pid_t start_process(const std::vector<std::string>& arguments, const std::string& log_path,
                    const std::vector<std::string>& environment = {});
// Waits for the end; returns the exit code as above.
int wait_process(pid_t pid);

// A folder of its own under the system's temporary folder, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string read_text(const std::string& path);

}  // namespace vmoba::test
