// The cache of encodings: what comes back, what damage does, and when a key changes.
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>

#include "core/file.h"
#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"
#include "train/cache/cache_keys.h"
#include "train/cache/encode_cache.h"
#include "train/cache/encode_run.h"

using namespace vmoba;
using namespace vmoba::train;
namespace fs = std::filesystem;

namespace {

constexpr int64_t kLargeShard = 1 << 30;

std::vector<fs::path> shards_in(const std::string& dir) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(dir))
    if (entry.path().extension() == ".safetensors") out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

// Inverts the last byte, which belongs to the last tensor.
void damage_end(const fs::path& path) {
  std::string bytes = test::read_text(path.string());
  bytes.back() = char(~bytes.back());
  std::ofstream(path, std::ios::binary) << bytes;
}

at::Tensor noise(int64_t seed, at::IntArrayRef shape) {
  return at::randn(shape, at::detail::createCPUGenerator(uint64_t(seed)));
}

RootConfig tiny_config() {
  return load_root_config(test::fixtures() + "/train/tiny.yaml", {});
}

data::ClipPlan plan_of(const std::string& path) {
  data::ClipPlan plan;
  plan.buckets.push_back({5, 32, 64, 16, 1});
  data::Clip clip;
  clip.path = path;
  clip.frames = 5;
  plan.clips.push_back(clip);
  return plan;
}

}  // namespace

TEST_CASE("tensors come back bit for bit, from as few bytes as hold them") {
  const test::TemporaryFolder folder;
  const at::Tensor exact = noise(1, {4, 3}), short_numbers = noise(2, {64, 64}).to(at::kBFloat16).to(at::kFloat);
  const at::Tensor whole = at::arange(6, at::kLong);
  {
    TensorCacheWriter writer(folder.path(), 0, kLargeShard);
    writer.put("clip/a", {{"latents", exact}, {"other", whole}});
    writer.put("clip/ab", {{"latents", short_numbers}});
    writer.put_failure("clip/c", "truncated: \"quoted\"");
    writer.flush();
    CHECK(writer.written_bytes() == 4 * 12 + 8 * 6 + 2 * 64 * 64);
  }
  const TensorCache cache(folder.path());
  REQUIRE(cache.load("clip/a"));
  CHECK(cache.load("clip/a")->size() == 2);
  CHECK(at::equal(cache.load("clip/a")->at("latents"), exact));
  CHECK(at::equal(cache.load("clip/a")->at("other"), whole));
  CHECK(at::equal(cache.load("clip/ab")->at("latents").to(at::kFloat), short_numbers));
  CHECK_FALSE(cache.has("clip/c"));
  CHECK(cache.failure("clip/c") == "truncated: \"quoted\"");
  CHECK_FALSE(cache.failure("clip/a"));
  CHECK_FALSE(cache.load("clip"));
  CHECK_FALSE(TensorCache(folder.path() + "/nowhere").has("clip/a"));
}

TEST_CASE("shards are cut at their size, numbered on, and hold what was flushed") {
  const test::TemporaryFolder folder;
  for (int round = 0; round < 2; ++round) {
    TensorCacheWriter writer(folder.path(), 3, 1000);
    for (int i = 0; i < 4; ++i) writer.put(fmt::format("clip/{}-{}", round, i), {{"latents", noise(i, {150})}});
  }
  REQUIRE(shards_in(folder.path()).size() == 4);  // of two clips each, 1200 bytes
  CHECK(shards_in(folder.path()).back().filename() == "shard-r003-000003.safetensors");
  const TensorCache cache(folder.path());
  for (int round = 0; round < 2; ++round)
    for (int i = 0; i < 4; ++i) CHECK(cache.load(fmt::format("clip/{}-{}", round, i)));
}

