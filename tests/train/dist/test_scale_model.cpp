// Costs of links, memory per rank and the paper model of many ranks against arithmetic done by hand.
#include "train/forecast/scale_model.h"

#include <cmath>
#include <fstream>

#include "model/wan/wan_config.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"
#include "train/dist/link_model.h"
#include "train/forecast/memory_advice.h"

using namespace vmoba;
using namespace vmoba::train;
using namespace vmoba::train::dist;

namespace {

// Links of 1 us and 100 GB/s inside a host of 4, 10 us and 10 GB/s between.
Cluster simple_cluster() {
  Cluster out;
  out.ranks_per_host = 4;
  out.inside.fill({1e-6, 100e9});
  out.between.fill({10e-6, 10e9});
  return out;
}

// Two blocks; E = 8, every size small enough to count.
RootConfig small_config() {
  RootConfig config;
  config.model.layers = 2;
  config.model.heads = 4;
  config.model.head_dim = 6;
  config.model.own<model::WanConfig>().ffn_dim = 40;
  config.model.text_dim = 8;
  config.model.own<model::WanConfig>().freq_dim = 16;
  config.train.global_batch = 8;
  return config;
}

// Numbers in a Wan block of width e: two attentions of four maps and two norms, the feed-forward, norm2, the table.
int64_t block_values(int64_t e, int64_t f) {
  return 2 * (4 * (e * e + e) + 2 * e) + (e * f + f) + (f * e + e) + 2 * e + 6 * e;
}

}  // namespace

TEST_CASE("the fit finds latency and rate of exact timings, and neither is negative") {
  std::vector<Timing> timings;
  for (const double moved : {1e3, 1e5, 1e7}) timings.push_back({moved, 20e-6 + moved / 5e9});
  const AlphaBeta exact = fit_alpha_beta(timings);
  CHECK(exact.latency_s == Approx(20e-6));
  CHECK(exact.bytes_per_s == Approx(5e9));
  // Large tensors that are slower than in proportion ask for a negative latency: through the origin instead, where the
  // weighted least squares are sum(x^2/y^2) / sum(x/y).
  const AlphaBeta origin = fit_alpha_beta({{1, 1}, {2, 4}});
  CHECK(origin.latency_s == 0);
  CHECK(origin.bytes_per_s == Approx((1 + 0.25) / (1 + 0.5)));
  CHECK(fit_alpha_beta({{1, 2}, {8, 1}}).bytes_per_s == 8);  // all noise
  CHECK_THROWS_AS(fit_alpha_beta({{1, 1}, {1, 2}}), Error);
}

TEST_CASE("bytes that an operation must move") {
  CHECK(moved_bytes(Collective::kAllReduce, 800, 4) == 1200);
  CHECK(moved_bytes(Collective::kAllGather, 800, 4) == 600);
  CHECK(moved_bytes(Collective::kAllToAll, 800, 1) == 0);
}

TEST_CASE("time inside a host and over hosts") {
  const Cluster cluster = simple_cluster();
  const auto seconds = [&](Collective c, double bytes, GroupShape group) { return cluster.seconds(c, bytes, group); };
  CHECK(seconds(Collective::kAllReduce, 1e9, {1, 1}) == 0);
  // 4 ranks: 2 rounds; 1.5 GB at 100 GB/s.
  CHECK(seconds(Collective::kAllReduce, 1e9, {4, 4}) == Approx(2e-6 + 0.015));
  // 16 ranks on 4 hosts: 4 rounds of 10 us; four ports of 10 GB/s carry the ring.
  CHECK(seconds(Collective::kAllGather, 1.6e9, {16, 4}) == Approx(40e-6 + 1.5e9 / 40e9));
  // One rank of each of 4 hosts: one port.
  CHECK(seconds(Collective::kAllGather, 1.6e9, {4, 1}) == Approx(20e-6 + 1.2e9 / 10e9));
  // all_to_all of 8 ranks on 2 hosts: 4 slices of 0.1 GB through the rank's own port, slower than 3 inside.
  CHECK(seconds(Collective::kAllToAll, 0.8e9, {8, 4}) == Approx(30e-6 + 0.4e9 / 10e9));
}

