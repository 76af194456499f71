// vmoba-bench: is the attention of this build right on this machine, and how fast is it, alone and in a training step?
// How fast do the ranks of a job exchange tensors? (docs/attention.md, docs/benchmarks.md, docs/distributed.md). Needs
// no FFmpeg; `comm` and `step` join the ranks of a launch.
#include <ATen/Context.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/bench/attention_bench.h"
#include "apps/bench/attention_sweep.h"
#include "apps/bench/comm_bench.h"
#include "apps/bench/golden_check.h"
#include "apps/bench/paper_comparison.h"
#include "apps/bench/step_bench.h"
#include "apps/main_guard.h"
#include "apps/published_sizes.h"
#include "attention/kernels/kernels.h"
#include "attention/method.h"
#include "attention/vmoba/config.h"
#include "config/root_config.h"
#include "core/file.h"
#include "model/architecture.h"
#include "model/common/dtype.h"

namespace {

using namespace vmoba;

// Kernels of an older family than the GPU's own, which it can run too.
void add_family(CLI::App& command) {
  command
      .add_option_function<int>("--kernel-family", kernels::set_default_family,
                                "Attention kernels: 90 (wgmma) | 80 (mma.sync), which later GPUs run too")
      ->check(CLI::IsMember({80, 90}));
}

struct CheckArguments {
  std::string folder, dtype = "fp32", device = "cpu", json;
  std::vector<std::string> cases;  // of the case table
  attention::Implementation backend = attention::Implementation::kAuto;
};

// An option that takes one of the words of an enum (core/choice.h).
template <typename Enum>
void add_choice(CLI::App& command, const std::string& name, Enum& value, const std::string& doc) {
  command
      .add_option_function<std::string>(
          name, [&value](const std::string& word) { value = choice_value<Enum>(word); }, doc)
      ->check(CLI::IsMember(choice_words<Enum>()));
}

at::Device parse_device(const std::string& name) {
  VMOBA_CHECK_INPUT(name == "cpu" || at::globalContext().hasCUDA(),
                    "--device: expected a CUDA device for cuda, found none; use --device cpu");
  return at::Device(name);
}

// NaN has no number in JSON and becomes null.
nlohmann::json to_json(const std::vector<bench::GoldenResult>& results, const CheckArguments& a, int64_t failed) {
  nlohmann::json files = nlohmann::json::array();
  for (const bench::GoldenResult& r : results)
    files.push_back({{"file", r.name},
                     {"passed", r.passed()},
                     {"mask_differences", r.mask_differences},
                     {"error", r.error},
                     {"limit", r.limit}});
  return {{"folder", a.folder}, {"backend", choice_word(a.backend)},
          {"dtype", a.dtype},   {"device", a.device},
          {"failed", failed},   {"files", files}};
}

std::vector<bench::GoldenResult> run_checks(const CheckArguments& a) {
  const at::Device device = parse_device(a.device);
  const at::ScalarType dtype = model::scalar_type(a.dtype);
  std::vector<bench::GoldenResult> results;
  if (!a.folder.empty())
    for (const std::string& path : bench::golden_files(a.folder))
      results.push_back(bench::check_golden(bench::load_golden(path), a.backend, dtype, device));
  for (const std::string& name : a.cases) {
    if (name != "all") {
      results.push_back(bench::check_case(bench::find_case(name), a.backend, dtype, device));
      continue;
    }
    for (const auto* cases :
         {&bench::small_cases(), &bench::tile_cases(), &bench::remainder_cases(), &bench::share_cases()})
      for (const bench::AttentionCase& c : *cases) results.push_back(bench::check_case(c, a.backend, dtype, device));
  }
  return results;
}

int check(const CheckArguments& a) {
  VMOBA_CHECK_INPUT(!a.folder.empty() || !a.cases.empty(),
                    "check: expected a folder of golden vectors or --case, found neither");
  const std::vector<bench::GoldenResult> results = run_checks(a);
  int64_t failed = 0;
  const char* columns[] = {"out", "lse", "dq", "dk", "dv", "dbeta"};
  std::cout << fmt::format("{:<68} {:>6}", "file or case", "mask");
  for (const char* column : columns) std::cout << fmt::format(" {:>9}", column);
  std::cout << "\n";
  for (const bench::GoldenResult& r : results) {
    std::cout << fmt::format("{:<68} {:>6}", r.name, r.mask_differences);
    for (const char* column : columns)
      std::cout << (r.error.contains(column) ? fmt::format(" {:>9.1e}", r.error.at(column))
                                             : fmt::format(" {:>9}", "-"));
    std::cout << (r.passed() ? "\n" : "  FAILED\n");
    failed += r.passed() ? 0 : 1;
  }
  std::cout << fmt::format("{} of {} {} passed ({}, {}, {})\n", results.size() - size_t(failed), results.size(),
                           a.cases.empty() ? "files" : "files and cases", choice_word(a.backend), a.dtype, a.device);
  if (!a.json.empty()) write_file_atomically(a.json, to_json(results, a, failed).dump(2) + "\n");
  return failed == 0 ? 0 : 1;
}

attention::Grid parse_grid(const std::string& text) {
  attention::Grid grid;
  char end = 0;
  VMOBA_CHECK_INPUT(std::sscanf(text.c_str(), "%ldx%ldx%ld%c", &grid.t, &grid.h, &grid.w, &end) == 3 &&
                        std::min({grid.t, grid.h, grid.w}) >= 1,
                    "--grid: expected TxHxW such as 24x36x64, found '{}'", text);
  return grid;
}

struct AttentionArguments {
  bench::BenchOptions options;
  std::string grid = "24x36x64", sweep, out, json;
  bool paper = false;
};

std::vector<bench::BenchCase> run_cases(const AttentionArguments& a) {
  if (a.sweep.empty()) return bench::bench_attention(a.options);
  std::vector<bench::BenchCase> cases;
  for (const bench::BenchOptions& point : bench::sweep_points(a.options, a.sweep)) {
    const std::vector<bench::BenchCase> measured = bench::bench_attention(point);
    cases.insert(cases.end(), measured.begin(), measured.end());
  }
  const std::string prefix = a.out.empty() ? "sweep_" + a.sweep : a.out;
  write_file_atomically(prefix + ".csv", bench::cases_to_csv(cases));
  write_file_atomically(prefix + ".svg", chart_to_svg(bench::sweep_chart(cases, a.sweep)));
  return cases;
}

int attention_benchmark(AttentionArguments a) {
  a.options.grid = parse_grid(a.grid);
  a.options.attention.validate();
  VMOBA_CHECK_INPUT(!a.paper || (a.sweep.empty() && a.options.heads == 12 && a.options.head_dim == 128),
                    "--paper compares a Wan2.1-1.3B layer: expected 12 heads of 128 and no --sweep, found {} of {}{}",
                    a.options.heads, a.options.head_dim, a.sweep.empty() ? "" : " and --sweep " + a.sweep);
  const attention::SelectMode select = a.options.attention.part<attention::VmobaConfig>().select;
  VMOBA_CHECK_INPUT(select == attention::SelectMode::kThreshold || (a.options.density == 0 && a.sweep != "density"),
                    "--density and --sweep density search tau: expected --select threshold, found {}; give --*-topk",
                    choice_word(select));
  const std::vector<bench::BenchCase> cases = run_cases(a);
  bench::print_bench(cases);
  if (a.paper)
    std::cout << bench::paper_table(cases, bench::measure_layer_rest(a.options.grid.tokens(), a.options.repeats));
  if (!a.json.empty()) write_file_atomically(a.json, bench::bench_to_json(cases));
  return 0;
}

// What VMoBA computes: the same options for every timing.
void add_vmoba_options(CLI::App& command, attention::AttentionConfig& config) {
  attention::VmobaConfig& vmoba = config.part<attention::VmobaConfig>();
  add_choice(command, "--select", vmoba.select, "How blocks are selected");
  command.add_option("--tau", vmoba.tau, "Selection threshold");
  command.add_option("--temporal-topk", vmoba.temporal_topk,
                     "Blocks per token in temporal layers, the own one counted");
  command.add_option("--spatial-topk", vmoba.spatial_topk, "The same in spatial layers");
  command.add_option("--spatiotemporal-topk", vmoba.spatiotemporal_topk, "The same in spatiotemporal layers");
  add_choice(command, "--pool", vmoba.pool, "Gates that compete with each other");
  add_choice(command, "--score", vmoba.score, "What pools compare");
  command.add_option("--gate-block", vmoba.gate_block, "Patches per mean of a share: t h w")->expected(3);
  command.add_option("--least-blocks", vmoba.least_blocks, "Blocks per token or tile at least (head_global, overall)");
  add_choice(command, "--query-tile", vmoba.query_tile, "Queries that choose blocks together");
  add_choice(command, "--remainder", vmoba.remainder, "What stands for the keys that a query does not attend");
  command.add_option("--temporal-chunk", vmoba.temporal_chunk, "ct");
  command.add_option("--spatial-chunk", vmoba.spatial_chunk, "ch cw")->expected(2);
  command.add_option("--spatiotemporal-chunk", vmoba.spatiotemporal_chunk, "ct ch cw")->expected(3);
  add_choice(command, "--implementation", config.implementation, "Who computes VMoBA");
}

void add_attention_options(CLI::App& command, AttentionArguments& a) {
  bench::BenchOptions& o = a.options;
  add_vmoba_options(command, o.attention);
  command.add_option("--grid", a.grid, "Latent patches TxHxW");
  command.add_option("--batch", o.batch, "Samples");
  command.add_option("--heads", o.heads, "Heads");
  command.add_option("--head-dim", o.head_dim, "Size of a head");
  command.add_option("--text-tokens", o.text_tokens, "Text tokens behind the video, of all samples or of each");
  command.add_option("--density", o.density, "Search tau for this density instead");
  command.add_option("--partitions", o.partitions, "Which partitions")
      ->check(CLI::IsMember({"temporal", "spatial", "spatiotemporal"}));
  command.add_option("--case", o.named_case,
                     "A case of the case table in place of --grid, sizes, partitions and VMoBA's options");
  command
      .add_option("--inputs", o.inputs,
                  "random | smooth (positional component, skewed lists) | a file of vmoba-analyze --save-qkv")
      ->check(CLI::IsMember({"random", "smooth"}) | CLI::ExistingFile);
  command.add_option("--repeats", o.repeats, "Timed rounds after warm-up")->check(CLI::PositiveNumber);
  command.add_option("--warmup", o.warmup, "Rounds before them")->check(CLI::NonNegativeNumber);
  command.add_flag("--check,!--no-check", o.check, "Compare with fp32 attention on a subsample (default)");
  command.add_option("--sweep", a.sweep, "Measure a curve over tokens | density | blocks")
      ->check(CLI::IsMember({"tokens", "density", "blocks"}));
  command.add_option("--out", a.out, "Sweep: write this name with .csv and .svg (sweep_<axis>)");
  command.add_flag("--paper", a.paper, "Also compare FLOPs and latency of a layer with the VMoBA paper");
  command.add_option("--json", a.json, "Also write the results to this file");
}

struct StepArguments {
  bench::StepOptions options;
  std::string model = "1.3b", grid = "24x36x64", json;
  std::vector<std::string> overrides;
};

int step_benchmark(StepArguments a, train::dist::World& world) {
  bench::StepOptions& o = a.options;
  RootConfig& config = o.config;
  const int64_t layers = config.model.layers;
  apps::set_published_sizes(a.model, config.model);
  if (config.model.architecture != "wan") config.text.max_tokens = 256;
  if (layers > 0) config.model.layers = layers;
  o.grid = parse_grid(a.grid);
  config.train.micro_batch = config.train.global_batch;
  load_config("", a.overrides, [&](ConfigVisitor& v) { config.visit(v); });
  if (config.lora.targets.empty()) config.lora.targets = model::architecture_of(config.model).lora.default_targets;
  config.model.validate();
  config.attention.validate();
  validate_training(config);
  const std::vector<bench::StepCase> cases = bench::bench_steps(o, world);
  if (world.rank() != 0) return 0;
  bench::print_steps(cases);
  if (!a.json.empty()) write_file_atomically(a.json, bench::steps_to_json(cases));
  return 0;
}

std::vector<std::string> method_names() {
  std::vector<std::string> out;
  for (const attention::Method* method : attention::methods()) out.emplace_back(method->name);
  return out;
}

void add_step_options(CLI::App& command, StepArguments& a) {
  bench::StepOptions& o = a.options;
  model::ModelConfig& model = o.config.model;
  model.layers = 0;  // those of --model
  command.add_option("overrides", a.overrides,
                     "Keys of a configuration: train.optimizer.type=muon model.weights_dtype=bf16 parallel.shard=2");
  command.add_option("--model", a.model, "Sizes of Wan: 1.3b | 5b | 14b, or of hunyuan_video | hunyuan_video_15")
      ->check(CLI::IsMember(apps::published_names()));
  command.add_option("--layers", model.layers, "Layers, other than --model has")->check(CLI::PositiveNumber);
  command.add_option("--grid", a.grid, "Latent patches TxHxW");
  command.add_option("--batch", o.config.train.global_batch, "Samples of a step, in one pass")
      ->check(CLI::PositiveNumber);
  command.add_option("--backends", o.backends, "Which attention, in this order")->check(CLI::IsMember(method_names()));
  add_vmoba_options(command, o.config.attention);
  add_choice(command, "--recompute", model.recompute, "What backward computes again, as model.recompute");
  command.add_option("--pointwise", model.pointwise, "Norms, rotation and residuals, as model.pointwise")
      ->check(CLI::IsMember({"auto", "reference"}));
  command.add_option("--repeats", o.repeats, "Timed steps after warm-up")->check(CLI::PositiveNumber);
  command.add_option("--warmup", o.warmup, "Steps before them")->check(CLI::NonNegativeNumber);
  command.add_option("--json", a.json, "Also write the results to this file");
  command.add_option("--profile", o.profile,
                     "Also write a Chrome trace of one step of the last backend to this file, of the first rank");
}

struct CommArguments {
  bench::CommOptions options;
  std::string json;
};

int comm_benchmark(const CommArguments& a, train::dist::World& world) {
  const bench::CommResult result = bench::bench_comm(world, a.options);
  if (world.rank() != 0) return 0;
  std::cout << bench::comm_table(result);
  if (!a.json.empty()) write_file_atomically(a.json, bench::comm_to_json(result));
  return 0;
}

void add_comm_options(CLI::App& command, CommArguments& a) {
  bench::CommOptions& o = a.options;
  command.add_option("--device", o.device, "auto | cpu | cuda")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command.add_option("--least-bytes", o.least_bytes, "Smallest tensor (4096); each next is four times as large")
      ->check(CLI::PositiveNumber);
  command.add_option("--most-bytes", o.most_bytes, "Largest tensor (67108864)")->check(CLI::PositiveNumber);
  command.add_option("--repeats", o.repeats, "Timed rounds after warm-up")->check(CLI::PositiveNumber);
  command.add_option("--warmup", o.warmup, "Rounds before them")->check(CLI::NonNegativeNumber);
  command.add_option("--json", a.json, "Also write the results to this file, for vmoba-train --dry-run --comm");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Checks and times the attention of this build, and training steps."};
  app.require_subcommand(1);
  CheckArguments a;
  CLI::App* command =
      app.add_subcommand("check", "Runs golden vectors of a folder, or cases by name, through an implementation");
  command->add_option("folder", a.folder, "Folder of .safetensors vectors");
  command->add_option("--case", a.cases, "Cases of the case table against plain attention, or all (of the small ones)")
      ->allow_extra_args(false);
  add_choice(*command, "--backend", a.backend, "Who computes");
  command->add_option("--dtype", a.dtype, "Type of q, k, v")->check(CLI::IsMember({"fp32", "fp64", "bf16"}));
  command->add_option("--device", a.device, "Where to compute")->check(CLI::IsMember({"cpu", "cuda"}));
  command->add_option("--json", a.json, "Also write the results to this file");
  add_family(*command);
  AttentionArguments times;
  CLI::App* timing = app.add_subcommand("attention", "Times VMoBA beside cuDNN full attention on a GPU");
  add_attention_options(*timing, times);
  add_family(*timing);
  StepArguments steps;
  CLI::App* step = app.add_subcommand(
      "step", "Times training steps with full attention and VMoBA, on a GPU or the ranks of mpirun or srun");
  add_step_options(*step, steps);
  CommArguments links;
  CLI::App* comm = app.add_subcommand("comm", "Times exchanges between the ranks of mpirun or srun, on CPUs or GPUs");
  add_comm_options(*comm, links);
  std::optional<train::dist::World> world;
  const int code = apps::guarded_main(app, argc, argv, [&] {
    if (comm->parsed()) return comm_benchmark(links, world.emplace());
    if (step->parsed()) return step_benchmark(steps, world.emplace());
    return timing->parsed() ? attention_benchmark(times) : check(a);
  });
  return world ? world->leave(code) : code;
}
