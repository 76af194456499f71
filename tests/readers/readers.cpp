#include "readers/readers.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>
#include <regex>

#include "apps/sample/prompts.h"
#include "config/resume_rules.h"
#include "config/root_config.h"
#include "core/check.h"
#include "core/hash.h"
#include "core/log.h"
#include "data/clip_decoder.h"
#include "data/manifest.h"
#include "data/video_reader.h"
#include "data/video_writer.h"
#include "model/adapter/lora_file.h"
#include "model/architecture.h"
#include "model/weights/safetensors.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/cache/file_hashes.h"
#include "train/cache/tensor_cache.h"
#include "train/checkpoint/checksums.h"
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/run_folder.h"
#include "train/dist/link_model.h"
#include "train/report/metrics_writer.h"
#include "train/validation/evaluation.h"

namespace vmoba::test {
namespace {

namespace fs = std::filesystem;

const model::Architecture& wan() {
  return model::architectures().find("wan");
}

// A reader that takes whatever lies in the folder, of which the first problem is the refusal.
void refuse_first(const std::string& folder, const std::vector<std::string>& problems) {
  if (!problems.empty()) throw_input("{}: {}", folder, problems.front());
}

Reader yaml() {
  return {"yaml",
          [](const std::string& folder) { fs::copy(test::fixtures() + "/train/tiny.yaml", folder + "/c.yaml"); },
          {"c.yaml"},
          [](const std::string& folder) { load_root_config(folder + "/c.yaml", {}); }};
}

Reader checkpoint_yaml() {
  return {
      "yaml of a checkpoint",
      [](const std::string& folder) { fs::copy(test::fixtures() + "/train/tiny.yaml", folder + "/c.yaml"); },
      {"c.yaml"},
      [](const std::string& folder) { changed_keys(read_text(folder + "/c.yaml"), folder + "/c.yaml", RootConfig()); }};
}

Reader safetensors() {
  return {"safetensors",
          [](const std::string& folder) {
            model::write_safetensors(
                folder + "/x.safetensors",
                {{"a", at::ones({2, 3})}, {"b", at::ones({4}, at::kBFloat16)}, {"c", at::ones({2}, at::kBool)}},
                {{"format", "pt"}});
          },
          {"x.safetensors"},
          [](const std::string& folder) {
            const model::SafetensorsFile file(folder + "/x.safetensors");
            for (const auto& [name, info] : file.tensors()) file.read(name);
          }};
}

// Both ways in which a LoRA's strength is written.
Reader lora(const std::string& name, const std::string& file, const std::string& a, const std::string& b,
            std::vector<model::NamedTensor> more, std::map<std::string, std::string> metadata,
            const std::string& beside) {
  return {name,
          [=](const std::string& folder) {
            std::vector<model::NamedTensor> tensors = {{a, at::ones({2, 8})}, {b, at::ones({8, 2})}};
            tensors.insert(tensors.end(), more.begin(), more.end());
            model::write_safetensors(folder + "/" + file, tensors, metadata);
            if (!beside.empty()) write_text(folder + "/adapter_config.json", beside);
          },
          beside.empty() ? std::vector<std::string>{file} : std::vector<std::string>{"adapter_config.json", file},
          [=](const std::string& folder) {
            if (!model::is_lora(folder + "/" + file)) throw_input("no LoRA at {}", folder);
            model::architecture_of_lora(folder + "/" + file);
            model::read_changes(folder + "/" + file, wan(), at::kCPU);
          }};
}

Reader cache() {
  return {"cache",
          [](const std::string& folder) {
            train::TensorCacheWriter writer(folder, 0, 1 << 20);
            writer.put("key", {{"latents", at::ones({2, 3}) / 3}, {"half", at::ones({2})}});
            writer.put_failure("other", "corrupt: a frame");
            writer.flush();
            train::FileHashes hashes(folder, 0);
            hashes.of_file(test::fixtures() + "/train/tiny.yaml");
            hashes.save();
          },
          {"shard-r000-000000.safetensors", "files-r000.txt"},
          [](const std::string& folder) {
            train::TensorCache cache(folder);
            cache.load("key");
            cache.failure("other");
            train::FileHashes(folder, 0).of_file(test::fixtures() + "/train/tiny.yaml");
          }};
}

void make_checkpoint(const std::string& folder) {
  fs::create_directories(folder + "/state");
  fs::create_directories(folder + "/transformer");
  const at::Tensor values = at::ones({2, 3});
  const std::string file = "transformer/x.safetensors", path = folder + "/" + file;
  model::write_safetensors(path, {{"a", values}}, {});
  const std::string bytes = read_text(path);
  train::FileChecksum checksum{int64_t(bytes.size()), hash_text(content_hash(bytes.substr(0, bytes.size() - 24))), {}};
  checksum.tensors["a"] = hash_text(values_checksum(values.const_data_ptr(), 6, 4, 0));
  const std::string json = train::checksums_to_json({{file, checksum}});
  write_text(train::checksums_path(folder), json);
  train::Manifest manifest;
  manifest.state = {4, 8, 1, 0, {{0, 3, true, "corrupt"}}};
  manifest.updates = {4};
  manifest.record.changes = {{2, "data.fps", "16", "24"}};
  manifest.checksums = hash_text(content_hash(json));
  write_text(train::manifest_path(folder), train::manifest_to_json(manifest));
}

Reader checkpoint() {
  return {"checkpoint",
          make_checkpoint,
          {"state/trainer.json", "state/checksums.json", "transformer/x.safetensors"},
          [](const std::string& folder) {
            refuse_first(folder, train::checkpoint_problems(folder, 0, 1, true));
            train::verify_folder(folder);
          }};
}

// As an earlier version wrote it, without a hash that refuses every change before it is looked at.
Reader old_checkpoint() {
  return {"checkpoint without hashes",
          [](const std::string& folder) {
            make_checkpoint(folder);
            fs::remove(train::checksums_path(folder));
            write_text(train::manifest_path(folder),
                       R"({"step": 4, "next_sample": 8, "seed": 1, "updates": [4], "ema": true, "changes":
                           [{"step": 1, "key": "a", "old": "b", "new": "c"}], "failed_clips":
                           [{"clip": 0, "sample": 3, "final": true, "reason": "corrupt"}]})");
          },
          {"state/trainer.json"},
          [](const std::string& folder) { refuse_first(folder, train::checkpoint_problems(folder, 0, 1, true)); }};
}

// Checksums whose hash fits, whatever they say.
Reader checksums() {
  return {"checksums", make_checkpoint, {"state/checksums.json"}, [](const std::string& folder) {
            train::Manifest manifest;
            manifest.state = {4, 8, 1, 0, {}};
            manifest.updates = {4};
            manifest.checksums = hash_text(content_hash(read_text(train::checksums_path(folder))));
            write_text(train::manifest_path(folder), train::manifest_to_json(manifest));
            refuse_first(folder, train::checkpoint_problems(folder, 0, 1, true));
          }};
}

Reader run_record() {
  return {"record of a run",
          [](const std::string& folder) {
            train::write_run_folder(folder, {"0123456789abcdef", {4, 8}});
          },
          {"run.json"},
          [](const std::string& folder) { train::read_run_folder(folder); }};
}

Reader metrics() {
  return {"metrics",
          [](const std::string& folder) {
            write_text(folder + "/metrics.jsonl", "{\"step\": 1, \"loss\": 0.5}\n{\"step\": 2, \"loss\": 0.25}\n");
          },
          {"metrics.jsonl"},
          [](const std::string& folder) {
            std::set<std::string> known;
            train::read_metrics(folder + "/metrics.jsonl", {"step", "loss"}, &known);
            train::MetricsWriter(folder + "/metrics.jsonl", 2);
          }};
}

Reader evaluation() {
  return {"evaluation",
          [](const std::string& folder) {
            write_text(folder + "/e.json",
                       R"({"seed": 3, "sigmas": [0.25, 0.5], "clips": ["a", "b"], "baseline": "dense", "settings":
                           [{"name": "dense", "losses": [[1.5, 2], [3, 4]]}, {"name": "cubes", "losses": [[1, 2], [3, 4]]}]})");
          },
          {"e.json"},
          [](const std::string& folder) {
            const train::Evaluation mine{{"a", "b"}, {0.25, 0.5}, 3, {}};
            const train::Baseline read = train::read_baseline(folder + "/e.json", "cubes", mine);
            read.losses.by_clip();
            read.losses.of_level(1);
          }};
}