TEST_CASE("a measurement is adopted so that the model gives it back") {
  const test::TemporaryFolder folder;
  const auto file = [&](int ranks, int hosts) {
    const std::string path = folder.path() + "/comm.json";
    std::string text = fmt::format(R"({{"backend":"mpi","ranks":{},"hosts":{},"operations":[)", ranks, hosts);
    for (const Collective c : kCollectives)
      text += fmt::format(R"({{"name":"{}","latency_us":24,"gb_per_s":8}},)", collective_name(c));
    text.back() = ']';
    std::ofstream(path) << text << "}";
    return path;
  };
  const double bytes = 1e9;
  for (const int hosts : {1, 2}) {
    Cluster cluster = simple_cluster();
    cluster.adopt(read_comm_measurement(file(8, hosts)));
    for (const Collective c : kCollectives)
      CHECK(cluster.seconds(c, bytes, {8, 8 / hosts}) == Approx(24e-6 + moved_bytes(c, bytes, 8) / 8e9));
  }
  const auto refusal = [&](const std::string& text) {
    const std::string path = folder.path() + "/bad.json";
    std::ofstream(path) << text;
    return test::refusal_of([&] { read_comm_measurement(path); });
  };
  CHECK(test::contains(refusal("{"), "expected JSON"));
  CHECK(test::contains(refusal("[]"), "list of operations"));
  CHECK(test::contains(refusal(R"({"ranks":1,"hosts":1,"operations":[]})"), "at least 2 ranks"));
  CHECK(test::contains(refusal(R"({"ranks":3,"hosts":2,"operations":[]})"), "equal hosts"));
  CHECK(test::contains(refusal(R"({"ranks":2,"hosts":1,"operations":[]})"), "timings of all_reduce"));
  CHECK(test::contains(refusal(R"({"ranks":2,"hosts":1,"operations":[{"name":"all_reduce","latency_us":-1}]})"),
                       "latency_us"));
}

TEST_CASE("gathered weights stay where they take half of the free memory at most and results fit beside them") {
  CHECK(gathered_weights_stay(10, 30, 20));
  CHECK_FALSE(gathered_weights_stay(10, 30, 21));
  CHECK(gathered_weights_stay(15, 30, 0));
  CHECK_FALSE(gathered_weights_stay(16, 30, 0));
}

TEST_CASE("memory of a rank by arithmetic") {
  RootConfig config = small_config();
  const int64_t e = 24, f = 40, tokens = 100;
  const attention::Grid grid{1, 10, 10};
  const ModelSizes sizes = model_sizes(config);
  CHECK(sizes.largest_block == block_values(e, f));
  CHECK(sizes.parameters == sizes.outer + 2 * block_values(e, f));
  CHECK(sizes.trainable == sizes.parameters);
  const RankMemory alone = rank_memory(config, {1, 1, 1}, grid, 2);
  CHECK(alone.weights == 4 * sizes.parameters);
  CHECK(alone.gradients == 4 * sizes.parameters);
  CHECK(alone.optimizer == 8 * sizes.parameters);
  CHECK(alone.ema == 0);
  CHECK(alone.working == 2 * sizes.largest_block);  // bf16
  // Two inputs kept; 18 E-wide and 3 F-wide of the block at work, in bf16.
  CHECK(alone.activations == 2 * tokens * (2 * 2 * e + 2 * (18 * e + 3 * f)));
  // Copies change nothing; a shard holds its part of each; a sequence of 4 holds a quarter of the tokens.
  CHECK(rank_memory(config, {8, 1, 1}, grid, 2).total() == alone.total());
  config.train.ema.enabled = true;
  const RankMemory shard = rank_memory(config, {2, 3, 4}, grid, 2);
  const int64_t part = (sizes.parameters + 11) / 12;
  CHECK(shard.state() == (4 + 4 + 8 + 4) * part);
  // Two blocks and what this rank sends of one; a block's gradients, in fp32 with this rank's part of their sum.
  const int64_t block = sizes.largest_block, own = (block + 11) / 12;
  CHECK(shard.working == 2 * (sizes.outer + 2 * block + own) + 2 * block + 4 * (block + own));
  CHECK(shard.activations == alone.activations / 4);
  config.model.recompute = model::Recompute::kNone;  // weights stay until backward
  CHECK(rank_memory(config, {2, 3, 4}, grid, 2).working == 2 * sizes.parameters + 2 * block + 4 * (block + own));
  config.model.recompute = model::Recompute::kBlock;
  // LoRA: states of the adapters only, the base as it is kept.
  config.lora.rank = 2;
  config.model.weights_dtype = "bf16";
  config.lora.targets = {"blocks.*.attn1.to_q"};
  const RankMemory lora = rank_memory(config, {1, 1, 1}, grid, 2);
  const int64_t adapters = 2 * 2 * (e + e);
  CHECK(model_sizes(config).trainable == adapters);
  const ModelSizes kept = model_sizes(config);
  CHECK((kept.kept_bytes > 2 * kept.parameters && kept.kept_bytes < 4 * kept.parameters));  // matrices in bf16
  CHECK(lora.weights == kept.kept_bytes + 4 * adapters);
  CHECK(lora.optimizer == 8 * adapters);
  CHECK(lora.working == 0);  // used as they are kept
  const RankMemory parted = rank_memory(config, {1, 4, 1}, grid, 2);
  CHECK(parted.weights == (kept.kept_bytes + 3) / 4 + 4 * adapters);
  CHECK(parted.optimizer == 8 * adapters);
}

