// Weights and inputs of blocks that wait in the host's memory: the bookkeeping of their places on the device, and whole
// models, whose outputs and gradients are the same bits as without.
#include <ATen/ATen.h>

#include <algorithm>

#include "model/common/host_inputs.h"
#include "model/common/weight_ring.h"
#include "model/hunyuan_fixture.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/same_tensors.h"

using namespace vmoba::model;
using vmoba::test::check_same;
using vmoba::test::contains;

namespace {

using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

WeakStorage storage_of(const at::Tensor& tensor) {
  return WeakStorage(tensor.storage().getWeakStorageImpl());
}

// A unit's values say which it is.
std::vector<at::Tensor> unit(int64_t number) {
  return {at::full({3, 5}, double(number), at::kBFloat16), at::full({7}, double(10 * number), at::kFloat),
          at::full({2, 4}, double(number), at::kFloat).to(at::kFloat8_e4m3fn)};
}

bool holds(const std::vector<at::Tensor>& found, int64_t number) {
  const std::vector<at::Tensor> expected = unit(number);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (found[i].scalar_type() != expected[i].scalar_type() || found[i].sizes() != expected[i].sizes()) return false;
    if (!at::equal(found[i].to(at::kFloat), expected[i].to(at::kFloat))) return false;
  }
  return true;
}

std::vector<Adapter> adapters_of(const Dit& model, const std::vector<std::string>& maps) {
  std::vector<Adapter> out;
  const auto values = [](at::IntArrayRef sizes) { return at::linspace(-0.3, 0.5, sizes[0] * sizes[1]).view(sizes); };
  for (const Parameter& p : model.parameters()) {
    if (!p.name.ends_with(".weight") || p.shape().size() != 2) continue;
    const std::string module = p.name.substr(0, p.name.size() - 7);
    const auto fits = [&](const std::string& map) { return module.ends_with(map); };
    if (std::none_of(maps.begin(), maps.end(), fits)) continue;
    out.push_back({module, {values({3, p.shape()[1]}), values({p.shape()[0], 3}), 0.7}});
  }
  return out;
}

const std::vector<std::string> kMaps = {"blocks.0.attn1.to_q", "blocks.1.attn1.to_out.0",
                                        "blocks.1.attn2.to_k", "ffn.net.2",
                                        "attn.to_v",           "patch_embedding"};

struct Case {
  Offload offload = Offload::kNone;
  RecomputePolicy policy;
  int64_t resident = 0;  // blocks that stay on the device
};

// A slot's bytes for this model.
int64_t slot_bytes(const ModelConfig& config) {
  const auto slots = std::make_shared<RingSlots>(at::kCPU);
  WeightRing ring(slots);
  make_dit(config, small_vmoba(), 3, at::kCPU, &ring);
  return slots->bytes() / 2;
}

// Outputs and gradients of inputs and adapters.
std::map<std::string, at::Tensor> outcome(const ModelConfig& config, const std::string& fixture, const Case& c,
                                          at::ScalarType dtype) {
  const auto slots = std::make_shared<RingSlots>(at::kCPU, c.resident * slot_bytes(config));
  WeightRing ring(slots);
  HostInputs inputs(at::kCPU);
  const auto model = make_dit(config, small_vmoba(), 3, at::kCPU, offloads_weights(c.offload) ? &ring : nullptr);
  const std::vector<Adapter> adapters = adapters_of(*model, kMaps);
  REQUIRE(adapters.size() > 2);
  model->attach(adapters);
  ForwardOptions options{dtype};
  options.recompute = RecomputePlan(std::vector<RecomputePolicy>(size_t(layer_count(config)), c.policy));
  if (offloads_activations(c.offload)) options.host_inputs = &inputs;
  const SafetensorsFile file(fixture_path(fixture + ".safetensors"));
  std::map<std::string, at::Tensor> out;
  for (int pass = 0; pass < 2; ++pass) {  // the second begins with what the first left on the device
    for (const Parameter& p : model->trainable()) p.tensor.mutable_grad() = at::Tensor();
    out = config.architecture == "wan" ? run_wan(*model, file, options) : run_hunyuan(*model, file, options);
    for (const Parameter& p : model->trainable()) out["grad." + p.name] = p.tensor.grad();
  }
  if (offloads_activations(c.offload)) CHECK(inputs.host_bytes() > 0);
  if (offloads_weights(c.offload) && c.policy.enabled) {
    // Forward all blocks; backward all but the last two, which are there; forward again all but the first two.
    int64_t blocks = 0;  // that travel
    for (int64_t i = 0; i < layer_count(config); ++i) blocks += slots->resident(size_t(i)) ? 0 : 1;
    CHECK(blocks == std::max<int64_t>(0, layer_count(config) - c.resident));
    CHECK(slots->copies() == blocks + 3 * std::max<int64_t>(0, blocks - 2));
  }
  return out;
}

}  // namespace

