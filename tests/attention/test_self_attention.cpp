#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include "apps/bench/attention_cases.h"
#include "attention/dispatch.h"
#include "attention/full/query_runs.h"
#include "attention/kernels/kernels.h"
#include "attention/reference/reference.h"
#include "attention/reference/tasks.h"
#include "attention/vmoba/vmoba.h"
#include "core/check.h"
#include "support/attention_oracle.h"
#include "support/catch.h"

using namespace vmoba;
using namespace vmoba::attention;
using bench::AttentionCase;
using bench::case_tensor;
using bench::normal_tensor;
using bench::small_cases;

namespace {

at::Tensor full(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const at::Tensor scores = at::einsum("bind,bjnd->bnij", {q, k}) / std::sqrt(static_cast<double>(q.size(3)));
  return at::einsum("bnij,bjnd->bind", {scores.softmax(-1), v});
}

// The same with the case's padded text.
at::Tensor full(const AttentionCase& c, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const std::vector<int64_t> one_block(size_t(c.grid.tokens()), 0);
  const at::Tensor everything = at::ones({c.batch, c.heads, 1, c.grid.tokens()}, at::kBool);
  return test::oracle_attention(q, k, v, everything, one_block, c.text_lengths);
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).abs().max() / b.abs().max().to(at::kDouble)).item<double>();
}

at::Tensor run(const AttentionCase& c, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  return self_attention(q, k, v, c.grid, c.text_tokens, c.layer, nullptr, c.text_lengths);
}

struct Results {
  at::Tensor out, dq, dk, dv;
};

Results run_with_gradients(const AttentionCase& c, const at::Tensor& q0, const at::Tensor& k0, const at::Tensor& v0,
                           const at::Tensor& dout) {
  const at::Tensor q = q0.detach().requires_grad_(), k = k0.detach().requires_grad_(), v = v0.detach().requires_grad_();
  const at::Tensor out = run(c, q, k, v);
  const auto d = torch::autograd::grad({out}, {q, k, v}, {dout});
  return {out.detach(), d[0], d[1], d[2]};
}

Results run_case(const AttentionCase& c, at::ScalarType dtype) {
  return run_with_gradients(c, case_tensor(c, "q", dtype), case_tensor(c, "k", dtype), case_tensor(c, "v", dtype),
                            case_tensor(c, "dout", dtype));
}

bool same_bits(const Results& a, const Results& b) {
  return at::equal(a.out, b.out) && at::equal(a.dq, b.dq) && at::equal(a.dk, b.dk) && at::equal(a.dv, b.dv);
}

}  // namespace

TEST_CASE("outputs and gradients agree with masked softmax over all keys") {
  const AttentionCase c = GENERATE(from_range(small_cases()));
  DYNAMIC_SECTION(c.name) {
    const auto leaf = [&](const char* name) { return case_tensor(c, name).requires_grad_(); };
    const at::Tensor q = leaf("q"), k = leaf("k"), v = leaf("v"), dout = case_tensor(c, "dout");
    const auto block = test::oracle_block_of_token(c.grid, c.layer.chunk);
    std::vector<at::Tensor> masks;
    for (int64_t b = 0; b < c.batch; ++b) {
      const auto video = [&](const at::Tensor& x) { return x.detach()[b].slice(0, 0, c.grid.tokens()); };
      masks.push_back(test::oracle_select(test::oracle_gate(video(q), video(k), block), block, vmoba_rule(c.layer)));
    }
    const at::Tensor expected = test::oracle_attention(q, k, v, at::stack(masks), block, c.text_lengths);
    const auto d = torch::autograd::grad({expected}, {q, k, v}, {dout});

    const Results found = run_case(c, at::kDouble);
    CHECK(difference(found.out, expected.detach()) < 1e-12);
    CHECK(difference(found.dq, d[0]) < 1e-12);
    CHECK(difference(found.dk, d[1]) < 1e-12);
    CHECK(difference(found.dv, d[2]) < 1e-12);
    const Results single = run_case(c, at::kFloat);
    CHECK(single.out.scalar_type() == at::kFloat);
    CHECK(difference(single.out, expected.detach()) < 1e-5);
    CHECK(difference(single.dq, d[0]) < 1e-5);
    CHECK(difference(single.dk, d[1]) < 1e-5);
    CHECK(difference(single.dv, d[2]) < 1e-5);
  }
}

