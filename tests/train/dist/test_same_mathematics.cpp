// Training in fp64 as several ranks against the same samples on one: after 20 steps losses and weights agree to 1e-10,
// for every way to share the work that the number of ranks allows.
#include <ATen/ATen.h>

#include <optional>

#include "attention/attention.h"
#include "attention/vmoba/config.h"
#include "core/random.h"
#include "model/dit.h"
#include "model/hunyuan/hunyuan_config.h"
#include "model/wan/wan_config.h"
#include "support/catch.h"
#include "support/messages.h"
#include "train/dist/dist_world.h"
#include "train/dist/gradient_buckets.h"
#include "train/dist/mesh.h"
#include "train/dist/nccl_communicator.h"
#include "train/dist/rank_device.h"
#include "train/dist/sharded_weights.h"
#include "train/dist/step_exchange.h"
#include "train/dist/ulysses.h"
#include "train/flow_matching.h"
#include "train/optim/adamw.h"
#include "train/optim/gradients.h"

using namespace vmoba;
using namespace vmoba::train;
using namespace vmoba::train::dist;

namespace {

constexpr int64_t kSteps = 20;
constexpr int64_t kLatents[3] = {3, 6, 10};  // 45 tokens, which 2 and 4 ranks do not divide; ragged blocks

RootConfig small_config(bool checkpointing, int64_t batch) {
  RootConfig config;
  config.model.layers = 3;
  config.model.heads = 12;
  config.model.head_dim = 6;
  config.model.own<model::WanConfig>().ffn_dim = 40;
  config.model.in_channels = config.model.out_channels = 4;
  config.model.text_dim = 8;
  config.model.own<model::WanConfig>().freq_dim = 16;
  config.model.recompute = checkpointing ? model::Recompute::kBlock : model::Recompute::kNone;
  auto& vmoba = config.attention.part<attention::VmobaConfig>();
  vmoba.temporal_chunk = 1;
  vmoba.spatial_chunk = {2, 2};
  vmoba.spatiotemporal_chunk = {2, 2, 2};
  vmoba.tau = 0.5;
  config.train.global_batch = batch;
  config.train.optimizer.weight_decay = 0.1;
  return config;
}

// Video and text in one attention, blocks of two kinds. `given`: the first latent frame is given.
RootConfig small_hunyuan(bool checkpointing, int64_t batch, bool given) {
  RootConfig config = small_config(checkpointing, batch);
  config.model.architecture = model::kHunyuan;
  config.model.layers = 1;
  auto& own = config.model.own<model::HunyuanConfig>();
  own.single_layers = 2;
  own.refiner_layers = 1;
  own.ffn_dim = 40;
  own.pooled_dim = 5;
  own.rope_axes = {2, 2, 2};
  if (!given) return config;
  config.model.task = "i2v";
  own.image_condition = "replace";
  return config;
}

// The means of what is not attended, with a learnt number for each head.
RootConfig with_learnt_beta(RootConfig config) {
  auto& vmoba = config.attention.part<attention::VmobaConfig>();
  vmoba.remainder = attention::Remainder::kOneSoftmax;
  vmoba.remainder_beta = attention::RemainderBeta::kLearnt;
  return config;
}

at::Tensor normals(const char* stream, int64_t index, at::IntArrayRef shape) {
  const at::Tensor out = at::empty(shape, at::kFloat);
  fill_normal(3, stream, uint64_t(index), out.mutable_data_ptr<float>(), out.numel());
  return out.to(at::kDouble);
}

// One rank's part in a run with everything in fp64. `shards`: null where it holds all parameters.
class Run {
 public:
  Run(const RootConfig& config, bool token_runs, at::Device device, ShardedWeights* shards = nullptr)
      : batch_(config.train.global_batch),
        config_(config),
        token_runs_(token_runs),
        device_(device),
        dit_(model::make_dit(config.model, config.attention, 5, device, shards)) {
    for (const model::Parameter& p : dit_->parameters()) {
      at::Tensor parameter = p.tensor;
      // proj_out starts at zero, which would hide what lies before it in the first step.
      const at::Tensor noise = 0.02 * normals("start", 0, p.shape()).to(device_);
      parameter.set_data(p.tensor.detach().to(at::kDouble) + (shards ? shards->keep(noise) : noise));
    }
    optimizer_ = std::make_unique<AdamW>(config.train.optimizer, dit_->parameters());
  }

