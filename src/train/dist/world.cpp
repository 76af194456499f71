#include "train/dist/world.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string_view>
#include <thread>

#include "core/check.h"
#include "core/log.h"
#include "train/dist/mpi_communicator.h"
#include "train/dist/mpi_engine.h"
#include "train/dist/mpi_library.h"
#include "train/signals.h"

namespace vmoba::train::dist {
namespace {

constexpr double kDefaultTimeoutSeconds = 45;
constexpr double kLeaveSeconds = 3600;
constexpr int64_t kFirstWordSeconds = 10;

int64_t start_limit_s() {
  constexpr const char* kName = "VMOBA_START_TIMEOUT_S";
  constexpr int64_t kDefault_s = 1800;
  const char* const given = std::getenv(kName);
  if (given == nullptr || *given == '\0') return kDefault_s;
  const std::string_view text(given);
  int64_t out = 0;
  const auto [end, error] = std::from_chars(text.begin(), text.end(), out);
  VMOBA_CHECK_INPUT(error == std::errc() && end == text.end() && out > 0,
                    "{}: expected seconds, found '{}'; unset it or set it to a whole number above 0", kName, text);
  return out;
}

// While MPI_Init waits for ranks that have not come: says so, and ends the process where they never come. What watches
// later (MpiEngine) and the configuration do not exist yet, so that the environment has the limit.
class StartWatch {
 public:
  explicit StartWatch(const Launch& launch) : limit_s_(start_limit_s()) {
    if (launch.size > 1) thread_ = std::thread([this, launch] { watch(launch); });
  }
  ~StartWatch() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    ended_.notify_all();
    if (thread_.joinable()) thread_.join();
  }
  StartWatch(const StartWatch&) = delete;
  StartWatch& operator=(const StartWatch&) = delete;

 private:
  void watch(const Launch& launch) {
    std::unique_lock lock(mutex_);
    int64_t waited_s = 0, pause_s = std::min(kFirstWordSeconds, limit_s_);
    while (!ended_.wait_for(lock, std::chrono::seconds(pause_s), [this] { return done_; })) {
      waited_s += pause_s;
      log_warning("rank {} of {} has waited {} s for the others to start (MPI_Init); see whether all hosts run them",
                  launch.rank, launch.size, waited_s);
      pause_s = std::min(waited_s, limit_s_ - waited_s);
      if (pause_s > 0) continue;
      log_error(
          "rank {} of {}: expected all ranks to start within {} s (VMOBA_START_TIMEOUT_S), found some that did "
          "not; look at the other hosts, or set the variable to more seconds",
          launch.rank, launch.size, limit_s_);
      ::_exit(1);
    }
  }

  const int64_t limit_s_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool done_ = false;
  std::thread thread_;  // last: it uses the others
};

std::vector<std::string> gather_hosts(int size) {
  char own[MPI_MAX_PROCESSOR_NAME] = {};
  int length = 0;
  MPI_Get_processor_name(own, &length);
  std::vector<char> all(size_t(size) * sizeof own);
  MPI_Allgather(own, sizeof own, MPI_CHAR, all.data(), sizeof own, MPI_CHAR, MPI_COMM_WORLD);
  std::vector<std::string> hosts;
  for (int r = 0; r < size; ++r) hosts.emplace_back(all.data() + size_t(r) * sizeof own);
  return hosts;
}

// A launcher may start one process, and say so, where no MPI is installed.
bool alone_without_mpi() {
  const auto ranks = launcher_number({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"});
  return ranks == 1 && !has_mpi_library();
}

}  // namespace

World::World() : launch_(detect_launch()) {
  if (launch_.under_mpi && !alone_without_mpi()) {
    open_mpi_library(launch_.size);
    join();
  } else {
    char own[256] = "localhost";
    ::gethostname(own, sizeof own - 1);
    hosts_ = {own};
    control_ = make_single_communicator();
  }
}

void World::join() {
  int provided = 0;
  {
    const StartWatch watch(launch_);
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  }
  MPI_Comm_rank(MPI_COMM_WORLD, &launch_.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &launch_.size);
  hosts_ = gather_hosts(launch_.size);
  // Not every launcher says who shares a host.
  MPI_Comm local = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, launch_.rank, MPI_INFO_NULL, &local);
  MPI_Comm_rank(local, &launch_.local_rank);
  MPI_Comm_size(local, &launch_.local_size);
  MPI_Comm_free(&local);
  set_log_rank(launch_.rank, launch_.size);
  VMOBA_CHECK(provided >= MPI_THREAD_SERIALIZED || launch_.size == 1,
              "expected an MPI library that threads may call in turn (MPI_THREAD_SERIALIZED), found level {}; use Open "
              "MPI 4 or a build of yours with threads",
              provided);
  engine_ = std::make_unique<MpiEngine>(hosts_, kDefaultTimeoutSeconds, device_watch_);
  std::vector<int> everyone(size_t(launch_.size));
  for (int r = 0; r < launch_.size; ++r) everyone[size_t(r)] = r;
  control_ = make_mpi_communicator(*engine_, everyone);
}

// After leave(0) nothing is left to do; where an exception passes by, leave() ends the job.
World::~World() = default;

std::unique_ptr<Communicator> World::make_group(const std::vector<int>& world_ranks) {
  return engine_ ? make_mpi_communicator(*engine_, world_ranks) : make_single_communicator();
}

void World::set_timeout_s(double timeout_s) {
  if (engine_) engine_->set_timeout_s(timeout_s);
}

void World::note(int64_t step, const std::string& phase) {
  step_ = step;
  if (engine_) engine_->note(step, phase);
}

double World::waited_s() const {
  return engine_ ? engine_->waited_s() : 0;
}

int World::leave(int code) {
  if (!engine_) return code;
  if (code != 0 && code != kExitStopped) {
    if (size() > 1)
      log_error("rank {} on {} failed in step {} and ends all {} ranks with exit code {}", rank(), host(rank()), step_,
                size(), code);
    engine_->abort(code);
  }
  note(step_, "leaving");
  engine_->set_patience_s(kLeaveSeconds);
  barrier(*control_);
  control_.reset();
  engine_.reset();
  MPI_Finalize();
  return code;
}

Patience::Patience(World& world, double limit_s, Of of) : world_(world), starts_(of == Of::kStart) {
  if (!world_.engine_) return;
  before_s_ = world_.engine_->patience_s();
  // The user's limit holds for all of the start.
  if (starts_ || !world_.engine_->starting()) world_.engine_->set_patience_s(std::max(before_s_, limit_s));
  if (starts_) world_.engine_->set_starting(true);
}

Patience::~Patience() {
  if (!world_.engine_) return;
  world_.engine_->set_patience_s(before_s_);
  if (starts_) world_.engine_->set_starting(false);
}

void wait_patiently(World& world) {
  const Patience patience(world);
  barrier(world.control());
}

}  // namespace vmoba::train::dist