TEST_CASE("bf16 inputs are computed in fp32 and rounded once") {
  for (const AttentionCase& c : small_cases()) {
    INFO(c.name);
    const auto rounded = [&](const char* name) { return case_tensor(c, name, at::kBFloat16); };
    const at::Tensor q = rounded("q"), k = rounded("k"), v = rounded("v"), dout = rounded("dout");
    const Results half = run_with_gradients(c, q, k, v, dout);
    const auto up = [](const at::Tensor& x) { return x.to(at::kFloat); };
    const Results single = run_with_gradients(c, up(q), up(k), up(v), up(dout));
    CHECK(half.out.scalar_type() == at::kBFloat16);
    CHECK(half.dq.scalar_type() == at::kBFloat16);
    if (c.layer.sparse() && block_count(c.grid, c.layer) > 1) CHECK(at::equal(half.out, single.out.to(at::kBFloat16)));
    // dq and dk see the rounded output (2^-9) through rowsum(dout * out), then are rounded themselves.
    CHECK(difference(half.dq, single.dq) < 2e-2);
    CHECK(difference(half.dk, single.dk) < 2e-2);
    CHECK(difference(half.dv, single.dv) < 2e-2);
  }
}

TEST_CASE("taking everything equals full attention") {
  for (AttentionCase c : small_cases()) {
    for (const Pool pool : {Pool::kQueryHead, Pool::kBlock, Pool::kHeadGlobal, Pool::kOverall}) {
      c.layer = bench::threshold_layer(c.layer.chunk, pool, 1.0);
      INFO(c.name << " pool " << int(pool));
      const at::Tensor q = case_tensor(c, "q"), k = case_tensor(c, "k"), v = case_tensor(c, "v");
      const at::Tensor expected = full(c, q, k, v);
      CHECK(difference(run(c, q, k, v), expected) < 1e-13);
      if (pool == Pool::kBlock) continue;
      c.layer = bench::topk_layer(c.layer.chunk, pool, 1000);
      CHECK(difference(run(c, q, k, v), expected) < 1e-13);
    }
    c.layer = {};
    const at::Tensor q = case_tensor(c, "q"), k = case_tensor(c, "k"), v = case_tensor(c, "v");
    CHECK(difference(run(c, q, k, v), full(c, q, k, v)) < 1e-13);
  }
}

TEST_CASE("one block in all equals full attention, through the stages too") {
  AttentionCase c = {"whole", {3, 2, 4}, bench::topk_layer({3, 0, 0}, Pool::kHeadGlobal, 1), 3, 2, 2, 8};
  const at::Tensor q = case_tensor(c, "q"), k = case_tensor(c, "k"), v = case_tensor(c, "v");
  CHECK(difference(run(c, q, k, v), full(q, k, v)) < 1e-13);
  const BlockForward forward =
      block_forward(reference::engine(), make_block_problem(q, c.grid, c.text_tokens, c.layer), q, k, v);
  CHECK(difference(forward.attended.out_BZND, full(q, k, v)) < 1e-13);
  CHECK(at::equal(forward.pairs_N, at::full({2}, 2.0 * 27 * 27, at::kDouble)));
}

TEST_CASE("a sample does not depend on its neighbours in the batch") {
  for (AttentionCase c : small_cases()) {
    c.batch = 3;
    INFO(c.name);
    const at::Tensor q = case_tensor(c, "q", at::kFloat), k = case_tensor(c, "k", at::kFloat),
                     v = case_tensor(c, "v", at::kFloat);
    const at::Tensor together = run(c, q, k, v);
    AttentionCase one = c;
    one.batch = 1;
    for (int64_t b = 0; b < 3; ++b) {
      if (!c.text_lengths.empty()) one.text_lengths = {c.text_lengths[size_t(b)]};
      const auto sample = [&](const at::Tensor& x) { return x.slice(0, b, b + 1); };
      CHECK(at::equal(sample(together), run(one, sample(q), sample(k), sample(v))));
    }
  }
}