  // Adds the gradients of the mean loss over the batch; returns the sample's loss.
  double backward(int64_t sample, model::SequenceParallel* sequence) {
    const at::Tensor x0 = normals("latents", sample, {1, 4, kLatents[0], kLatents[1], kLatents[2]}).to(device_);
    const at::Tensor noise = normals("noise", sample, x0.sizes()).to(device_);
    model::Conditions conditions{{normals("text", sample, {1, 3, 8}).to(device_)}};
    if (config_.model.architecture == model::kHunyuan) {
      conditions.text.length_B = at::full({1}, 1 + sample % 3, at::kLong);
      conditions.text.pooled_BP = normals("pooled", sample, {1, 5}).to(device_);
      conditions.guidance_B = at::full({1}, 6.0, at::TensorOptions(device_));
    }
    const double sigma = draw_sigma(config_.train.flow, 3, sample);
    // A timestep for each latent frame, or one for the sample.
    const at::Tensor timestep = token_runs_ ? at::tensor({0.0, 1000 * sigma, 500 * sigma}, at::kDouble).unsqueeze(0)
                                            : at::full({1}, 1000 * sigma, at::kDouble);
    model::ForwardOptions options{at::kDouble, false, model::recompute_plan(config_.model), &stats};
    options.sequence = sequence;
    const at::Tensor velocity =
        dit_->forward({(1 - sigma) * x0 + sigma * noise, timestep.to(device_), conditions}, options);
    const at::Tensor loss = (velocity - (noise - x0)).square().mean();
    (loss / double(batch_)).backward();
    return loss.item<double>();
  }
  void begin() { optimizer_->zero_grad(); }
  // `holders`: ranks that hold the parameters together, or null.
  void update(Communicator* holders = nullptr) {
    const at::Tensor norm = gradient_norm(parameters());
    optimizer_->step({3e-3, clip_factor(holders ? norm_over_parts(*holders, norm) : norm, 1.0)});
  }
  const std::vector<model::Parameter>& parameters() const { return dit_->parameters(); }

  attention::AttentionStats stats;

