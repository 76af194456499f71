// The memory and FLOPs that --dry-run announces, against sums by hand over the published shapes.
#include "config/clip_geometry.h"
#include "model/hunyuan/hunyuan_config.h"
#include "model/wan/wan_config.h"
#include "model/weights/shared_file.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/forecast/device_rate.h"
#include "train/forecast/estimate.h"
#include "train/forecast/memory_advice.h"
#include "train/forecast/offload_choice.h"
#include "train/forecast/pass_memory.h"
#include "train/forecast/rank_memory.h"
#include "train/forecast/step_flops.h"

using namespace vmoba;
using namespace vmoba::train;
using vmoba::test::contains;

namespace {

// Wan 14B: width E, feed-forward F, 40 blocks.
constexpr int64_t E = 5120, F = 13824, kBlocks = 40;
// Matrices of a block: q, k, v, o of two attentions, and the feed-forward; their rows.
constexpr int64_t kBlockMatrices = 8 * E * E + 2 * E * F, kBlockRows = 8 * E + E + F;
// Matrices elsewhere: patches (16 channels, 1x2x2), text (4096 wide), time (256 wide) and its 6 parts, output.
constexpr int64_t kOtherMatrices = 64 * E + (4096 * E + E * E) + (256 * E + E * E) + 6 * E * E + 64 * E;
// Vectors of a block: biases of the matrices, norms of q and k of both attentions, the affine norm, 6 modulations.
constexpr int64_t kBlockVectors = kBlockRows + 4 * E + 2 * E + 6 * E;
constexpr int64_t kOtherVectors = E + 2 * E + 2 * E + 6 * E + 64 + 2 * E;
constexpr int64_t kParameters = kBlocks * (kBlockMatrices + kBlockVectors) + kOtherMatrices + kOtherVectors;
// Tables of modulation are no matrices: fp32 always.
constexpr int64_t kFp32Bytes = 4 * (kBlocks * kBlockVectors + kOtherVectors);
constexpr int64_t kRank = 32, kAdapters = kBlocks * kRank * (8 * 2 * E + 2 * (E + F));

// A file with the headers of a transformer and no values: a hole, which takes no space.
std::string headers_of(int64_t layers, int64_t heads, int64_t ffn_dim) {
  static const test::TemporaryFolder folder;
  model::ModelConfig sizes;
  sizes.layers = layers;
  sizes.heads = heads;
  sizes.own<model::WanConfig>().ffn_dim = ffn_dim;
  std::vector<model::TensorToWrite> tensors;
  for (const model::Parameter& p : model::parameter_shapes(sizes))
    tensors.push_back({p.name, at::kBFloat16, p.shape().vec(), {}});
  std::string file = fmt::format("{}/wan-{}.safetensors", folder.path(), layers);
  model::create_shared_file(file, model::safetensors_layout(file, tensors, {}));
  return file;
}

// Of the published ones.
const std::string& headers_of_14b() {
  static const std::string path = headers_of(kBlocks, E / 128, F);
  return path;
}
const std::string& headers_of_1_3b() {
  static const std::string path = headers_of(30, 12, 8960);
  return path;
}

// A shipped configuration of 14B transformers, with a small VAE of the published strides and channels.
RootConfig shipped(const std::string& config, const std::vector<std::string>& overrides) {
  std::vector<std::string> all = {"codec.weights=" + test::fixtures() + "/model/wan_vae_21",
                                  "model.weights=" + headers_of_14b()};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return load_root_config(test::source_dir() + "/configs/" + config, all);
}

// Experts of 14B, each down to its timestep.
std::vector<std::string> experts(const std::vector<int>& until_timesteps) {
  std::string list;
  for (const int until : until_timesteps)
    list += fmt::format("{}{{weights: {}, until_timestep: {}}}", list.empty() ? "" : ", ", headers_of_14b(), until);
  return {"model.weights=''", "experts=[" + list + "]"};
}

RunEstimate estimate(const std::vector<std::string>& overrides) {
  const RootConfig root = shipped("wan2.1_14b_lora.yaml", overrides);
  return estimate_run(root, configured_buckets(root));
}

}  // namespace