TEST_CASE("text changes no selection, is seen by all and sees all") {
  AttentionCase c = {"text", {4, 3, 4}, bench::threshold_layer({1, 0, 0}, Pool::kHeadGlobal, 0.25), 6, 1, 2, 8};
  const int64_t video = c.grid.tokens();
  const at::Tensor q = case_tensor(c, "q"), k = case_tensor(c, "k"), v = case_tensor(c, "v");
  const auto mask_of = [&](const at::Tensor& q0, const at::Tensor& k0, const at::Tensor& v0, int64_t text) {
    const BlockProblem problem = make_block_problem(q0, c.grid, text, c.layer);
    return attends_BNCS(problem, block_select(reference::engine(), problem, q0, k0, v0));
  };
  const auto cut = [&](const at::Tensor& x) { return x.slice(1, 0, video); };
  CHECK(at::equal(mask_of(q, k, v, c.text_tokens), mask_of(cut(q), cut(k), cut(v), 0)));
  // Text rows are rows of full attention.
  CHECK(difference(run(c, q, k, v).slice(1, video), full(q, k, v).slice(1, video)) < 1e-13);
  // Every video row moves when the last text value does.
  at::Tensor moved = v.clone();
  moved.slice(1, c.tokens() - 1).add_(1.0);
  CHECK((run(c, q, k, moved) - run(c, q, k, v)).abs().amax(3).min().item<double>() > 1e-4);
}

TEST_CASE("strided inputs give the same bits") {
  for (const AttentionCase& c : small_cases()) {
    INFO(c.name);
    const at::Tensor packed =
        normal_tensor(c.name + "packed", {c.batch, c.tokens(), 3, c.heads, c.head_dim}, at::kFloat);
    const at::Tensor q = packed.select(2, 0), k = packed.select(2, 1);
    const at::Tensor v = packed.select(2, 2).transpose(1, 2).contiguous().transpose(1, 2);
    const at::Tensor dout = case_tensor(c, "dout", at::kFloat);
    CHECK(same_bits(run_with_gradients(c, q, k, v, dout),
                    run_with_gradients(c, q.contiguous(), k.contiguous(), v.contiguous(), dout)));
    // A gradient that is expanded from one number, as sum() gives.
    const at::Tensor ones = at::ones({}, at::kFloat).expand(q.sizes());
    CHECK(same_bits(run_with_gradients(c, q, k, v, ones), run_with_gradients(c, q, k, v, ones.contiguous())));
  }
}

TEST_CASE("results do not depend on the number of threads") {
  const int before = at::get_num_threads();
  for (const int64_t heads : {1, 3}) {
    AttentionCase c = {"threads", {6, 13, 11}, bench::threshold_layer({2, 5, 4}, Pool::kHeadGlobal, 0.25), 7, 1,
                       heads,     64};
    for (const bool sparse : {true, false}) {
      if (!sparse) c.layer = {};
      INFO("heads " << heads << " sparse " << sparse);
      at::set_num_threads(1);
      const Results one = run_case(c, at::kFloat);
      for (const int threads : {2, 3, 4}) {
        at::set_num_threads(threads);
        CHECK(same_bits(run_case(c, at::kFloat), one));
      }
    }
  }
  at::set_num_threads(before);
}

TEST_CASE("tasks run once each, and the first exception comes back") {
  for (const bool on_cpu : {true, false})
    for (const int64_t count : {0, 1, 2, 100}) {
      std::vector<int> ran(size_t(count), 0);
      reference::for_each_task(count, on_cpu, [&](int64_t i) { ++ran[size_t(i)]; });
      CHECK(std::all_of(ran.begin(), ran.end(), [](int n) { return n == 1; }));
    }
  CHECK_THROWS_AS(reference::for_each_task(5, true, [](int64_t i) { VMOBA_CHECK(i != 3, "three"); }), Error);
}