 private:
  int64_t batch_;
  RootConfig config_;
  bool token_runs_;
  at::Device device_;
  std::unique_ptr<model::Dit> dit_;
  std::unique_ptr<AdamW> optimizer_;
};

struct Outcome {
  std::vector<double> losses;
  std::vector<at::Tensor> weights;  // on the CPU
  std::map<std::string, std::pair<double, double>> pairs;
};

// The whole parameter of which `holders` hold parts.
at::Tensor whole(Communicator& holders, const model::Parameter& p) {
  const at::Tensor own = p.tensor.detach(), all = at::empty({holders.size() * own.numel()}, own.options());
  holders.all_gather(own, all)->wait();
  return all.narrow(0, 0, c10::multiply_integers(p.shape())).view(p.shape());
}

Outcome outcome_of(const Run& run, std::vector<double> losses, Communicator* holders = nullptr) {
  Outcome out{std::move(losses), {}, run.stats.sums().by_partition};
  for (const model::Parameter& p : run.parameters())
    out.weights.push_back((holders ? whole(*holders, p) : p.tensor.detach().clone()).cpu());
  return out;
}

Outcome train_alone(const RootConfig& config, bool token_runs, at::Device device) {
  Run run(config, token_runs, device);
  const int64_t batch = config.train.global_batch;
  std::vector<double> losses;
  for (int64_t step = 0; step < kSteps; ++step) {
    run.begin();
    double sum = 0;
    for (int64_t i = 0; i < batch; ++i) sum += run.backward(step * batch + i, nullptr);
    run.update();
    losses.push_back(sum / double(batch));
  }
  return outcome_of(run, losses);
}

// Tells every rank what came out on rank `root`; elsewhere `run` has the right shapes only.
void share_outcome(World& world, int root, Outcome& run) {
  const at::Tensor losses = at::tensor(run.losses, at::kDouble);
  world.control().broadcast(losses, root)->wait();
  run.losses.assign(losses.const_data_ptr<double>(), losses.const_data_ptr<double>() + kSteps);
  for (at::Tensor& weight : run.weights) world.control().broadcast(weight, root)->wait();
  for (const char* kind : {"temporal", "spatial", "spatiotemporal", "full"}) {
    const auto found = run.pairs.find(kind);
    const auto mine = found == run.pairs.end() ? std::pair<double, double>{} : found->second;
    const auto all = all_gather_numbers(world.control(), {mine.first, mine.second});
    if (all[size_t(2 * root + 1)] > 0) run.pairs[kind] = {all[size_t(2 * root)], all[size_t(2 * root + 1)]};
  }
}

struct Variant {
  RootConfig config;
  bool token_runs;
  Outcome alone;
};

// The runs on one process cost as much as all others together: each is made by one rank, at the same time.
void train_all_alone(World& world, std::vector<Variant>& variants, at::Device device) {
  const Patience patience(world);
  for (size_t v = 0; v < variants.size(); ++v) {
    Variant& it = variants[v];
    it.alone = int(v) % world.size() == world.rank()
                   ? train_alone(it.config, it.token_runs, device)
                   : outcome_of(Run(it.config, it.token_runs, device), std::vector<double>(size_t(kSteps)));
  }
  for (size_t v = 0; v < variants.size(); ++v) share_outcome(world, int(v) % world.size(), variants[v].alone);
}

// `held_together`: each rank of mesh.state() holds a part of the parameters, else all.
Outcome train_together(World& world, const RootConfig& config, bool token_runs, bool held_together, at::Device device) {
  Mesh mesh(world, config.parallel, device);
  const BatchShare share = batch_share(config.train, mesh.sizes());
  const auto ulysses = mesh.sizes().sequence > 1 ? make_ulysses(mesh.sequence()) : nullptr;
  ShardedWeights shards(mesh.state(), mesh.replicas());
  const bool keeps = config.parallel.gather == Gather::kOnce;
  shards.keep_gathered(keeps);
  Run run(config, token_runs, device, held_together ? &shards : nullptr);
  std::optional<GradientBuckets> buckets;
  if (!held_together) buckets.emplace(run.parameters(), mesh.everyone(), /*bucket_bytes=*/20000);
  GradientSums& sums = held_together ? static_cast<GradientSums&>(shards) : *buckets;
  std::vector<double> losses;
  for (int64_t step = 0; step < kSteps; ++step) {
    sums.begin_step();
    StepResult mine;
    for (int64_t pass = 0; pass < share.passes; ++pass) {
      if (pass + 1 == share.passes) sums.begin_last_pass();
      const int64_t chunk = pass * mesh.sizes().batch_ranks() + mesh.batch_rank();
      mine.losses.push_back(run.backward(step * config.train.global_batch + chunk, ulysses.get()));
    }
    sums.finish();
    losses.push_back(exchange_step(world, mesh.sizes(), mine).loss);
    run.update(held_together ? &mesh.state() : nullptr);
  }
  const int64_t gathers = kSteps * (keeps ? 1 : share.passes) * model::layer_count(config.model);
  if (held_together) CHECK(shards.early_gathers() >= gathers);
  Outcome out = outcome_of(run, losses, held_together ? &mesh.state() : nullptr);
  // Pairs are of this rank's samples and heads.
  StepResult all;
  all.losses = {0};
  all.pairs = out.pairs;
  const auto density = exchange_step(world, mesh.sizes(), all).density;
  out.pairs.clear();
  for (const auto& [name, value] : density)
    if (name != "all") out.pairs[name] = {value, 1};
  return out;
}

void check_agreement(const Outcome& alone, const Outcome& together) {
  for (size_t i = 0; i < alone.losses.size(); ++i)
    CHECK(std::abs(alone.losses[i] - together.losses[i]) < 1e-10 * alone.losses[i]);
  for (size_t i = 0; i < alone.weights.size(); ++i)
    CHECK((alone.weights[i] - together.weights[i]).abs().max().item<double>() < 1e-10);
  CHECK(alone.losses.back() < alone.losses.front());  // it did learn
  REQUIRE(alone.pairs.size() == together.pairs.size());
  for (const auto& [name, pairs] : alone.pairs)
    CHECK(pairs.first / pairs.second == Approx(together.pairs.at(name).first).epsilon(1e-12));
}

void check_every_way(World& world, at::Device device) {
  // Most ways to share leave a rank several passes to accumulate.
  const int64_t batch = world.size() == 3 ? 6 : 4;
  std::vector<Variant> variants = {{small_config(/*checkpointing=*/true, batch), /*token_runs=*/false, {}},
                                   {small_config(/*checkpointing=*/false, batch), /*token_runs=*/true, {}},
                                   {with_learnt_beta(small_hunyuan(true, batch, /*given=*/false)), false, {}},
                                   {with_learnt_beta(small_config(/*checkpointing=*/true, batch)), false, {}},
                                   {small_hunyuan(/*checkpointing=*/false, batch, /*given=*/true), true, {}}};
  variants[1].config.attention.backend = "full";
  train_all_alone(world, variants, device);
  const auto& pairs = variants[0].alone.pairs.at("spatial");
  REQUIRE(pairs.first < 0.9 * pairs.second);  // blocks were left out
  for (Variant& variant : variants) {
    for (int inner = 1; inner <= world.size(); ++inner) {
      for (int sequence = 1; sequence <= inner; ++sequence) {
        if (world.size() % inner != 0 || inner % sequence != 0) continue;
        variant.config.parallel.sequence = sequence;
        variant.config.parallel.shard = inner / sequence;
        variant.config.parallel.gather = sequence % 2 == 0 ? Gather::kOnce : Gather::kAgain;
        // Ranks of a sequence hold everything each where a LoRA run's adapters are trained.
        const bool sparse = variant.config.attention.backend == "vmoba";
        const bool held_together = inner > 1 && (variant.config.parallel.shard > 1 || sparse);
        INFO(world.size() << " ranks, sequence " << sequence << ", shard " << inner / sequence << ", "
                          << variant.config.attention.backend);
        check_agreement(variant.alone,
                        train_together(world, variant.config, variant.token_runs, held_together, device));
      }
    }
  }
}

}  // namespace