Reader measurement() {
  const std::string operation = R"({"name": "%", "latency_us": 8, "gb_per_s": 300})";
  std::string list;
  for (const char* name : {"all_reduce", "reduce_scatter", "all_gather", "all_to_all"})
    list += (list.empty() ? "" : ", ") + std::string(operation).replace(operation.find('%'), 1, name);
  return {"timings of links",
          [list](const std::string& folder) {
            write_text(folder + "/c.json",
                       "{\"backend\": \"nccl\", \"ranks\": 8, \"hosts\": 1, \"operations\": [" + list + "]}");
          },
          {"c.json"},
          [](const std::string& folder) { train::dist::read_comm_measurement(folder + "/c.json"); }};
}

Reader prompts(const std::string& extension, const std::string& text) {
  const std::string file = "p." + extension;
  return {"prompts ." + extension,
          [=](const std::string& folder) { write_text(folder + "/" + file, text); },
          {file},
          [=](const std::string& folder) { apps::read_prompts(folder + "/" + file, {}); }};
}

// Broken lines are no error but part of the plan.
Reader manifest(const std::string& file, const std::string& text, const std::string& beside = "") {
  return {"manifest " + file,
          [=](const std::string& folder) {
            write_text(folder + "/" + file, text);
            write_text(folder + "/a.mp4", "x");
            if (!beside.empty()) write_text(folder + "/prompt.txt", beside);
          },
          {file},
          [=](const std::string& folder) {
            data::DataConfig config;
            config.path = folder;
            for (const data::DroppedClip& dropped : data::read_manifest(config).dropped)
              if (dropped.reason.size() > 2000) throw_input("{}: {}", folder, dropped.reason);
          }};
}