TEST_CASE("weights of fp8 products are sent in one byte a value") {
  RootConfig config = small_config();
  config.parallel.gather = Gather::kAgain;
  config.model.head_dim = 8;                          // E = 32
  config.model.own<model::WanConfig>().ffn_dim = 48;  // as fp8 products need, a multiple of 16
  ScaleOptions options;
  options.ranks = 8;
  RunEstimate run;
  run.grid = {1, 10, 10};
  run.buckets = {{{}, {}, 0, 4e6, 3e6}};
  const auto sent = [&](const std::string& compute) {
    config.model.linear_compute = compute;
    return estimate_mode(config, run, {"", {1, 8, 1}}, options).sent_bytes;
  };
  // q, k, v and the result of self attention, q and the result of cross attention, both maps of the feed-forward: of
  // two blocks, gathered twice by each rank from seven others.
  CHECK(sent("bf16") - sent("fp8") == Approx(7.0 / 8 * 2 * 2 * (6 * 32 * 32 + 2 * 32 * 48)));
}

TEST_CASE("communication and efficiency of each way by arithmetic") {
  RootConfig config = small_config();
  config.parallel.gather = Gather::kAgain;
  ScaleOptions options;
  options.ranks = 8;
  options.cluster = simple_cluster();
  options.flops_per_s = 1e9;
  RunEstimate run;
  const ModelSizes model = model_sizes(config);
  run.grid = {1, 10, 10};
  run.buckets = {{{}, {}, 0, 4e6, 3e6}};  // 4 ms per sample
  const auto of = [&](MeshSizes sizes) { return estimate_mode(config, run, {"", sizes}, options); };
  const double n = double(model.parameters), outer = double(model.outer), block = double(model.largest_block);

  // Data parallel: one bucket of all gradients; 3 rounds, two hosts' four ports; nothing of the last bucket hides.
  const ModeEstimate data = of({8, 1, 1});
  CHECK((data.share.passes == 1 && data.share.micro == 1));
  CHECK(data.compute_s == Approx(4e-3));
  CHECK(data.sent_bytes == Approx(2 * 7.0 / 8 * 4 * n));
  CHECK(data.waiting_s == Approx(30e-6 + 2 * 7.0 / 8 * 4 * n / 40e9));
  CHECK(data.efficiency() == Approx(data.compute_s / (data.compute_s + data.waiting_s)));

  // Sharded over all: gathers of bf16 once, of blocks twice, sums of fp32 once; all but the first of each kind hides in
  // 4 ms.
  const ModeEstimate sharded = of({1, 8, 1});
  CHECK(sharded.sent_bytes == Approx(7.0 / 8 * (2 * (n + 2 * block) + 4 * n)));
  // Copies at 3.6 TB/s: own parts and whole parameters are read and written in bf16 for each of two gathers; gradients
  // in fp32 are zeros, read and written, and own sums are read twice and written.
  const auto copies = [&](double ranks) {
    return (2 * 2 * (2 * n / ranks + 2 * n) + 4 * (3 * n + 3 * n / ranks)) / 3.6e12;
  };
  // What hides costs computing 1.25 of the seconds that it would take inside a host, 3 rounds of 1 us.
  const auto lost = [](double first, double all, double inside) { return 1.25 * inside * (1 - first / all); };
  const double sent = 2 * outer + 8 * block + 4 * outer + 8 * block, sent_first = 2 * outer + 2 * block + 4 * block;
  const double first_of_8 = 3 * 30e-6 + 7.0 / 8 * sent_first / 40e9;
  CHECK(sharded.waiting_s ==
        Approx(first_of_8 + copies(8) +
               lost(first_of_8, 8 * 30e-6 + 7.0 / 8 * sent / 40e9, 8 * 3e-6 + 7.0 / 8 * sent / 100e9)));

  // Hybrid, hosts of 4: the same inside a host of 2 rounds of 1 us, and sums of quarters over 2 hosts through one port.
  const ModeEstimate hybrid = of({2, 4, 1});
  CHECK(hybrid.sent_bytes == Approx(3.0 / 4 * (2 * (n + 2 * block) + 4 * n) + 4 * n / 4));
  const double first_of_4 = 3 * 2e-6 + 3.0 / 4 * sent_first / 100e9, of_4 = 8 * 2e-6 + 3.0 / 4 * sent / 100e9;
  const double between = 3 * 10e-6 + (outer + 2 * block) / 10e9, first_between = 10e-6 + block / 10e9;
  const double last = first_of_4 + first_between +
                      lost(first_of_4 + first_between, of_4 + between, of_4 + 3e-6 + (outer + 2 * block) / 100e9);
  CHECK(hybrid.waiting_s == Approx(last + copies(4)));

  // Sequence 4: two groups of 4 samples in passes of 1; 4 exchanges x 2 layers x (forward, again, backward) per pass of
  // a quarter of the tokens of width 24 in bf16, half of them (2 us) behind projections of 29 us, each read and written
  // once more at 3.6 TB/s, and the gather of 4 x 16 fp32 values per token; the four hold the state together.
  const ModeEstimate sequence = of({2, 1, 4});
  CHECK((sequence.share.samples == 4 && sequence.share.passes == 4));
  CHECK(sequence.compute_s == Approx(4e-3));
  const double exchange = 3.0 / 4 * 2 * 25 * 24, gather = 3.0 / 4 * 4 * 64 * 100;
  CHECK(sequence.sent_bytes ==
        Approx(4 * (24 * exchange + gather + 3.0 / 4 * (2 * (n + 2 * block) + 4 * n)) + 4 * n / 4));
  const double exchanged = 24 * 2 * (2 * 25 * 24) / 3.6e12;
  CHECK(sequence.waiting_s == Approx(4 * (13 * 2e-6 + (12 * exchange + gather) / 100e9 + exchanged) +
                                     3 * (first_of_4 + lost(first_of_4, of_4, of_4)) + last + 4 * copies(4)));

  // Where weights stay within a step, as `auto` has them with so much memory, blocks are gathered once.
  config.parallel.gather = Gather::kAuto;
  CHECK(of({1, 8, 1}).sent_bytes == Approx(7.0 / 8 * (2 * n + 4 * n)));

  // A batch that the groups cannot share grows to the next that they can.
  options.ranks = 16;
  CHECK(of({16, 1, 1}).global_batch == 16);
}