TEST_CASE("every way to share the work gives the mathematics of one process", "[mpi]") {
  check_every_way(test::world(), at::kCPU);
}

TEST_CASE("text in self attention is a second run of tokens with a share of its own", "[mpi]") {
  constexpr int64_t kText = 7, kHeads = 12, kHeadDim = 6;
  const attention::Grid grid{3, 3, 5};
  const RootConfig config = small_config(/*checkpointing=*/false, /*batch=*/1);
  const attention::LayerAttention layer = attention::layer_attention(config.attention, /*layer=*/1, /*dense=*/false);
  const at::Tensor cotangent = normals("cotangent", 0, {1, grid.tokens() + kText, kHeads * kHeadDim});
  // Output and gradients of q, k, v of video and text; with ranks, the gradients are this rank's part.
  const auto run = [&](model::SequenceParallel* ranks) {
    const at::Tensor video = normals("video", 0, {1, grid.tokens(), 3, kHeads, kHeadDim}).requires_grad_(true);
    const at::Tensor text = normals("words", 0, {1, kText, 3, kHeads, kHeadDim}).requires_grad_(true);
    const model::TokenShare video_share(ranks, grid.tokens()), text_share(ranks, kText);
    const at::Tensor own_video = video_share.own(video), own_text = text_share.own(text);
    std::vector<at::Tensor> joint;
    for (int64_t i = 0; i < 3; ++i)
      joint.push_back(at::cat({video_share.begin_to_heads(own_video.select(2, i)).wait(),
                               text_share.begin_to_heads(own_text.select(2, i)).wait()},
                              1));
    const at::Tensor out = attention::self_attention(joint[0], joint[1], joint[2], grid, kText, layer, nullptr);
    const auto whole_of = [](const model::TokenShare& share, const at::Tensor& part) {
      return share.gather(share.to_tokens(part).flatten(2));
    };
    const at::Tensor all = at::cat({whole_of(video_share, out.narrow(1, 0, grid.tokens())),
                                    whole_of(text_share, out.narrow(1, grid.tokens(), kText))},
                                   1);
    (all * cotangent).sum().backward();
    return std::vector<at::Tensor>{all.detach(), video.grad(), text.grad()};
  };
  World& world = test::world();
  ParallelConfig parallel;
  parallel.sequence = world.size();
  Mesh mesh(world, parallel, at::kCPU);
  const auto ulysses = make_ulysses(mesh.sequence());
  const std::vector<at::Tensor> alone = run(nullptr), together = run(ulysses.get());
  CHECK(at::allclose(together[0], alone[0], 0, 1e-12));
  for (size_t i = 1; i < alone.size(); ++i) {
    const at::Tensor sum = together[i].contiguous();
    mesh.sequence().all_reduce(sum)->wait();
    CHECK(at::allclose(sum, alone[i], 0, 1e-12));
  }
}