TEST_CASE("a shipped configuration takes its sizes from the weights; the resolved one prints every value") {
  RootConfig config = shipped("wan2.1_14b_lora.yaml", {});
  CHECK(config.model.layers == kBlocks);
  CHECK(config.model.heads * config.model.head_dim == E);
  const std::string yaml = config_to_yaml([&](ConfigVisitor& v) { config.visit(v); });
  for (const char* line : {"\n  layers: 40\n", "\n  heads: 40\n", "\n  ffn_dim: 13824\n", "\n  text_dim: 4096\n",
                           "\"blocks.*.attn*.to_q\""})
    CHECK(contains(yaml, line));
  const std::string says = test::refusal_of([] { shipped("wan2.1_14b_lora.yaml", {"model.heads=12"}); });
  CHECK(contains(says, "model.heads: expected 40"));
  CHECK(contains(says, "found 12"));
  CHECK(contains(says, headers_of_14b()));
}

TEST_CASE("without the weights that state the sizes there is no estimate") {
  const RootConfig config = load_root_config(test::source_dir() + "/configs/wan2.1_14b_lora.yaml",
                                             {"codec.weights=" + test::fixtures() + "/model/wan_vae_21"});
  const std::string says = test::refusal_of([&] { estimate_run(config, configured_buckets(config)); });
  CHECK(contains(says, "sizes of the model from the weights at 'models/Wan2.1-T2V-14B-Diffusers/transformer'"));
}

TEST_CASE("LoRA: the base as it is kept, adapters and all that follows them in fp32") {
  const RunEstimate bf16 = estimate({"train.ema.enabled=true"});
  CHECK(bf16.experts == 1);
  CHECK(bf16.parameters == kParameters);
  CHECK(bf16.trained == kAdapters);
  CHECK(bf16.weights_bytes == 2 * (kBlocks * kBlockMatrices + kOtherMatrices) + kFp32Bytes);
  CHECK(bf16.adapters_bytes == 4 * kAdapters);
  CHECK(bf16.gradients_bytes == 4 * kAdapters);
  CHECK(bf16.optimizer_bytes == 8 * kAdapters);
  CHECK(bf16.ema_bytes == 4 * kAdapters);
  const RunEstimate fp8 = estimate({"model.weights_dtype=fp8", "train.ema.enabled=false"});
  CHECK(fp8.weights_bytes ==
        kBlocks * (kBlockMatrices + 4 * kBlockRows) + 2 * kOtherMatrices + kFp32Bytes);  // a scale for each row
  CHECK(fp8.ema_bytes == 0);
  CHECK(fp8.activations_bytes == bf16.activations_bytes);
  const RunEstimate queries = estimate({"lora.targets=[to_q]", "lora.rank=16"});
  CHECK(queries.trained == kBlocks * 2 * 16 * 2 * E);
}

TEST_CASE("what waits in the host's memory: a ring of blocks and two inputs stay on the device") {
  constexpr int64_t S = 21 * 30 * 52;
  const std::vector<std::string> fp8 = {"model.weights_dtype=fp8", "train.ema.enabled=false", "data.frames=[81]",
                                        "attention.backend=full"};
  const auto with = [&](const char* offload, std::vector<std::string> more = {}) {
    more.insert(more.end(), fp8.begin(), fp8.end());
    more.push_back(std::string("model.offload=") + offload);
    return estimate(more);
  };
  const int64_t block = kBlockMatrices + 4 * kBlockRows + 4 * kBlockVectors;  // with a scale for each row
  const int64_t outer = 2 * kOtherMatrices + 4 * kOtherVectors, inputs = kBlocks * 2 * E * S;
  // Of the block at work: in backward of the feed-forward 18 rows of the width and 3 hidden ones.
  const int64_t inside = 2 * S * (18 * E + 3 * F);
  const RunEstimate none = with("none"), both = with("both"), weights = with("weights");
  CHECK(none.weights_bytes == outer + kBlocks * block);
  CHECK(none.activations_bytes == inputs + inside);
  CHECK(none.block_bytes == 2 * (kBlockMatrices + kBlockVectors));  // the present block in bf16
  CHECK(none.host_weights_bytes + none.host_activations_bytes == 0);
  CHECK(both.weights_bytes == outer);
  CHECK(both.block_bytes == 2 * block + none.block_bytes);
  CHECK(both.activations_bytes == 2 * (2 * E * S) + inside);
  CHECK(both.host_weights_bytes == outer + kBlocks * block);
  CHECK(both.host_activations_bytes == inputs);
  CHECK(both.total_bytes() < int64_t(15.5 * double(1 << 30)));
  CHECK(weights.activations_bytes == none.activations_bytes);
  CHECK(weights.host_activations_bytes == 0);
  CHECK(with("activations").weights_bytes == none.weights_bytes);
  CHECK(with("auto").total_bytes() == none.total_bytes());  // not decided
  // Without recomputing, autograd keeps the weights of every block.
  const int64_t all = kBlocks * block + 2 * (kParameters - kBlockMatrices - kBlockVectors);  // and in bf16
  CHECK(with("weights", {"model.recompute=none"}).block_bytes - weights.block_bytes == all);
  const RootConfig config = shipped("wan2.1_14b_lora.yaml", {"model.offload=both"});
  const std::string text = estimate_to_text(config, estimate_run(config, configured_buckets(config)));
  CHECK(contains(text, "ring of blocks"));
  CHECK(contains(text, "host, page-locked"));
}