TEST_CASE("scores held at a time stay bounded at 10,000 tokens and far beyond") {
  for (const bool on_cpu : {true, false}) {
    const int64_t most = on_cpu ? reference::kScoresPerChunkCpu : reference::kScoresPerChunkGpu;
    CHECK(most * int64_t(sizeof(float)) <= int64_t(256) << 20);
    for (const int64_t keys : {int64_t(1), int64_t(160), int64_t(10'000), int64_t(55'296), int64_t(1'000'000)}) {
      CHECK(reference::rows_per_chunk(keys, on_cpu) * keys <= most);
      CHECK(reference::rows_per_chunk(keys, on_cpu) >= 1);
    }
    CHECK(reference::rows_per_chunk(int64_t(1) << 40, on_cpu) == 1);
  }
}

TEST_CASE("NaN in gives NaN out and ends") {
  for (const AttentionCase& c : small_cases()) {
    INFO(c.name);
    for (const int which : {0, 1, 2}) {
      std::vector<at::Tensor> x = {case_tensor(c, "q", at::kFloat), case_tensor(c, "k", at::kFloat),
                                   case_tensor(c, "v", at::kFloat)};
      x[size_t(which)][0][1].fill_(std::nan(""));
      const Results r = run_with_gradients(c, x[0], x[1], x[2], case_tensor(c, "dout", at::kFloat));
      CHECK(r.out[0][1].isnan().all().item<bool>());
      CHECK(r.dv.isnan().any().item<bool>() == (which != 2));
      CHECK(r.dq.isnan().any().item<bool>());
    }
  }
}

TEST_CASE("statistics record the density of sparse, single-block and full layers") {
  AttentionStats stats;
  AttentionCase c = {"stats", {4, 2, 3}, bench::topk_layer({1, 0, 0}, Pool::kQueryHead, 2), 0, 2, 3, 8};
  const at::Tensor q = case_tensor(c, "q"), k = case_tensor(c, "k"), v = case_tensor(c, "v");
  self_attention(q, k, v, c.grid, 0, c.layer, &stats);
  CHECK(stats.densities().at("temporal") == Approx(0.5));
  self_attention(q, k, v, c.grid, 0, bench::threshold_layer({0, 2, 3}, Pool::kBlock, 0.5), &stats);
  CHECK(stats.densities().at("spatial") == Approx(1.0));
  self_attention(q, k, v, c.grid, 0, LayerAttention{}, &stats);
  CHECK(stats.densities().at("full") == Approx(1.0));
  CHECK(stats.densities().at("all") == Approx(2.5 / 3));
  stats.clear();
  c.layer.index = 5;
  c.layer.first_head = 3;
  self_attention(q, k, v, c.grid, 0, c.layer, &stats);
  const auto by_head = stats.sums().by_head;
  REQUIRE(by_head.size() == 3);
  for (int64_t n = 3; n < 6; ++n)  // 4 blocks of 6 of 24 tokens, of 2 samples
    CHECK(by_head.at({5, n}) == AttentionStats::Pairs{2 * 24.0 * 12, 2 * 24.0 * 24});
}

TEST_CASE("cross attention is full attention over other tokens") {
  const at::Tensor q = normal_tensor("q", {2, 9, 3, 8}).requires_grad_();
  const at::Tensor k = normal_tensor("k", {2, 5, 3, 8}).requires_grad_();
  const at::Tensor v = normal_tensor("v", {2, 5, 3, 8}).requires_grad_();
  const at::Tensor dout = normal_tensor("dout", {2, 9, 3, 8});
  const at::Tensor out = cross_attention(q, k, v), expected = full(q, k, v);
  CHECK(difference(out.detach(), expected.detach()) < 1e-13);
  const auto d = torch::autograd::grad({out}, {q, k, v}, {dout});
  const auto e = torch::autograd::grad({expected}, {q, k, v}, {dout});
  for (size_t i = 0; i < 3; ++i) CHECK(difference(d[i], e[i]) < 1e-13);
}