TEST_CASE("the same over NCCL between GPUs", "[.gpus]") {
  World& world = test::world();
  if (world.size() == 1) return;  // brought in by an exclusion
  check_every_way(world, device_of_rank(at::Device(at::kCUDA), world));
}

TEST_CASE("heads and pools that ranks cannot share are refused with what could") {
  RootConfig config;
  config.model.heads = 12;
  config.parallel.sequence = 8;
  CHECK(test::contains(test::refusal_of([&] { check_sequence(config); }), "use one of 1, 2, 3, 4, 6, 12"));
  config.parallel.sequence = 4;
  check_sequence(config);
  for (const attention::Pool pool : {attention::Pool::kBlock, attention::Pool::kOverall}) {
    config.attention.part<attention::VmobaConfig>().pool = pool;
    CHECK(test::contains(test::refusal_of([&] { check_sequence(config); }), "head_global"));
  }
  config.attention.backend = "full";
  check_sequence(config);
}

TEST_CASE("sequence parallel over NCCL on one GPU changes nothing", "[gpu]") {
  const at::Device device(at::kCUDA, 0);
  const auto alone = make_single_communicator();
  OperationWatch watch;
  const auto ranks = make_nccl_communicator(*alone, device, watch, {0});
  const auto ulysses = make_ulysses(*ranks);
  const at::Tensor x_BSND = at::randn({2, 5, 4, 3}, at::TensorOptions(device)).requires_grad_();
  const at::Tensor there = ulysses->begin_to_heads(x_BSND)->wait(), back = ulysses->to_tokens(there);
  CHECK(at::equal(back, x_BSND));
  const at::Tensor weight = at::randn_like(x_BSND);
  (ulysses->gather_tokens(back.flatten(2)) * weight.flatten(2)).sum().backward();
  CHECK(at::equal(x_BSND.grad(), weight));
}

TEST_CASE("fp8 products are the same of weights that travel as fp8 factors", "[mpi]") {
  Communicator& ranks = test::world().control();
  RootConfig config = small_config(/*checkpointing=*/true, 1);
  config.model.heads = 3;
  config.model.head_dim = 16;  // 48 rows, which 2, 3 and 4 ranks divide
  config.model.own<model::WanConfig>().ffn_dim = 96;
  config.model.linear_compute = "fp8";
  const auto alone = make_single_communicator();
  ShardedWeights shards(ranks, *alone);
  Run whole(config, false, at::kCPU), shared(config, false, at::kCPU, &shards);
  shards.begin_step();
  shards.begin_last_pass();
  const double expected = whole.backward(0, nullptr);
  CHECK(shared.backward(0, nullptr) == expected);
  shards.finish();
  // Every rank has the same sample. This gradient passes no transposed weight, whose scale of all may be another.
  for (size_t i = 0; i < whole.parameters().size(); ++i) {
    if (whole.parameters()[i].name != "blocks.2.ffn.net.2.weight") continue;
    const at::Tensor sum = shards.keep(whole.parameters()[i].tensor.grad()) * double(ranks.size());
    CHECK(sum.abs().max().item<double>() > 0);
    CHECK(at::allclose(shared.parameters()[i].tensor.grad(), sum, /*rtol=*/1e-12, /*atol=*/0));
  }
}