TEST_CASE("a unit's tensors are on the device while it is used, the next one's beside them") {
  RingSlots slots(at::kCPU);
  for (int64_t i = 0; i < 5; ++i) REQUIRE(slots.add(unit(i)) == size_t(i));
  // As forward and backward ask for them, from any state that an earlier pass left.
  const std::vector<std::pair<size_t, size_t>> orders[] = {
      {{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 4}, {4, 3}, {3, 2}, {2, 1}, {1, 0}, {0, 0}},
      {{0, 1}, {1, 2}, {2, 3}, {0, 1}, {1, 2}},  // a pass that ended in its middle
      {{4, 3}, {2, 1}, {0, 4}, {3, 0}},          // no order at all
  };
  for (const auto& order : orders) {
    std::vector<at::Tensor> last;
    int64_t last_number = 0;
    for (const auto& [number, next] : order) {
      const std::vector<at::Tensor> found = slots.use(number);
      CHECK(holds(found, int64_t(number)));
      if (!last.empty()) CHECK(holds(last, last_number));  // until another is begun
      slots.prepare(next);
      CHECK(holds(found, int64_t(number)));
      last = found, last_number = int64_t(number);
    }
  }
  const int64_t copies = slots.copies();
  slots.use(3);
  slots.prepare(0);
  CHECK(slots.copies() == copies);  // both are there
  CHECK(slots.bytes() == 2 * 3 * 256);
}

TEST_CASE("units that stay are spread over all, and the others travel past them") {
  for (const int64_t stay : {0, 1, 2, 3, 6, 9}) {
    RingSlots slots(at::kCPU, stay * 3 * 256 + 255);
    for (int64_t i = 0; i < 6; ++i) slots.add(unit(i));
    for (int64_t i = 0; i < 6; ++i) {
      const std::vector<at::Tensor> found = slots.use(size_t(i));
      slots.prepare(size_t(std::min<int64_t>(5, i + 1)));
      CHECK(holds(found, i));
    }
    int64_t there = 0;
    for (size_t i = 0; i < 6; ++i) there += slots.resident(i) ? 1 : 0;
    CHECK(there == std::min<int64_t>(6, stay));
    CHECK(slots.copies() == 6 - there);
    if (stay == 3) CHECK((slots.resident(1) && slots.resident(3) && slots.resident(5)));
  }
}

TEST_CASE("a block that is used before it was prepared, and larger ones that come later, are right") {
  RingSlots slots(at::kCPU);
  slots.add(unit(0));
  CHECK(holds(slots.use(0), 0));
  slots.add({at::arange(4000, at::kInt)});
  CHECK(at::equal(slots.use(1)[0], at::arange(4000, at::kInt)));
  CHECK(holds(slots.use(0), 0));
}