TEST_CASE("model.offload auto takes what fits and moves least, and all it may where nothing fits") {
  using model::Offload;
  const auto choice = [&](double gib, const std::vector<std::string>& keys, const dist::MeshSizes& sizes = {}) {
    std::vector<std::string> all = {"train.ema.enabled=false", "model.offload=auto"};
    all.insert(all.end(), keys.begin(), keys.end());
    return choose_offload(shipped("wan2.1_14b_lora.yaml", all), sizes, {21, 30, 52}, 1, int64_t(gib * double(1 << 30)));
  };
  const std::string fp8 = "model.weights_dtype=fp8", bf16 = "model.weights_dtype=bf16";
  CHECK(choice(0, {fp8}).offload == Offload::kNone);
  CHECK(choice(100, {fp8}).offload == Offload::kNone);
  // Inputs of blocks are 12.5 GiB, weights 13.6 in fp8 and 26.7 in bf16; each brings the rest to some 28 GiB in fp8.
  CHECK(choice(32, {fp8}).offload == Offload::kActivations);
  CHECK(choice(48, {bf16}).offload == Offload::kActivations);
  CHECK(choice(36, {bf16}).offload == Offload::kWeights);
  CHECK(choice(16, {fp8}).offload == Offload::kBoth);
  CHECK(choice(4, {fp8}).offload == Offload::kBoth);
  CHECK(choice(16, {fp8}, {1, 2, 1}).offload == Offload::kActivations);
  // Autograd would keep the weights of every block.
  CHECK(choice(16, {fp8, "model.recompute=none"}).offload == Offload::kNone);
  CHECK(choice(16, {"lora.rank=0", "model.weights_dtype=fp32"}).offload == Offload::kActivations);
  CHECK(contains(choice(16, {fp8}).reason, "model.offload auto: both"));
}

TEST_CASE("blocks stay on the GPU where copies would take longer than computing, as many as have room") {
  const auto resident = [&](const attention::Grid& grid, double gib, const std::vector<std::string>& keys) {
    std::vector<std::string> all = {"train.ema.enabled=false", "model.weights_dtype=fp8"};
    all.insert(all.end(), keys.begin(), keys.end());
    return resident_weights(shipped("wan2.1_14b_lora.yaml", all), {}, grid, 1, int64_t(gib * double(1 << 30)));
  };
  const std::string both = "model.offload=both", weights = "model.offload=weights";
  const attention::Grid clip{21, 30, 52}, picture{1, 30, 52};
  // 27 GiB in a pass of 6 s; a picture's takes a fraction of a second.
  CHECK(resident(clip, 139.8, {both}) == 0);
  const int64_t all = resident(picture, 139.8, {weights});
  CHECK(all > int64_t{9} << 30);
  CHECK(all < int64_t{14} << 30);
  // What the forecast leaves of 12 GiB, of which tensors can take 93 %.
  const RootConfig small =
      shipped("wan2.1_14b_lora.yaml", {"train.ema.enabled=false", "model.weights_dtype=fp8", weights});
  const int64_t needed = rank_memory(small, {}, picture, 1).total();
  CHECK(resident(picture, 12, {weights}) == usable_bytes(int64_t{12} << 30) - needed);
  CHECK(resident(picture, 2, {weights}) == 0);
  CHECK(resident(picture, 0, {weights}) == 0);
  CHECK(resident(picture, 139.8, {"model.offload=activations"}) == 0);
}