TEST_CASE("what was not flushed is lost, and a killed writer's left-overs are removed") {
  const test::TemporaryFolder folder;
  { TensorCacheWriter(folder.path(), 0, kLargeShard).put("clip/a", {{"latents", noise(1, {8})}}); }
  CHECK(shards_in(folder.path()).empty());
  std::ofstream(folder.path() + "/shard-r000-000000.safetensors.tmp") << "half";
  std::ofstream(folder.path() + "/shard-r001-000000.safetensors.tmp") << "of another writer";
  TensorCacheWriter writer(folder.path(), 0, kLargeShard);
  CHECK_FALSE(fs::exists(folder.path() + "/shard-r000-000000.safetensors.tmp"));
  CHECK(fs::exists(folder.path() + "/shard-r001-000000.safetensors.tmp"));
}

TEST_CASE("two writers of one number are refused, of two numbers not") {
  const test::TemporaryFolder folder;
  TensorCacheWriter first(folder.path(), 0, kLargeShard), second(folder.path(), 1, kLargeShard);
  const std::string message =
      test::error_of(ErrorKind::kRuntime, [&] { TensorCacheWriter(folder.path(), 0, kLargeShard); });
  CHECK(test::contains(message, "only writer number 0"));
}

TEST_CASE("damage is found: of a tensor, of a header, of a cut file; another copy is used") {
  const test::TemporaryFolder folder;
  const at::Tensor value = noise(1, {1000});
  const auto write = [&](int64_t rank, const std::string& key) {
    TensorCacheWriter writer(folder.path(), rank, kLargeShard);
    writer.put(key, {{"latents", value}});
    writer.flush();
  };
  write(0, "clip/a");
  const fs::path shard = shards_in(folder.path()).at(0);
  const std::string sound = test::read_text(shard.string());
  SECTION("a tensor") {
    damage_end(shard);
  }
  SECTION("the header") {
    std::ofstream(shard, std::ios::binary) << "x" << sound.substr(1);
  }
  SECTION("cut") {
    std::ofstream(shard, std::ios::binary) << sound.substr(0, sound.size() - 1);
  }
  SECTION("another file of the name") {
    model::write_safetensors(shard.string(), {{"clip/a|latents", value}});
  }
  CHECK_FALSE(TensorCache(folder.path()).load("clip/a"));
  write(1, "clip/a");
  const TensorCache mended(folder.path());
  REQUIRE(mended.load("clip/a"));
  CHECK(at::equal(mended.load("clip/a")->at("latents"), value));
}

TEST_CASE("pruning keeps sound shards of wanted keys") {
  const test::TemporaryFolder folder;
  for (int64_t rank = 0; rank < 4; ++rank) {
    TensorCacheWriter writer(folder.path(), rank, kLargeShard);
    writer.put(rank < 3 ? "clip/wanted" : "clip/old", {{"latents", noise(rank, {100})}});
    writer.flush();
  }
  damage_end(shards_in(folder.path()).at(0));
  std::ofstream(folder.path() + "/shard-r009-000000.safetensors") << "broken";
  CHECK(TensorCache(folder.path()).prune({"clip/wanted"}) > 0);
  REQUIRE(shards_in(folder.path()).size() == 1);
  CHECK(shards_in(folder.path())[0].filename() == "shard-r001-000000.safetensors");
  CHECK(TensorCache(folder.path()).load("clip/wanted"));
}