Reader sidecars() {
  return {"captions beside media",
          [](const std::string& folder) {
            for (const char* name : {"a.mp4", "b.mp4", "c.mp4"}) write_text(folder + "/" + name, "x");
            write_text(folder + "/a.txt", "a gold mirror\n");
            write_text(folder + "/b.json", R"({"caption": ["one", "two"]})");
            write_text(folder + "/c.caption", "\xEF\xBB\xBF caf\xC3\xA9");
          },
          {"a.txt", "b.json", "c.caption"},
          [](const std::string& folder) {
            data::DataConfig config;
            config.path = folder;
            data::read_manifest(config);
          }};
}

void decode_some(const std::string& path) {
  const data::MediaInfo info = data::probe_media(path);
  data::VideoReader reader(path, 1);
  data::ClipRequest request;
  request.frames = info.is_image ? 1 : 3;
  request.height = request.width = 32;
  data::decode_clip(reader, request);
}

Reader video(const std::string& file) {
  return {"video " + file,
          [=](const std::string& folder) {
            const at::Tensor ramp = at::arange(3 * 9 * 32 * 32).remainder(251).to(at::kByte).view({3, 9, 32, 32});
            data::write_video(folder + "/" + file, ramp, 8);
          },
          {file},
          [=](const std::string& folder) { decode_some(folder + "/" + file); }};
}

Reader picture(const std::string& file) {
  return {
      "picture " + file,
      [=](const std::string& folder) { fs::copy(test::fixtures() + "/data/pictures/" + file, folder + "/" + file); },
      {file},
      [=](const std::string& folder) { decode_some(folder + "/" + file); }};
}