TEST_CASE("the configurations for small cards fit them by the forecast, and no larger offload is taken than needed") {
  using model::Offload;
  const std::vector<std::string> one = {}, small = {"model.weights=" + headers_of_1_3b()},
                                 two = {"model.weights=''", "experts[0].weights=" + headers_of_14b(),
                                        "experts[1].weights=" + headers_of_14b()};
  struct Case {
    std::string name;
    std::vector<std::string> keys;
    Offload offload;
  };
  for (const int gib : {16, 24})
    for (const Case& c : {Case{"wan2.1_1.3b", small, Offload::kNone}, Case{"wan2.1_14b", one, Offload::kBoth},
                          Case{"wan2.2_a14b", two, Offload::kBoth}}) {
      const std::string file = fmt::format("{}_{}gb.yaml", c.name, gib);
      INFO(file);
      const RootConfig config = shipped(file, c.keys);
      const auto buckets = configured_buckets(config);
      const int64_t bytes = int64_t(gib) << 30;
      const OffloadChoice choice = choose_offload(config, {}, largest_grid(clip_geometry(config), buckets), 1, bytes);
      CHECK(choice.offload == c.offload);
      const std::string text = fit_to_text(with_offload(config, choice), buckets, bytes, "--gpu-gib");
      INFO(text);
      CHECK(contains(text, "fits: "));
      CHECK(config.cache.mode == "require");
      CHECK(config.train.validate_every == 0);  // no encoder and no VAE beside training
    }
}

