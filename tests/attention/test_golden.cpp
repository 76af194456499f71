// Golden vectors made by the official code and by an independent program (fixtures/golden/README.md).
#include <ATen/ATen.h>

#include "apps/bench/golden_check.h"
#include "core/check.h"
#include "model/weights/safetensors.h"
#include "support/attention_oracle.h"
#include "support/catch.h"
#include "support/paths.h"

using namespace vmoba;

namespace {

const std::string kFolder = test::fixtures() + "/golden";

std::string describe(const bench::GoldenResult& r) {
  std::string text = r.name + ": mask " + std::to_string(r.mask_differences);
  for (const auto& [name, error] : r.error)
    text += fmt::format(", {} {:.2e} (limit {:.2e})", name, error, r.limit.at(name));
  return text;
}

}  // namespace

TEST_CASE("all golden vectors are here") {
  CHECK(bench::golden_files(kFolder).size() == 49);
  CHECK_THROWS_AS(bench::golden_files(kFolder + "/missing"), Error);
  CHECK_THROWS_AS(bench::golden_files(test::source_dir() + "/src"), Error);
}

TEST_CASE("the reference agrees with every golden vector") {
  for (const std::string& path : bench::golden_files(kFolder)) {
    const bench::GoldenCase golden = bench::load_golden(path);
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
      const bench::GoldenResult result =
          bench::check_golden(golden, attention::Implementation::kReference, dtype, at::kCPU);
      INFO(c10::toString(dtype) << " " << describe(result));
      CHECK(result.passed());
      if (dtype != at::kBFloat16)
        for (const auto& [name, limit] : result.limit) CHECK(limit == 1e-5);
    }
  }
}

TEST_CASE("self_attention gives the golden outputs, gradients and density") {
  for (const std::string& path : bench::golden_files(kFolder)) {
    const bench::GoldenCase golden = bench::load_golden(path);
    INFO(golden.name);
    const auto leaf = [](const at::Tensor& x) { return x.to(at::kFloat).requires_grad_(); };
    const at::Tensor q = leaf(golden.q_BZND), k = leaf(golden.k_BZND), v = leaf(golden.v_BZND);
    attention::AttentionStats stats;
    std::vector<at::Tensor> learnt;
    for (const at::Tensor& tensor : golden.learnt) learnt.push_back(leaf(tensor));
    const at::Tensor out =
        attention::self_attention(q, k, v, golden.grid, golden.text_tokens, golden.layer, &stats, {}, learnt);
    out.backward(golden.dout_BZND.to(at::kFloat));
    if (!learnt.empty()) CHECK(bench::relative_error(learnt[0].grad(), golden.expected.at("dbeta")) < 1e-5);
    CHECK(bench::relative_error(out, golden.expected.at("out")) < 1e-5);
    CHECK(bench::relative_error(q.grad(), golden.expected.at("dq")) < 1e-5);
    CHECK(bench::relative_error(k.grad(), golden.expected.at("dk")) < 1e-5);
    CHECK(bench::relative_error(v.grad(), golden.expected.at("dv")) < 1e-5);

    const auto block = test::oracle_block_of_token(golden.grid, golden.layer.chunk);
    const at::Tensor allowed = test::oracle_allowed(golden.mask_BNCS, block, q.size(1));
    const double density = allowed.to(at::kDouble).mean().item<double>();
    CHECK(stats.densities().at(choice_word(golden.layer.partition)) == Approx(density).epsilon(1e-12));
    CHECK(stats.densities().at("all") == Approx(density).epsilon(1e-12));
  }
}

