// vmoba-convert and LoRA runs of vmoba-train against the real packages (wan_weights_parity.py); exact resume.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/folder_lock.h"
#include "support/catch.h"
#include "support/must_run.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kConvert = bin_dir() + "/vmoba-convert";

void parity(const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {python(), source_dir() + "/tests/apps/wan_weights_parity.py"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  must_run(command);
}

// A safetensors file without its metadata, which names the run and the step: the header's tensors, and all values.
std::pair<nlohmann::json, std::string> tensors_of(const std::string& path) {
  const std::string bytes = read_text(path);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  nlohmann::json info = nlohmann::json::parse(bytes.substr(8, header));
  info.erase("__metadata__");
  return {info, bytes.substr(8 + header)};
}

// The random transformers that the cases of this program share.
const std::string& transformers() {
  static const TemporaryFolder folder;
  static const bool made = [] {
    parity({"make", folder.path()});
    return true;
  }();
  REQUIRE(made);
  return folder.path();
}

std::vector<std::string> lora_run(const std::string& run_dir, std::vector<std::string> extra = {}) {
  std::vector<std::string> command = {bin_dir() + "/vmoba-train",
                                      "--config",
                                      fixtures() + "/train/tiny.yaml",
                                      "run.dir=" + run_dir,
                                      "model.weights=" + transformers() + "/t2v",
                                      "train.steps=10",
                                      "train.optimizer.lr=0.02",
                                      "lora.rank=4",
                                      "lora.alpha=6",
                                      "lora.formats=[comfyui, diffusers, kohya]",
                                      "lora.save_dtype=fp32"};
  command.insert(command.end(), extra.begin(), extra.end());
  return command;
}

}  // namespace

TEST_CASE("diffusers' converter and loaders read what vmoba-convert writes, and it reads theirs") {
  const std::string& folder = transformers();
  for (const std::string kind : {"t2v", "i2v"}) {
    const std::string base = folder + "/" + kind, original = base + "_original.safetensors";
    must_run({kConvert, base, original, "--layout", "original"});
    must_run({kConvert, base, base + "_comfyui.safetensors", "--layout", "comfyui"});
    must_run(
        {kConvert, original, base + "_sharded", "--layout", "diffusers", "--shard-gb", "0.0001", "--head-dim", "24"});
  }
  parity({"layouts", folder});
}

TEST_CASE("a LoRA run: resumed exactly, every file loads in diffusers with the same output, merged too") {
  const TemporaryFolder temporary;
  const std::string whole = temporary.path() + "/whole/run", resumed = temporary.path() + "/resumed/run";
  must_run(lora_run(whole));
  must_run(lora_run(resumed, {"--resume", whole + "/checkpoint-5"}));
  const std::string last = "/checkpoint-10";
  for (const std::string file :
       {"/state/lora.safetensors", "/state/lora_ema.safetensors", "/state/optimizer.safetensors",
        "/lora/comfyui.safetensors", "/lora/diffusers.safetensors", "/lora/kohya.safetensors",
        "/lora_ema/comfyui.safetensors"}) {
    INFO(file);
    REQUIRE(!read_text(whole + last + file).empty());
    CHECK(read_text(whole + last + file) == read_text(resumed + last + file));
  }
  CHECK_FALSE(fs::exists(whole + last + "/transformer"));
  const std::string lora = whole + last + "/lora/kohya.safetensors";
  must_run({kConvert, transformers() + "/t2v", transformers() + "/merged", "--layout", "diffusers", "--lora", lora});
  parity({"lora", transformers(), whole + last, "6"});

  // vmoba-sample takes the checkpoint, and the same adapters as a file on top of none.
  const auto sample = [&](const std::string& out, const std::vector<std::string>& extra) {
    std::vector<std::string> command = {
        bin_dir() + "/vmoba-sample", "--checkpoint", whole + last, "--no-ema", "--prompt", "x", "--out",
        temporary.path() + "/" + out};
    command.insert(command.end(), extra.begin(), extra.end());
    must_run(command);
    return read_text(temporary.path() + "/" + out);
  };
  const std::string plain = sample("a.mp4", {});
  CHECK(plain == sample("b.mp4", {"--lora", lora, "--lora-strength", "0"}));
  CHECK(plain != sample("c.mp4", {"--lora", lora, "--lora-strength", "-1"}));
}

