// Keys of other tools: where they are here, and that the place exists.
#include "config/foreign_keys.h"

#include <fstream>
#include <set>

#include "config/root_config.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/process.h"

using namespace vmoba;
using namespace vmoba::test;

TEST_CASE("every place that the table names is a key of the configuration") {
  RootConfig config;
  config.experts.resize(1);
  const std::string documented = config_to_markdown([&](ConfigVisitor& v) { config.visit(v); });
  std::set<std::string> names;
  for (const ForeignKey& foreign : foreign_keys()) {
    INFO(foreign.name);
    CHECK(names.insert(foreign.name).second);
    CHECK_FALSE(foreign.words.empty());
    for (const std::string& key : foreign.keys) {
      INFO(key);
      CHECK(contains(documented, "| `" + key + "` |"));
    }
  }
  CHECK(names.size() >= 40);
}

TEST_CASE("a foreign key is answered with its place here, in a file and on the command line") {
  const auto refused = [](const std::string& item) { return refusal_of([&] { load_root_config("", {item}); }); };
  CHECK(refused("network_dim=16") == "command line: network_dim: unknown key; here it is lora.rank");
  CHECK(contains(refused("train.learning_rate=1e-4"), "here it is train.optimizer.lr"));
  CHECK(contains(refused("adapter.rank=16"), "the group lora"));  // diffusion-pipe's group
  CHECK(contains(refused("model.ckpt_path=/x"), "here it is model.weights"));
  CHECK(contains(refused("num-inference-steps=20"), "here it is sample.steps"));
  CHECK(contains(refused("lora.lora_alpha=2"), "here it is lora.alpha"));
  CHECK(contains(refused("optimizer_type=adamw8bit"), "here it is train.optimizer.type"));
  CHECK(contains(refused("train.optimizer.momentum=0.9"), "unknown key"));  // of muon alone
  CHECK(load_root_config("", {"train.optimizer.type=muon", "train.optimizer.momentum=0.9"}).train.optimizer.momentum ==
        0.9);
  CHECK(contains(refused("train.lr=1"), "did you mean 'train.optimizer.lr'?"));
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/run.yaml";
  std::ofstream(path) << "seed: 1\ntrain:\n  micro_batch_size_per_gpu: 2\n";
  CHECK(contains(refusal_of([&] { load_root_config(path, {}); }),
                 "run.yaml:3: train.micro_batch_size_per_gpu: unknown key; here it is train.micro_batch"));
}