TEST_CASE("every small case passes, also by its name") {
  std::vector<bench::AttentionCase> cases = bench::small_cases();
  for (const auto* more : {&bench::tile_cases(), &bench::remainder_cases(), &bench::share_cases()})
    cases.insert(cases.end(), more->begin(), more->end());
  for (const bench::AttentionCase& c : cases)
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
      const bench::GoldenResult result =
          bench::check_case(bench::find_case(c.name), attention::Implementation::kReference, dtype, at::kCPU);
      INFO(c10::toString(dtype) << " " << describe(result));
      CHECK(result.error.size() == 4);
      CHECK(result.passed());
    }
  CHECK_THROWS_AS(bench::find_case("none"), Error);
  for (const bench::AttentionCase& c : bench::published_cases())
    CHECK_THROWS_AS(bench::check_case(c, attention::Implementation::kReference, at::kFloat, at::kCPU), Error);
}

TEST_CASE("the check notices a wrong mask, a wrong value and NaN") {
  const bench::GoldenCase good = bench::load_golden(bench::golden_files(kFolder).front());
  REQUIRE(bench::check_golden(good, attention::Implementation::kReference, at::kFloat, at::kCPU).passed());

  bench::GoldenCase wrong_mask = good;
  wrong_mask.mask_BNCS = good.mask_BNCS.clone(at::MemoryFormat::Contiguous);
  wrong_mask.mask_BNCS.view(-1)[17].logical_not_();
  const auto mask_result = bench::check_golden(wrong_mask, attention::Implementation::kReference, at::kFloat, at::kCPU);
  CHECK(mask_result.mask_differences == 1);
  CHECK_FALSE(mask_result.passed());

  for (const char* name : {"out", "lse", "dq", "dk", "dv"})
    for (const double value : {1.0, std::nan("")}) {
      bench::GoldenCase wrong = good;
      wrong.expected[name] = good.expected.at(name).clone(at::MemoryFormat::Contiguous);
      wrong.expected[name].view(-1)[5] += value;
      const auto result = bench::check_golden(wrong, attention::Implementation::kReference, at::kFloat, at::kCPU);
      INFO(name << " " << value);
      CHECK(result.mask_differences == 0);
      CHECK_FALSE(result.passed());
      wrong.expected = good.expected;
    }
}

TEST_CASE("a vector file with something missing or out of range is an input error") {
  const model::SafetensorsFile file(kFolder + "/official_thr_block_1d_t0.25_g6x8x8_c1_h2_d32_b1.safetensors");
  const std::string copy = "golden_mutant.safetensors";
  const auto written = [&](auto change) {
    std::vector<model::NamedTensor> tensors;
    for (const auto& [name, info] : file.tensors()) tensors.push_back({name, file.tensor(name)});
    auto metadata = file.metadata();
    change(tensors, metadata);
    model::write_safetensors(copy, tensors, metadata);
    return copy;
  };
  CHECK(bench::load_golden(written([](auto&, auto&) {})).mask_BNCS.size(2) == 6);
  CHECK_THROWS_AS(bench::load_golden(written([](auto&, auto& m) { m.erase("grid"); })), Error);
  CHECK_THROWS_AS(bench::load_golden(written([](auto&, auto& m) { m["grid"] = "6x8"; })), Error);
  CHECK_THROWS_AS(bench::load_golden(written([](auto&, auto& m) { m["grid"] = "6x8x9"; })), Error);
  CHECK_THROWS_AS(bench::load_golden(written([](auto&, auto& m) { m["chunk"] = "2"; })), Error);
  CHECK_THROWS_AS(bench::load_golden(written([](auto&, auto& m) { m["chunk"] = "1,1"; })), Error);
  CHECK_THROWS_AS(bench::load_golden(written([](auto&, auto& m) { m["pool"] = "heads"; })), Error);
  CHECK_THROWS_AS(bench::load_golden(written([](auto&, auto& m) { m["tau"] = "a lot"; })), Error);
  CHECK_THROWS_AS(bench::load_golden(written([](auto&, auto& m) { m["batch"] = "2"; })), Error);
  CHECK_THROWS_AS(bench::load_golden(written([](auto& t, auto&) { t.pop_back(); })), Error);
  std::remove(copy.c_str());
}