TEST_CASE("recomputation takes time where the memory keeps nothing") {
  RootConfig config = small_config();
  config.model.recompute = model::Recompute::kAuto;
  const RunEstimate run = estimate_run(config, configured_buckets(config));
  const BucketEstimate& sample = run.buckets.front();
  REQUIRE(sample.recomputed > 0.2 * sample.flops_sparse);
  ScaleOptions options;
  options.flops_per_s = 1e9;
  const auto seconds = [&](int64_t bytes) {
    options.memory_bytes = bytes;
    return estimate_mode(config, run, {"", {1, 1, 1}}, options).compute_s / double(config.train.global_batch);
  };
  CHECK(seconds(0) == Approx(sample.flops_sparse / 1e9));
  // Everything is kept.
  CHECK(seconds(int64_t{79} << 30) == Approx((sample.flops_sparse - sample.recomputed) / 1e9).epsilon(0.02));
  config.model.recompute = model::Recompute::kBlock;
  CHECK(seconds(int64_t{79} << 30) == Approx(sample.flops_sparse / 1e9));
}

TEST_CASE("slow links take what computing cannot hide, and slow what hides them") {
  RootConfig config = small_config();
  config.parallel.gather = Gather::kAgain;
  ScaleOptions options;
  options.ranks = 4;
  options.cluster = simple_cluster();
  options.cluster.inside.fill({0, 1e6});
  options.flops_per_s = 1e9;
  RunEstimate run;
  const ModelSizes model = model_sizes(config);
  run.grid = {1, 2, 5};
  run.buckets = {{{}, {}, 0, 1e6, 0.75e6}};
  const double n = double(model.parameters), block = double(model.largest_block);
  const ModeEstimate sharded = estimate_mode(config, run, {"", {1, 4, 1}}, options);
  CHECK(sharded.share.passes == 2);
  const double copied = 2 * (2 * 2 * (2 * n / 4 + 2 * n) + 4 * (3 * n + 3 * n / 4)) / 3.6e12;
  CHECK(sharded.waiting_s == Approx(2 * (3.0 / 4 * (6 * n + 4 * block) / 1e6 - 1e-3 + 1.25 * 1e-3) +
                                  copied));
}

TEST_CASE("the report lists the ways that fit and batches that would work") {
  RootConfig config = small_config();
  config.train.global_batch = 12;
  RunEstimate run = estimate_run(config, configured_buckets(config));
  ScaleOptions options;
  options.ranks = 16;
  const std::string text = scale_to_text(config, run, options);
  INFO(text);
  CHECK(test::contains(text, "* data parallel "));
  CHECK(test::contains(text, "  hybrid + sequence 4"));
  CHECK_FALSE(test::contains(text, "sequence 8"));  // 4 heads
  CHECK(test::contains(text, "train.global_batch 12 is no multiple; use 16"));
  CHECK(test::contains(
      text, "! 8 groups of ranks take samples of their own: train.global_batch 12 is no multiple; use 8 or 16"));
  config.parallel.sequence = 3;
  CHECK(test::contains(test::refusal_of([&] { scale_to_text(config, run, options); }), "start 15 or 18 ranks"));
}