TEST_CASE("a text is kept up to its last token and comes back padded, with its length and its pooled vector") {
  model::TextEmbedding text{at::zeros({1, 6, 3}), at::tensor({4}, at::kLong)};
  text.tokens_BLE[0].narrow(0, 0, 2).fill_(0.5);
  text.tokens_BLE[0][3][1] = 1e-30;
  const NamedTensors kept = text_tensors(text);
  REQUIRE(kept.size() == 1);
  CHECK(at::equal(kept.at("embedding"), text.tokens_BLE[0].narrow(0, 0, 4)));
  const model::TextEmbedding found = text_of(kept, 6, 3);
  CHECK(at::equal(found.tokens_BLE, text.tokens_BLE));
  CHECK(at::equal(found.length_B, text.length_B));
  CHECK_FALSE(found.pooled_BP.defined());
  CHECK(at::equal(text_of({{"embedding", at::zeros({0, 3})}}, 6, 3).tokens_BLE, at::zeros({1, 6, 3})));
  text.pooled_BP = noise(1, {1, 5});
  REQUIRE(text_tensors(text).size() == 2);
  CHECK(at::equal(text_tensors(text).at("pooled"), text.pooled_BP[0]));
  CHECK(at::equal(text_of(text_tensors(text), 6, 3).pooled_BP, text.pooled_BP));
  for (const int64_t glyphs : {0, 2}) {
    text.glyphs_BJU = at::constant_pad_nd(noise(2, {1, glyphs, 7}), {0, 0, 0, 3 - glyphs});
    text.glyph_length_B = at::tensor({glyphs}, at::kLong);
    CHECK(text_tensors(text).at("glyphs").size(0) == glyphs);
    const model::TextEmbedding again = text_of(text_tensors(text), 6, 3);
    CHECK(at::equal(again.glyphs_BJU, text.glyphs_BJU.narrow(1, 0, glyphs)));
    CHECK(at::equal(again.glyph_length_B, text.glyph_length_B));
  }
  CHECK(test::contains(test::refusal_of([&] { text_of(kept, 6, 4); }), "model.text_dim"));
  CHECK(test::contains(test::refusal_of([&] { text_of({}, 6, 3); }), "encode again"));
}

TEST_CASE("a clip's key changes with its file, its window and every setting of the codec") {
  const test::TemporaryFolder folder;
  const std::string media = folder.path() + "/a.mp4";
  std::ofstream(media) << "one";
  FileHashes files(folder.path(), 0);
  RootConfig config = tiny_config();
  data::ClipPlan plan = plan_of(media);
  std::set<std::string> keys;
  const auto fresh = [&](bool flip = false) {
    return keys.insert(CacheKeys(config, files).clip(plan, 0, flip)).second;
  };
  CHECK(fresh());
  CHECK_FALSE(fresh());
  CHECK(fresh(/*flip=*/true));
  plan.clips[0].start_s = 0.04;
  CHECK(fresh());
  plan.clips[0].frames = 9;
  CHECK(fresh());
  plan.buckets[0].width = 48;
  CHECK(fresh());
  plan.clips[0].fps = 24;
  CHECK(fresh());
  config.cache.latent_dtype = "bf16";
  CHECK(fresh());
  // The caption, the learning rate and where the file lies are no part of it.
  plan.clips[0].caption = "other";
  config.train.optimizer.lr = 1;
  CHECK_FALSE(fresh());
  fs::copy_file(media, folder.path() + "/b.mp4");
  plan.clips[0].path = folder.path() + "/b.mp4";
  CHECK_FALSE(fresh());
  std::ofstream(folder.path() + "/b.mp4") << "two!";
  CHECK(fresh());
}

TEST_CASE("a caption's key changes with its text, the encoder's settings and its weights") {
  const test::TemporaryFolder folder;
  FileHashes files(folder.path(), 0);
  RootConfig config = tiny_config();
  std::set<std::string> keys;
  const auto fresh = [&](const std::string& caption) {
    return keys.insert(CacheKeys(config, files).text(caption)).second;
  };
  CHECK(fresh(""));
  CHECK(fresh("a"));
  CHECK_FALSE(fresh("a"));
  config.text.max_tokens = 9;
  CHECK(fresh("a"));
  config.text.type = "umt5";
  fs::copy(test::fixtures() + "/model/umt5", folder.path() + "/umt5", fs::copy_options::recursive);
  config.text.weights = folder.path() + "/umt5";
  CHECK(fresh("a"));
  config.text.device = "cpu";
  CHECK_FALSE(fresh("a"));
  config.text.dtype = "fp32";
  CHECK(fresh("a"));
  std::ofstream(folder.path() + "/umt5/tokenizer_config.json") << R"({"extra_ids": 7})";
  CHECK(fresh("a"));
  damage_end(folder.path() + "/umt5/text_encoder/model-00003-of-00003.safetensors");
  CHECK(fresh("a"));
  // Once the weights are gone, what was known of them counts; a configuration never seen is refused.
  files.save();
  fs::remove_all(folder.path() + "/umt5");
  FileHashes later(folder.path(), 1);
  CHECK(keys.contains(CacheKeys(config, later).text("a")));
  config.text.weights = folder.path() + "/never";
  CHECK(test::contains(test::refusal_of([&] { CacheKeys(config, later); }), "/never"));
}