TEST_CASE("an input is on the device until the next one leaves, and comes back before it is asked for") {
  HostInputs inputs(at::kCPU);
  int64_t host_bytes = 0;
  for (int pass = 0; pass < 3; ++pass) {
    std::vector<HostInputs::Handle> handles;
    std::vector<WeakStorage> storages;
    for (int64_t i = 0; i < 4; ++i) {
      const at::Tensor x = at::full({2, 3}, double(10 * pass + i), i % 2 == 0 ? at::kBFloat16 : at::kFloat);
      storages.push_back(storage_of(x));
      handles.push_back(inputs.put(x));
    }
    for (size_t i = 0; i < 3; ++i) CHECK(storages[i].expired());
    CHECK_FALSE(storages[3].expired());
    for (size_t i = 4; i-- > 0;) {
      const at::Tensor x = inputs.take(handles[i]);
      CHECK_FALSE(x.requires_grad());
      CHECK(x.eq(double(10 * pass) + double(i)).all().item<bool>());
    }
    CHECK(storages[3].expired());
    CHECK(inputs.take(handles[2]).eq(double(10 * pass) + 2).all().item<bool>());  // of a graph that is held
    if (pass == 0) host_bytes = inputs.host_bytes();
    CHECK(inputs.host_bytes() == host_bytes);  // later passes take the same memory
  }
  CHECK(host_bytes == 2 * 6 * 2 + 2 * 6 * 4);
  // A graph that nobody ran backward through gives its memory back as well.
  for (int i = 0; i < 3; ++i) inputs.put(at::ones({2, 3}));
  CHECK(inputs.put(at::ones({2, 3})) != nullptr);
  CHECK(inputs.host_bytes() == host_bytes);
}

TEST_CASE("what waits in the host's memory changes no bit of output and gradients") {
  struct Model {
    ModelConfig config;
    std::string fixture;
  };
  const std::vector<Model> models = {{wan_t2v_config(), "wan_t2v"},
                                     {wan_i2v_config(), "wan_i2v"},
                                     {wan_ti2v_config(), "wan_ti2v"},
                                     {hunyuan_config("hunyuan_t2v"), "hunyuan_t2v"},
                                     {hunyuan_config("hunyuan_15_i2v", "ti2v"), "hunyuan_15_i2v"}};
  const std::vector<Case> cases = {{Offload::kWeights, {}},
                                   {Offload::kWeights, {true}},
                                   {Offload::kWeights, {true, {"attn1", "attn"}}},
                                   {Offload::kActivations, {true}},
                                   {Offload::kActivations, {true, {"attn1", "attn"}}},
                                   {Offload::kBoth, {true}},
                                   {Offload::kBoth, {true}, 1},
                                   {Offload::kWeights, {true}, 100},
                                   {Offload::kBoth, {true, {"attn1", "attn", "ffn.net.2"}}}};
  for (const Model& model : models) {
    for (const char* kept : {"fp32", "bf16", "fp8"}) {
      ModelConfig config = model.config;
      config.weights_dtype = kept;
      const at::ScalarType dtype = kept == std::string("fp32") ? at::kFloat : at::kBFloat16;
      const auto plain = outcome(config, model.fixture, {}, dtype);
      for (const Case& c : cases) {
        INFO(model.fixture << " " << kept << " " << vmoba::choice_word(c.offload) << " " << c.policy.enabled << " "
                           << c.policy.kept.size());
        check_same(outcome(config, model.fixture, c, dtype), plain);
      }
    }
  }
}

TEST_CASE("weights that are trained cannot wait in the host's memory") {
  WeightRing ring(std::make_shared<RingSlots>(at::kCPU));
  const auto model = make_dit(wan_t2v_config(), full_attention(), 0, at::kCPU, &ring);
  const SafetensorsFile file(fixture_path("wan_t2v.safetensors"));
  try {
    run_wan(*model, file, {});
    FAIL("expected a refusal");
  } catch (const vmoba::Error& e) {
    CHECK(contains(e.what(), "frozen"));
  }
}