TEST_CASE("cross attention in runs of queries is that in one, and a tape gives back what it recorded") {
  const at::Tensor q = normal_tensor("q", {2, 12, 3, 8}).requires_grad_();
  const at::Tensor k = normal_tensor("k", {2, 5, 3, 8}).requires_grad_();
  const at::Tensor v = normal_tensor("v", {2, 5, 3, 8}).requires_grad_();
  const at::Tensor dout = normal_tensor("dout", {2, 12, 3, 8});
  const at::Tensor expected = full(q, k, v);
  const auto e = torch::autograd::grad({expected}, {q, k, v}, {dout});
  for (const int64_t runs : {1, 2, 4}) {
    ResultTape recorded;
    CHECK(difference(attend_in_runs(q, k, v, runs, &recorded).detach(), expected.detach()) < 1e-13);
    ResultTape replayed(recorded.tensors());
    for (ResultTape* tape : {static_cast<ResultTape*>(nullptr), &replayed}) {
      const at::Tensor out = attend_in_runs(q, k, v, runs, tape);
      CHECK(difference(out.detach(), expected.detach()) < 1e-13);
      const auto d = torch::autograd::grad({out}, {q, k, v}, {dout});
      for (size_t i = 0; i < 3; ++i) CHECK(difference(d[i], e[i]) < 1e-13);
    }
  }
}

TEST_CASE("runs of queries fill a GPU with blocks of keys, divide the queries and are not short") {
  CHECK(query_runs(1, 55296, 12, 512) == 6);  // 6 x 48 blocks for twice 132 multiprocessors
  CHECK(query_runs(1, 32760, 40, 512) == 2);
  CHECK(query_runs(4, 55296, 24, 512) == 1);
  CHECK(query_runs(1, 55296, 12, 77) == 24);  // 22 and 23 do not divide
  CHECK(query_runs(1, 4096, 12, 512) == 1);
  CHECK(query_runs(1, 55291, 12, 512) == 1);
  CHECK(query_runs(1, 55296, 12, 0) == 1);
}

TEST_CASE("cross attention over padded keys sees each sample's own") {
  const at::Tensor q = normal_tensor("q", {3, 9, 2, 8}).requires_grad_();
  const at::Tensor k = normal_tensor("k", {3, 5, 2, 8}).requires_grad_();
  const at::Tensor v = normal_tensor("v", {3, 5, 2, 8}).requires_grad_();
  const at::Tensor dout = normal_tensor("dout", {3, 9, 2, 8});
  for (const std::vector<int64_t>& lengths : std::vector<std::vector<int64_t>>{{2, 5, 1}, {3, 3, 3}, {5, 5, 5}}) {
    const at::Tensor hidden_BL = at::arange(5).unsqueeze(0) >= at::tensor(lengths).unsqueeze(1);
    const at::Tensor scores = at::einsum("bind,bjnd->bnij", {q, k}) / std::sqrt(8.0);
    const at::Tensor p =
        scores.masked_fill(hidden_BL.view({3, 1, 1, 5}), -std::numeric_limits<double>::infinity()).softmax(-1);
    const at::Tensor expected = at::einsum("bnij,bjnd->bind", {p, v});
    const at::Tensor out = cross_attention(q, k, v, lengths);
    CHECK(difference(out.detach(), expected.detach()) < 1e-13);
    const auto d = torch::autograd::grad({out}, {q, k, v}, {dout});
    const auto e = torch::autograd::grad({expected}, {q, k, v}, {dout});
    for (size_t i = 0; i < 3; ++i) CHECK(difference(d[i], e[i]) < 1e-13);
  }
  const auto refused = [&](const std::vector<int64_t>& lengths) {
    CHECK_THROWS_AS(cross_attention(q, k, v, lengths), Error);
  };
  refused({2, 5});
  refused({2, 5, 0});
  refused({2, 5, 6});
}

TEST_CASE("text beyond a sample's length is seen by nobody and gives zeros") {
  const AttentionCase& c = bench::find_case("padded-text");
  const int64_t video = c.grid.tokens();
  const Results r = run_case(c, at::kDouble);
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t end = video + c.text_lengths[size_t(b)];
    for (const at::Tensor& x : {r.out, r.dq, r.dk, r.dv}) {
      CHECK_FALSE(x[b].slice(0, end).any().item<bool>());
      CHECK(x[b].slice(0, 0, end).abs().amax(2).min().item<double>() > 0);
    }
  }
  const auto refused = [&](const std::vector<int64_t>& lengths) {
    const at::Tensor x = case_tensor(c, "q");
    CHECK_THROWS_AS(self_attention(x, x, x, c.grid, c.text_tokens, c.layer, nullptr, lengths), Error);
  };
  refused({2, 6});
  refused({2, 6, -1});
  refused({2, 6, 7});
}