std::vector<Reader> make_readers() {
  const std::string block = "blocks.0.attn1.to_q.", kohya = "lora_unet_blocks_0_self_attn_q.";
  const std::string settings = R"({"r": 2, "lora_alpha": 4, "peft_type": "LORA", "rank_pattern": {"blocks.1.*": 4},
      "alpha_pattern": {"to_q": 3}, "use_rslora": false, "use_dora": false, "init_lora_weights": true})";
  std::vector<Reader> out = {
      yaml(),
      checkpoint_yaml(),
      safetensors(),
      lora("LoRA of peft", "adapter_model.safetensors", "base_model.model." + block + "lora_A.weight",
           "base_model.model." + block + "lora_B.weight", {}, {}, settings),
      lora("LoRA of diffusers", "x.safetensors", "transformer." + block + "lora_A.weight",
           "transformer." + block + "lora_B.weight", {},
           {{"lora_adapter_metadata", R"({"transformer.r": 2, "transformer.lora_alpha": 8})"}}, ""),
      lora("LoRA of kohya", "x.safetensors", kohya + "lora_down.weight", kohya + "lora_up.weight",
           {{kohya + "alpha", at::scalar_tensor(1)}}, {}, ""),
      cache(),
      checkpoint(),
      old_checkpoint(),
      checksums(),
      run_record(),
      metrics(),
      evaluation(),
      measurement(),
      prompts("txt", "a red lift --w 832 --h 480 --d 5\n# a comment\na mirror -- gold --n blurry --s 30\n"),
      prompts("json", R"({"data": [{"prompt": "a", "seed": 3, "width": 64}, "b", {"caption": "c", "num_frames": 5}]})"),
      prompts("jsonl", "{\"prompt\": \"a\", \"fps\": 8.5}\n{\"text\": \"b\", \"negative\": null}\n"),
      manifest("metadata.jsonl", "{\"video\": \"a.mp4\", \"prompt\": \"one\", \"start\": 1, \"end\": \"0:02\"}\n"),
      manifest("metadata.json", R"([{"path": "a.mp4", "caption": ["x"], "cut": [0, 33], "crop": [0, 9, 0, 9],
                                     "fps": 16, "repeats": 2, "resolution": {"width": 4}}])"),
      manifest("captions.json", R"({"a.mp4": ["one"], "b.mp4": {"caption": "two"}})"),
      manifest("metadata.csv", "video,prompt,start\na.mp4,\"one, \"\"two\"\"\",1.5\n"),
      manifest("metadata.tsv", "video\tprompt\tfps\na.mp4\t\"one\t24\n"),
      manifest("videos.txt", "a.mp4\n", "one\n"),
      sidecars(),
      video("v.mp4"),
      video("v.webm"),
      video("v.gif"),
      video("v.mkv")};
  for (Reader& reader : model_readers()) out.push_back(std::move(reader));
  for (const char* file :
       {"photo_small.jpg", "turned_6.png", "turned_6.tif", "turned_6.webp", "still.avif", "one_frame.apng"})
    out.push_back(picture(file));
  return out;
}

}  // namespace

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

const std::vector<Reader>& readers() {
  static const std::vector<Reader> table = make_readers();
  return table;
}

std::string refusal(const Reader& reader, const std::string& folder) {
  try {
    reader.read(folder);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string broken_contract(const Reader& reader, const std::string& folder) {
  constexpr size_t kShort = 20, kLong = 8000;
  try {
    reader.read(folder);
    return "";
  } catch (const data::MediaError&) {
    return "";  // names its file where the plan lists it
  } catch (const Error& error) {
    const std::string what = error.what();
    if (error.kind() != ErrorKind::kInput) return "another kind of error: " + what;
    if (what.size() < kShort || what.size() > kLong) return "a message of " + std::to_string(what.size()) + " bytes";
    const bool names =
        what.find(folder) != std::string::npos || std::regex_search(what, std::regex("^[a-z_]+\\.[a-z_]+"));
    return names ? "" : "a message that names no file and no key: " + what;
  } catch (const std::exception& error) {
    return std::string("an exception of another type: ") + error.what();
  }
}

}  // namespace vmoba::test