TEST_CASE("a LoRA run goes on from another tool's file; vmoba-convert turns LoRA files into each other") {
  const TemporaryFolder temporary;
  const std::string first = temporary.path() + "/first", kohya = temporary.path() + "/kohya.safetensors";
  must_run(lora_run(first, {"train.steps=2"}));
  must_run({kConvert, first + "/checkpoint-2/lora/comfyui.safetensors", kohya, "--layout", "kohya"});
  must_run({kConvert, kohya, temporary.path() + "/d.safetensors", "--layout", "diffusers"});
  CHECK((tensors_of(temporary.path() + "/d.safetensors") ==
         tensors_of(first + "/checkpoint-2/lora/diffusers.safetensors")));
  must_run(
      lora_run(temporary.path() + "/second", {"train.steps=1", "train.optimizer.lr=0", "lora.init_from=" + kohya}));
  const std::string second = temporary.path() + "/second/checkpoint-1/state/lora.safetensors";
  REQUIRE(fs::exists(second));
}

TEST_CASE("vmoba-convert and vmoba-train say what is wrong") {
  const TemporaryFolder temporary;
  const auto refused = [](const std::vector<std::string>& command, const std::string& says) {
    const ProcessResult result = run_process(command);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find(says) != std::string::npos);
  };
  const std::string out = temporary.path() + "/x";
  refused({kConvert}, "in is required");
  refused({kConvert, transformers() + "/t2v", out, "--layout", "gguf"}, "--layout");
  refused({kConvert, temporary.path() + "/none", out, "--layout", "diffusers"}, "found nothing");
  refused({kConvert, transformers() + "/t2v", out, "--layout", "comfyui"}, ".safetensors");
  refused(lora_run(out, {"lora.targets=[to_z]"}), "to_z");
  refused(lora_run(out, {"lora.formats=[gguf]"}), "gguf");
  refused(lora_run(out, {"lora.rank=0", "model.weights_dtype=fp8"}), "model.weights_dtype");
  refused(lora_run(out, {"lora.init_from=" + temporary.path() + "/none"}), "found nothing");
}

TEST_CASE("an input is not overwritten by a path that becomes it, and values that are not finite are no output") {
  const TemporaryFolder folder;
  const std::string in = folder.path() + "/in", file = in + "/diffusion_pytorch_model.safetensors";
  fs::copy(transformers() + "/t2v", in, fs::copy_options::recursive);
  std::string bytes = read_text(file);
  for (const std::string out : {"/missing/../in", "/in/.", "/in/missing/.."}) {
    const ProcessResult result = run_process({kConvert, in, folder.path() + out, "--layout", "original"});
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK((read_text(file) == bytes));  // not printed
  }
  const std::string nan("\x00\x00\xc0\x7f", 4);
  bytes.replace(bytes.size() - 4, 4, nan);
  std::ofstream(file, std::ios::binary) << bytes;
  const ProcessResult result = run_process({kConvert, in, folder.path() + "/out", "--layout", "diffusers"});
  INFO(result.output);
  CHECK(result.exit_code == 2);
  CHECK(result.output.find("expected finite values in '") != std::string::npos);
  CHECK_FALSE(fs::exists(folder.path() + "/out/diffusion_pytorch_model.safetensors"));
}

TEST_CASE("an output that another process writes is left alone") {
  const TemporaryFolder folder;
  for (const std::string out : {"/out.safetensors", "/out/", "/deeper/out"}) {
    fs::create_directories(folder.path() + "/deeper");
    std::string plain = folder.path() + out;
    if (plain.back() == '/') plain.pop_back();
    const vmoba::FolderLock held(plain + ".lock", "the test's output", "wait");
    const ProcessResult result = run_process({kConvert, "/nowhere", folder.path() + out, "--layout", "diffusers"});
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(result.output.find("expected no other process there, found process ") != std::string::npos);
  }
}