// Memory is counted with tensors on the CPU, in the middle of training: a failed call about a GPU would be blamed on
// the step's next launch.
TEST_CASE("no GPU is asked which kernels a tensor on the CPU wants") {
  CHECK(kernels::kernel_family(-1) == 0);
  CHECK(kernels::kernel_family(-1, 80) == 80);
  CHECK(kernels::kernel_family(-1, 90) == 90);
}

TEST_CASE("what cannot be computed is refused with what was found") {
  const Grid grid = {2, 3, 2};
  const LayerAttention layer = bench::threshold_layer({1, 0, 0}, Pool::kHeadGlobal, 0.25);
  const at::Tensor x = normal_tensor("x", {1, 12, 2, 8}, at::kFloat);
  const auto message = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Grid& g, int64_t text,
                           const LayerAttention& l) -> std::string {
    try {
      self_attention(q, k, v, g, text, l, nullptr);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::kInput);
      return e.what();
    }
    return "accepted";
  };
  const auto has = [](const std::string& text, const std::string& part) {
    INFO(text);
    return text.find(part) != std::string::npos;
  };
  CHECK(message(x, x, x, grid, 0, layer) == "accepted");
  CHECK(has(message(at::Tensor(), x, x, grid, 0, layer), "q as a non-empty"));
  CHECK(has(message(x, x[0], x, grid, 0, layer), "k as a non-empty"));
  CHECK(has(message(x, x, x.slice(0, 0, 0), grid, 0, layer), "v as a non-empty"));
  CHECK(has(message(x.to(at::kHalf), x, x, grid, 0, layer), "fp32, fp64 or bf16"));
  CHECK(has(message(x, x.to(at::kDouble), x, grid, 0, layer), "k like q"));
  CHECK(has(message(x, x, x.to(at::kBFloat16), grid, 0, layer), "v like q"));
  CHECK(has(message(x, x.slice(1, 0, 6), x, grid, 0, layer), "one shape"));
  CHECK(has(message(x, x, x, grid, 1, layer), "13 tokens"));
  CHECK(has(message(x, x, x, {2, 3, 3}, 0, layer), "18 tokens"));
  CHECK(has(message(x, x, x, grid, -1, layer), "text tokens"));
  CHECK(has(message(x, x, x, {0, 3, 2}, 0, layer), "grid"));
  const auto changed = [&](auto change) {
    LayerAttention l = layer;
    change(l);
    return message(x, x, x, grid, 0, l);
  };
  CHECK(has(changed([](auto& l) { vmoba_rule(l).tau = -1; }), "tau"));
  CHECK(has(changed([](auto& l) { vmoba_rule(l).tau = std::nan(""); }), "tau"));
  CHECK(has(changed([](auto& l) { l.chunk = {-1, 0, 0}; }), "chunk"));
  CHECK(has(changed([](auto& l) { l = bench::topk_layer({1, 0, 0}, Pool::kHeadGlobal, 0); }), "topk"));
  CHECK(has(changed([](auto& l) { l = bench::topk_layer({1, 0, 0}, Pool::kBlock, 2); }), "block"));
  CHECK(has(changed([](auto& l) { l.implementation = Implementation::kNative; }), "attention.implementation"));
  CHECK_THROWS_AS(cross_attention(x, x.slice(3, 0, 4), x.slice(3, 0, 4)), Error);
  CHECK_THROWS_AS(cross_attention(x, x, x.slice(1, 0, 4)), Error);
  CHECK_THROWS_AS(cross_attention(x, x.to(at::kDouble), x), Error);
}

TEST_CASE("a second derivative is refused") {
  const AttentionCase c = small_cases().front();
  const at::Tensor q = case_tensor(c, "q").requires_grad_();
  const at::Tensor out = run(c, q, q, q);
  CHECK_THROWS_AS(torch::autograd::grad({out.sum()}, {q}, {}, std::nullopt, /*create_graph=*/true), Error);
}