namespace {

// As vmoba-bench step --model ARCHITECTURE computes it, with weights in bf16.
RootConfig benched(const std::string& architecture, const std::vector<std::string>& overrides) {
  std::vector<std::string> all = {"model.architecture=" + architecture,
                                  "model.weights_dtype=bf16",
                                  "model.recompute=block",
                                  "train.global_batch=1",
                                  "train.micro_batch=1",
                                  "train.ema.enabled=false",
                                  "text.max_tokens=256",
                                  "text.type=hash"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  const bool first = architecture == model::kHunyuan;
  if (!first) all.push_back("model.image_dim=1152");
  RootConfig config = load_root_config("", all);
  config.model.layers = first ? 20 : 54;
  config.model.heads = first ? 24 : 16;
  config.model.in_channels = first ? 16 : 65;
  config.model.out_channels = first ? 16 : 32;
  config.model.text_dim = first ? 4096 : 3584;
  config.model.patch_size = first ? std::vector<int64_t>{1, 2, 2} : std::vector<int64_t>{1, 1, 1};
  return config;
}

}  // namespace

TEST_CASE("the forecast is what an H200 held of HunyuanVideo, 1.0 and 1.5, within 5 %") {
  const std::vector<std::string> lora = {"lora.rank=32"}, all = {"train.optimizer.type=adamw_8bit"};
  const std::string first = model::kHunyuan, second = model::kHunyuan15;
  const attention::Grid clip{33, 45, 80}, clip_15{31, 45, 80};
  const auto cubes = [](std::vector<std::string> keys, const char* chunk, const char* density) {
    keys.insert(keys.end(), {"attention.preset=cubes", std::string("attention.spatiotemporal_chunk=") + chunk,
                             std::string("attention.density=") + density});
    return keys;
  };
  const auto full = [](std::vector<std::string> keys) {
    keys.push_back("attention.backend=full");
    return keys;
  };
  const auto check = [](const std::string& architecture, const std::vector<std::string>& keys,
                        const attention::Grid& grid, double measured) {
    const RankMemory memory = rank_memory(benched(architecture, keys), {}, grid, 1);
    const double gib = double(memory.total()) / double(1 << 30);
    INFO(architecture << " " << keys.front() << " " << keys.back() << ": " << gib << " of " << measured);
    CHECK(std::abs(gib / measured - 1) < 0.05);
  };
  check(first, full(lora), clip, 83.0);
  check(first, full({"lora.rank=32", "model.recompute=attention"}), clip, 123.8);
  check(first, cubes(lora, "[3, 5, 4]", "0.05"), clip, 85.5);
  check(second, full(lora), clip_15, 50.9);
  check(second, cubes(all, "[4, 3, 5]", "0.2"), clip_15, 67.1);
  check(second, cubes(all, "[4, 3, 5]", "0.05"), clip_15, 67.1);
}

TEST_CASE("what blocks hold, by hand: inputs, selections and the gradients that come as they go") {
  const RootConfig config = benched(model::kHunyuan, {"lora.rank=32", "attention.backend=full"});
  const attention::Grid grid{3, 4, 5};
  constexpr double kWidth = 3072, kHidden = 12288;
  const double rows = 60 + 256;  // text takes part
  const std::vector<BlockMemory> blocks = block_memory(config, {grid, 1, 1});
  REQUIRE(blocks.size() == 60);
  CHECK(blocks[3].held == 2 * rows * kWidth);
  CHECK(blocks[3].busy == 2 * rows * (14 * kWidth + 3 * kHidden));
  CHECK(blocks[40].busy == 2 * rows * (13 * kWidth + 3 * kHidden));
  RootConfig whole = config;
  whole.model.recompute = model::Recompute::kNone;
  CHECK(block_memory(whole, {grid, 1, 1})[3].held == 2 * rows * (12 * kWidth + 2 * kHidden));
  whole.model.recompute = model::Recompute::kAttention;  // the attended rows, and a log-sum-exp of 24 heads
  CHECK(block_memory(whole, {grid, 1, 1})[3].held == rows * (2 * 2 * kWidth + 4 * 24));
  CHECK(block_memory(whole, {grid, 2, 2})[40].held == rows * (2 * 2 * kWidth + 4 * 24));
  CHECK(block_memory(whole, {grid, 1, 1})[3].busy == blocks[3].busy);
  CHECK(block_memory(config, {grid, 2, 2})[40].held == 2 * (30 + 128) * kWidth * 2);

  const std::vector<BlockMemory> three = {{10, 25}, {10, 25}, {10, 40}};
  CHECK(most_activations(three) == 60);
  CHECK(most_with_gradients(three, {0, 0, 0}) == 60);
  CHECK(most_with_gradients(three, {5, 30, 30}) == 85);  // at the first block, with the gradients of the others
  // Gradients of a step in several passes are there from the first one on.
  RootConfig passes = benched(model::kHunyuan15, {"train.optimizer.type=adamw_8bit"});
  const RankMemory one = rank_memory(passes, {}, {31, 45, 80}, 1);
  CHECK(one.apart > 0);
  CHECK(one.total() >= one.state());
  passes.train.global_batch = 2;
  const RankMemory two = rank_memory(passes, {}, {31, 45, 80}, 1);
  CHECK(two.apart == 0);
  CHECK(two.total() == one.total() + one.apart);
}

TEST_CASE("a pass without room is named by its bucket, and keys follow in the order to try") {
  const RootConfig config = shipped("wan2.1_14b_lora.yaml", {"train.micro_batch=2", "train.ema.enabled=true"});
  CHECK(pass_text(config, {2, 32760, 21, 60, 104}) == "2 samples of bucket 81x480x832, 32760 tokens each");
  CHECK(pass_text(config, {1, 1560, 1, 60, 104}) == "1 sample of bucket 1x480x832, 1560 tokens each");
  const std::string keys = memory_keys(config);
  size_t place = 0;
  for (const char* key : {"train.micro_batch=1", "model.offload=activations", "model.offload=both",
                          "train.optimizer.type=adamw_8bit", "model.weights_dtype=fp8", "data.frames", "parallel"}) {
    INFO(keys << " " << key);
    REQUIRE(keys.find(key, place) != std::string::npos);
    place = keys.find(key, place);
  }
  const std::string whole = memory_keys(shipped("wan2.1_14b_lora.yaml", {"lora.rank=0", "model.weights_dtype=fp32"}));
  CHECK(contains(whole, "model.offload=activations"));
  CHECK_FALSE(contains(whole, "model.offload=both"));  // nothing is frozen
}

TEST_CASE("all weights: fp32 masters, gradients and moments") {
  const RunEstimate e = estimate({"lora.rank=0", "model.weights_dtype=fp32", "train.ema.enabled=false"});
  CHECK(e.trained == kParameters);
  CHECK(e.adapters_bytes == 0);
  CHECK(e.total_bytes() - e.activations_bytes - e.block_bytes == 16 * kParameters);
}

TEST_CASE("weights in bf16 and 8-bit moments") {
  const RunEstimate e = estimate(
      {"lora.rank=0", "model.weights_dtype=bf16", "train.optimizer.type=adamw_8bit", "train.ema.enabled=true"});
  const int64_t kept = 2 * (kBlocks * kBlockMatrices + kOtherMatrices) + kFp32Bytes;
  CHECK(e.weights_bytes == kept);
  CHECK(e.gradients_bytes == kept);
  CHECK(e.ema_bytes == 4 * kParameters);
  // Two bytes a value and two scales of 4 bytes for each 256; tensors below 4,096 values are too few to count.
  CHECK(double(e.optimizer_bytes) == Approx(double(kParameters) * (2 + 8.0 / 256)).epsilon(1e-5));
  const RunEstimate muon = estimate({"lora.rank=0", "model.weights_dtype=fp32", "train.optimizer.type=muon"});
  CHECK(muon.optimizer_bytes == 8 * kParameters - 4 * kBlocks * kBlockMatrices);
}

TEST_CASE("a run that does not fit is told what to set, until it does") {
  const RootConfig whole = shipped("wan2.1_14b_lora.yaml", {"lora.rank=0", "model.weights_dtype=fp32",
                                                            "train.ema.enabled=false", "model.recompute=none"});
  const auto buckets = configured_buckets(whole);
  const auto text = [&](const RootConfig& config, double gib) {
    return fit_to_text(config, buckets, int64_t(gib * double(1 << 30)), "--gpu-gib");
  };
  CHECK(contains(text(whole, 1000), "fits"));
  CHECK_FALSE(contains(text(whole, 1000), "not"));
  const std::string on_h200 = text(whole, 139.8);
  CHECK(contains(on_h200, "does not fit"));
  CHECK(on_h200.find("model.recompute=auto") < on_h200.find("train.optimizer.type=adamw_8bit"));
  CHECK(on_h200.find("train.optimizer.type=adamw_8bit") < on_h200.find("model.weights_dtype=bf16"));
  CHECK(contains(on_h200, "GiB: fits"));
  CHECK_FALSE(contains(on_h200, "lora.rank"));  // not needed
  CHECK(contains(text(whole, 1), "parallel.shard"));
  // Each change is one that the configuration leaves open.
  const RootConfig small = shipped("wan2.1_14b_lora.yaml", {"model.weights_dtype=fp8", "train.ema.enabled=false"});
  for (const MemoryAdvice& advice : memory_advice(small)) {
    CHECK_FALSE(contains(advice.keys, "fp8"));
    CHECK_FALSE(contains(advice.keys, "lora.rank"));
  }
  CHECK(
      contains(memory_keys(whole), "model.recompute=auto; model.offload=activations; train.optimizer.type=adamw_8bit"));
}

TEST_CASE("FLOPs of a step: frozen weights take part in backward by their inputs only") {
  constexpr double S = 21 * 30 * 52, T = 512, r = kRank;  // tokens of 81 frames of 480x832, of the text
  // Forward, two for each product and addition: maps of a block that the tokens go through and that the text does, both
  // attentions; maps before the blocks (patches, text, time) and behind.
  const double maps = 2 * S * double(6 * E * E + 2 * E * F), text_maps = 2 * T * double(2 * E * E);
  const double attention = 4 * S * S * E + 4 * S * T * E;
  const double before = 2 * S * 64 * E + 2 * T * double(4096 * E + E * E) + 2 * double(256 * E + 7 * E * E);
  const double behind = 2 * S * 64 * E;
  const double forward = before + kBlocks * (maps + text_maps + attention) + behind;
  const auto step = [](const std::vector<std::string>& overrides) {
    std::vector<std::string> all = {"attention.backend=full"};
    all.insert(all.end(), overrides.begin(), overrides.end());
    const RunEstimate run = estimate(all);
    REQUIRE(run.tokens() == int64_t(S));
    return run.buckets.back();
  };

  const BucketEstimate whole = step({"lora.rank=0", "model.weights_dtype=fp32"});  // and computed again in backward
  CHECK(whole.flops_full == Approx(4 * forward).epsilon(1e-12));
  CHECK(whole.flops_sparse == whole.flops_full);
  CHECK(whole.backward == Approx(3 * forward).epsilon(1e-12));
  const std::string kept = "model.recompute=none";
  CHECK(step({"lora.rank=0", "model.weights_dtype=fp32", kept}).flops_full == Approx(3 * forward).epsilon(1e-12));

  const double adapters = 2 * S * r * double(6 * 2 * E + 2 * (E + F)) + 2 * T * r * double(2 * 2 * E);  // of a block
  const double once = forward + kBlocks * adapters;
  const double backward = kBlocks * (maps + 2 * attention + 2 * adapters) + behind;
  const BucketEstimate lora = step({kept});
  CHECK(lora.flops_full == Approx(once + backward).epsilon(1e-12));
  CHECK(lora.backward == Approx(backward).epsilon(1e-12));
  CHECK(step({}).flops_full == Approx(2 * once - before + backward).epsilon(1e-12));
  // Most of a step's maps are not differentiated twice.
  CHECK(lora.flops_full < 0.9 * step({"lora.rank=0", "model.weights_dtype=fp32", kept}).flops_full);

  // What comes before the first adapter, the output map of the last block's feed-forward, is not differentiated at all.
  const double last = 2 * S * r * double(E + F);
  CHECK(step({kept, "lora.targets=[blocks.39.ffn.net.2]"}).backward ==
        Approx(2 * S * double(E * F) + behind + 2 * last).epsilon(1e-12));
}

TEST_CASE("the work of a sample follows its density, and a GPU's peak gives its least time") {
  const RootConfig config = shipped("wan2.1_14b_lora.yaml", {"lora.rank=0", "model.weights_dtype=fp32"});
  const attention::Grid grid{21, 30, 52};
  const SampleWork work = sample_work(config, grid, 512);
  const auto forward = [&](double density) {
    return model::forward_flops(config.model, config.attention, grid, 512, density);
  };
  CHECK(work.flops(1) == Approx(3 * forward(1)));
  // Of all layers, dense ones have density 1: these share of layers is sparse.
  int64_t sparse = 0;
  for (int64_t i = 0; i < config.model.layers; ++i) {
    const attention::LayerAttention layer = attention::layer_attention(config.attention, i, false);
    sparse += attention::layer_flops(layer, grid, 40, 128, 0.5) < attention::layer_flops(layer, grid, 40, 128, 1);
  }
  const double share = double(sparse) / double(config.model.layers);
  CHECK(work.flops(1 - share + 0.2 * share) == Approx(3 * forward(0.2)));
  CHECK(work.flops(1) - work.attention(1) == Approx(work.products));

  CHECK(peak_flops_per_s(std::string("NVIDIA H200")) == 989e12);
  CHECK(peak_flops_per_s(std::string("NVIDIA H100 PCIe")) == 756e12);
  CHECK(peak_flops_per_s(std::string("NVIDIA A100-SXM4-80GB")) == 312e12);
  CHECK(peak_flops_per_s(std::string("a GPU to come")) == 0);
  CHECK(peak_flops_per_s(at::Device(at::kCPU)) == 0);
  CHECK(least_seconds(work, 1, 0) == 0);
  CHECK(least_seconds({780, 0, 0, 0}, 1, 1000) == Approx(1));
  CHECK(least_seconds({0, 480, 0, 0}, 1, 1000) == Approx(1));  // 480 * 3.5 / 3 at 560
}

TEST_CASE("two experts: twice the state, once the activations") {
  const RunEstimate one = estimate({"model.weights_dtype=bf16"});
  const RunEstimate two = estimate(experts({875, 0}));
  CHECK(two.experts == 2);
  CHECK(two.parameters == one.parameters);
  CHECK(two.total_bytes() - two.activations_bytes == 2 * (one.total_bytes() - one.activations_bytes));
  CHECK(two.activations_bytes == one.activations_bytes);
  const RootConfig config =
      shipped("wan2.2_a14b_lora.yaml",
              {"model.weights=''", "experts[0].weights=" + headers_of_14b(), "experts[1].weights=" + headers_of_14b()});
  CHECK(config.model.layers == kBlocks);  // those of the first expert's weights
  const std::string text = estimate_to_text(config, estimate_run(config, configured_buckets(config)));
  CHECK(contains(text, "in each of 2 experts"));
  const RunEstimate three = estimate(experts({9, 8, 0}));
  CHECK(three.total_bytes() - three.activations_bytes == 3 * (one.total_bytes() - one.activations_bytes));
  CHECK(contains(text, "LoRA of rank 32"));
}