TEST_CASE("both encoders of a text encoder that is two are in a caption's key, and where they lie is not") {
  const test::TemporaryFolder folder;
  FileHashes files(folder.path(), 0);
  const fs::path fixtures = test::fixtures() + "/model", own = folder.path();
  fs::copy(fixtures / "hunyuan_text", own / "model", fs::copy_options::recursive);
  fs::copy(fixtures / "bpe", own / "bpe", fs::copy_options::recursive);
  RootConfig config = tiny_config();
  config.text.type = "hunyuan";
  config.text.weights = (own / "model/text_encoder").string();
  config.text.tokenizer = (own / "bpe/llama").string();
  config.text.tokenizer_2 = (own / "bpe/clip").string();
  std::set<std::string> keys;
  const auto fresh = [&] { return keys.insert(CacheKeys(config, files).text("a")).second; };
  CHECK(fresh());
  config.text.weights_2 = (own / "model/text_encoder_2").string();
  config.text.tokenizer = (own / "bpe/llama/tokenizer.json").string();
  CHECK_FALSE(fresh());
  damage_end(own / "model/text_encoder_2/model.safetensors");
  CHECK(fresh());
  std::ofstream(own / "bpe/clip/merges.txt", std::ios::app) << "\n";
  CHECK(fresh());
  // What is known of one pair of encoders is not known of another.
  fs::remove_all(own / "model/text_encoder");
  CHECK_FALSE(fresh());
  fs::copy(own / "model/text_encoder_2", own / "other_clip");
  config.text.weights_2 = (own / "other_clip").string();
  CHECK(test::contains(test::refusal_of(fresh), "text_encoder"));
}

TEST_CASE("time tiles of a codec are in a clip's key") {
  const test::TemporaryFolder folder;
  const std::string media = folder.path() + "/a.mp4";
  std::ofstream(media) << "one";
  FileHashes files(folder.path(), 0);
  RootConfig config = tiny_config();
  config.codec.type = "hunyuan_vae";
  config.codec.weights = test::fixtures() + "/model/hunyuan_vae";
  const data::ClipPlan plan = plan_of(media);
  std::set<std::string> keys;
  const auto fresh = [&] { return keys.insert(CacheKeys(config, files).clip(plan, 0, false)).second; };
  CHECK(fresh());
  config.codec.tile_frames = 16;
  CHECK(fresh());
  config.codec.tile_frames_overlap = 4;
  CHECK(fresh());
  config.codec.tile_size = 256;
  CHECK(fresh());
}

TEST_CASE("file hashes are remembered, and taken anew where size or time changed") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path() + "/name with spaces.mp4";
  std::ofstream(path) << "abc";
  std::string first;
  {
    FileHashes hashes(folder.path(), 0);
    first = hashes.of_file(path);
    CHECK(first == "44bc2cf5ad770999");  // XXH64 of "abc"
    hashes.save();
  }
  const auto changed = fs::last_write_time(path);
  std::ofstream(path) << "xyz";
  fs::last_write_time(path, changed);
  CHECK(FileHashes(folder.path(), 1).of_file(path) == first);  // remembered: same size and time
  fs::last_write_time(path, changed + std::chrono::seconds(1));
  CHECK(FileHashes(folder.path(), 1).of_file(path) != first);
  std::ofstream(folder.path() + "/files-r000.txt") << "nonsense\n\n1 2\n";
  CHECK(FileHashes(folder.path(), 0).of_file(path) != first);
  CHECK(
      test::contains(test::refusal_of([&] { FileHashes(folder.path(), 0).of_file("/nowhere.mp4"); }), "/nowhere.mp4"));
}

