#include "config/run_config.h"

namespace vmoba {

void RunConfig::visit(ConfigVisitor& v) {
  v.field("dir", dir, "Folder of the run: checkpoints, metrics, samples, resolved configuration.");
  v.field("device", device, "Where to compute; `auto` takes a CUDA GPU where one is present.",
          one_of({"auto", "cpu", "cuda"}));
  v.field("log_level", log_level, "Least severity that is printed.", one_of({"debug", "info", "warning", "error"}));
  v.field("deterministic", deterministic,
          "On a GPU: the same bytes in every run and after every resume, at a price (VMoBA's backward takes up to 1.35 "
          "times as long). A CPU always repeats its bytes.");
  v.field("gpu_memory_gib", gpu_memory_gib,
          "GiB of the GPU's memory that training takes at most, to try a run on a larger card or to share one; 0: all.",
          at_least(0));
  v.field("threads", threads, "CPU threads of tensor operations; 0 takes every core.", between(0, 1024));
  v.field(
      "profile_step", profile_step,
      "Records what CPU and GPU do in this step (1-based) into `<run.dir>/profile-<step>-rank<rank>.json`, a Chrome "
      "trace; 0 records nothing. Take one that is not the first: there memory and kernels are set up.",
      at_least(0));
  v.field("grace_s", grace_s,
          "Seconds from a stop signal to the end of the run. Where the step would take more than half of them, it is "
          "given up and the state before it is saved.",
          between(1, 86400));
  v.field("save_before", save_before,
          "Time limit of the job: `grace_s` before it the run saves and leaves as after a signal. A duration since the "
          "program's start (`3h50m`, `45m`, `7200s`), or `slurm` for the end that Slurm gives the job; empty: none.");
}

const Choices<Gather>& choices_of(Gather) {
  static const Choices<Gather> table("parallel.gather",
                                     {{Gather::kAuto, "auto"}, {Gather::kAgain, "again"}, {Gather::kOnce, "once"}});
  return table;
}

void ParallelConfig::visit(ConfigVisitor& v) {
  v.field("data", data,
          "Copies of the training state, on shard x sequence ranks each; 0 fills in what the number of ranks leaves.",
          at_least(0));
  v.field("shard", shard,
          "Ranks that hold a copy of the training state together (parameters, gradients, optimiser, average), each a "
          "part, and take samples of their own. The ranks of `sequence` hold parts as well.",
          at_least(1));
  v.field("sequence", sequence,
          "Ranks that compute each sample together (Ulysses): its tokens are split, around self attention its heads; a "
          "divisor of model.heads.",
          at_least(1));
  v.field("gather", gather,
          "Where ranks hold the weights together: `again` gathers a block's for forward and again where backward "
          "computes it again, the least memory; `once` keeps what a step has gathered until its backward has ended, "
          "the whole model in compute_dtype on each rank; `auto` is `once` on GPUs where that takes at most half of "
          "the memory that the second step leaves free and what backward may keep fits beside it.");
  v.field("timeout_s", timeout_s,
          "Seconds that a rank may keep the others waiting, or be silent, before the whole job ends.",
          between(1, 86400));
  v.field("start_timeout_s", start_timeout_s,
          "The same before the first step, while ranks plan clips, load weights and connect.", between(1, 86400));
  v.field("report_every", report_every, "Steps between reports of the slowest rank; 0: none.", at_least(0));
}

}  // namespace vmoba