TEST_CASE("a batch of every task comes back from its clips") {
  const model::TextEmbedding text{noise(9, {2, 4, 8}), at::tensor({3, 4}, at::kLong)};
  for (const char* task : {"t2v", "ti2v", "i2v", "flf2v"}) {
    INFO(task);
    model::ModelConfig model;
    model.task = task;
    model.image_dim = model::needs_first_frame(model) ? 6 : 0;
    EncodedBatch whole;
    whole.x0_BCTHW = noise(1, {2, 16, 3, 2, 2});
    whole.text = text;
    if (model.task == "ti2v") whole.condition.first_BC1HW = whole.x0_BCTHW.slice(2, 0, 1);
    if (model::needs_first_frame(model)) {
      whole.condition.channels_BKTHW = noise(2, {2, 20, 3, 2, 2});
      whole.condition.tokens_BIM = noise(3, {2, 5, 6});
    }
    std::vector<NamedTensors> clips;
    for (int64_t b = 0; b < 2; ++b) {
      EncodedBatch one;
      one.x0_BCTHW = whole.x0_BCTHW.narrow(0, b, 1);
      if (whole.condition.channels_BKTHW.defined()) {
        one.condition.channels_BKTHW = whole.condition.channels_BKTHW.narrow(0, b, 1);
        one.condition.tokens_BIM = whole.condition.tokens_BIM.narrow(0, b, 1);
      }
      clips.push_back(clip_tensors(model, one));
    }
    const EncodedBatch found = batch_of_clips(model, clips, text, at::kCPU);
    const auto same = [](const at::Tensor& a, const at::Tensor& b) {
      return a.defined() == b.defined() && (!a.defined() || at::equal(a, b));
    };
    CHECK(same(found.x0_BCTHW, whole.x0_BCTHW));
    CHECK(same(found.text.tokens_BLE, text.tokens_BLE));
    CHECK(same(found.text.length_B, text.length_B));
    CHECK(same(found.condition.first_BC1HW, whole.condition.first_BC1HW));
    CHECK(same(found.condition.channels_BKTHW, whole.condition.channels_BKTHW));
    CHECK(same(found.condition.tokens_BIM, whole.condition.tokens_BIM));
  }
}

TEST_CASE("both sides of a mirrored clip are kept where both are shown; random starts are not") {
  data::ClipPlan plan = plan_of("a.mp4");
  plan.clips.push_back(plan.clips[0]);
  plan.clips[1].random_start = true;
  data::DataConfig config;
  const auto sides = [&](double flip) {
    config.horizontal_flip = flip;
    std::string out;
    for (const ClipVariant& v : cacheable_clips(plan, config)) out += fmt::format("{}{}", v.clip, v.flip ? "m" : "");
    return out;
  };
  CHECK(sides(0) == "0");
  CHECK(sides(1) == "0m");
  CHECK(sides(0.5) == "00m");
}

TEST_CASE("captions to encode: each once, the empty one for dropout, the validation prompts where they are used") {
  RootConfig config = tiny_config();
  data::ClipPlan plan = plan_of("a.mp4");
  for (const char* caption : {"x", "y", "x"}) {
    plan.clips.push_back(plan.clips[0]);
    plan.clips.back().caption = caption;
  }
  using Captions = std::vector<std::string>;
  CHECK(wanted_captions(config, plan) == Captions{"", "x", "y"});
  config.train.validate_every = 5;
  config.sample.prompts = {"z", "x"};
  config.sample.negative_prompt = "ugly";
  CHECK(wanted_captions(config, plan) == Captions{"", "x", "y", "z", "ugly"});
  config.train.flow.caption_dropout = 0;
  config.sample.guidance = 1;
  plan.clips.erase(plan.clips.begin());
  CHECK(wanted_captions(config, plan) == Captions{"x", "y", "z"});
}

TEST_CASE("a progress line says how long it will take by the share of the work that is done") {
  CHECK(encode_progress_line("clips", 12, 100, 0.25, 100) == "clips 12/100 (25 %), 0.12/s, 0:05:00 left");
  CHECK(encode_progress_line("captions", 7, 7, 1, 3725) == "captions 7/7 (100 %), 0.00/s, 0:00:00 left");
  CHECK(encode_progress_line("clips", 1, 9, 0.1, 1000) == "clips 1/9 (10 %), 0.00/s, 2:30:00 left");
}
