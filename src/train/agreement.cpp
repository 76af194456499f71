#include "train/agreement.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "config/resume_rules.h"
#include "core/check.h"
#include "core/hash.h"
#include "core/yaml_values.h"
#include "data/clip_plan_print.h"
#include "model/text_encoder.h"
#include "model/weights/model_folder.h"
#include "model/weights/weight_files.h"
#include "train/checkpoint/checkpoint_tensors.h"

namespace vmoba::train {
namespace {

namespace fs = std::filesystem;

// The first rank of the largest group with equal texts.
size_t reference_rank(const std::vector<std::string>& texts) {
  size_t best = 0;
  int64_t most = 0;
  for (size_t r = 0; r < texts.size(); ++r) {
    const int64_t equal = std::count(texts.begin(), texts.end(), texts[r]);
    if (equal <= most) continue;
    most = equal;
    best = r;
  }
  return best;
}

bool all_equal(const std::vector<std::string>& texts) {
  return std::all_of(texts.begin(), texts.end(), [&](const std::string& text) { return text == texts.front(); });
}

std::string bytes_of(const std::vector<uint64_t>& words) {
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint64_t)};
}

// The first place of eight bytes at which two texts differ.
size_t first_difference(const std::string& a, const std::string& b) {
  const size_t shorter = std::min(a.size(), b.size());
  const auto found = std::mismatch(a.begin(), a.begin() + ptrdiff_t(shorter), b.begin());
  return size_t(found.first - a.begin()) / sizeof(uint64_t);
}

// Only the first rank speaks; the others wait for the end of the job that this brings.
template <typename Throw>
void throw_on_first(dist::World& world, Throw action) {
  if (world.rank() != 0) dist::barrier(world.control());
  action();
}

// Size, and hash of both ends and of pages between them: gigabytes are not read through at every start.
std::string file_fact(const std::string& path) {
  constexpr int64_t kEnd = 1 << 20, kPage = 4096, kPages = 256;
  std::error_code error;
  const auto bytes = int64_t(fs::file_size(path, error));
  if (error) return "missing";
  std::ifstream file(path, std::ios::binary);
  ContentHash hash;
  std::string piece;
  const auto add = [&](int64_t begin, int64_t count) {
    piece.assign(size_t(std::max<int64_t>(0, std::min(count, bytes - begin))), '\0');
    file.clear();
    file.seekg(begin);
    file.read(piece.data(), std::streamsize(piece.size()));
    hash.add(piece);
  };
  add(0, kEnd);
  for (int64_t i = 1; i < kPages && bytes > 2 * kEnd; ++i) add(bytes / kPages * i, kPage);
  add(std::max<int64_t>(0, bytes - kEnd), kEnd);
  return fmt::format("{} bytes, sampled hash {}", bytes, hash_text(hash.value()));
}

// Shared libraries whose version decides what is computed, decoded or made of a caption.
Facts library_facts() {
  static const std::vector<std::string> wanted = {
      "libtorch",  "libc10",   "libavcodec", "libavformat",      "libavutil",  "libswscale", "libcudart",
      "libcublas", "libcudnn", "libnccl",    "libsentencepiece", "libpcre2-8", "libutf8proc"};
  std::map<std::string, std::string> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const size_t at = line.find('/');
    if (at == std::string::npos || line.find(".so", at) == std::string::npos) continue;
    const fs::path path = line.substr(at);
    const std::string name = path.filename().string(), plain = name.substr(0, name.find(".so"));
    if (std::none_of(wanted.begin(), wanted.end(), [&](const std::string& w) { return plain.starts_with(w); }))
      continue;
    std::string& fact = found["library " + plain];
    if (fact.empty()) fact = fmt::format("{} of {}", name, file_fact(path));
  }
  return {found.begin(), found.end()};
}

void add_files(Facts& facts, const std::string& key, const std::vector<std::string>& files) {
  for (const std::string& file : files)
    facts.emplace_back(fmt::format("{} {}", key, fs::path(file).filename().string()), file_fact(file));
}

// Of values that begin at number `begin` of a whole; sums of parts add up to that of the whole. Exact on any device:
// the order of sums of integers does not count. Odd factors: a single value that differs always changes the sum.
uint64_t sum_of_values(const at::Tensor& values, int64_t begin, at::Device device) {
  constexpr int64_t kChunk = 1 << 24, kOdd = 0x1E3779B97F4A7C15;
  const at::Tensor flat = values.detach().reshape(-1);
  const int64_t width = flat.element_size();
  const at::ScalarType words = width == 8 ? at::kLong : width == 4 ? at::kInt : width == 2 ? at::kShort : at::kByte;
  at::Tensor sum = at::zeros({}, at::TensorOptions(device).dtype(at::kLong));
  for (int64_t first = 0; first < flat.numel(); first += kChunk) {
    const at::Tensor chunk =
        flat.narrow(0, first, std::min(kChunk, flat.numel() - first)).view(words).to(device).to(at::kLong);
    const at::Tensor factors = at::arange(begin + first, begin + first + chunk.numel(), sum.options());
    sum += factors.mul_(2).add_(kOdd).mul_(chunk).sum();
  }
  return uint64_t(sum.item<int64_t>());
}

// Where the experts compute; their frozen weights may wait in the host's memory.
at::Device device_of(const std::vector<Expert>& experts) {
  return experts.front().dit->trainable().front().tensor.device();
}

}  // namespace

std::string program_version() {
  return VMOBA_VERSION;
}

void require_same_facts(dist::World& world, const Facts& facts, const std::string& remedy) {
  if (world.size() == 1) return;
  std::vector<uint64_t> hashes;
  for (const auto& [name, value] : facts) hashes.push_back(content_hash(name + "\n" + value));
  const std::string own = bytes_of(hashes);
  const std::vector<std::string> totals = dist::all_gather_text(world.control(), hash_text(content_hash(own)));
  if (all_equal(totals)) return;
  const std::vector<std::string> all = dist::all_gather_text(world.control(), own);
  const size_t right = reference_rank(totals);
  size_t wrong = 0;
  while (totals[wrong] == totals[right]) ++wrong;
  const size_t place = first_difference(all[right], all[wrong]);
  // A list that misses an item differs at its end at the latest.
  const auto name = dist::all_gather_text(world.control(), place < facts.size() ? facts[place].first : "");
  const auto value = dist::all_gather_text(world.control(), place < facts.size() ? facts[place].second : "");
  const auto shown = [&](size_t rank) {
    return name[rank].empty() ? "nothing" : name[rank] + " '" + value[rank] + "'";
  };
  int64_t others = 0;
  for (const std::string& total : totals) others += total != totals[right];
  throw_on_first(world, [&] {
    throw_input("the ranks disagree: expected {} as on rank {} ({}), found {} on rank {} ({}){}; {}", shown(right),
                right, world.host(int(right)), shown(wrong), wrong, world.host(int(wrong)),
                others > 1 ? fmt::format(" and differences on {} more", others - 1) : "", remedy);
  });
}

const RootConfig& require_same_config(dist::World& world, const RootConfig& config) {
  if (world.size() == 1) return config;
  const dist::Patience patience(world, config.parallel.start_timeout_s, dist::Patience::Of::kStart);
  RootConfig copy = config;
  Facts facts = {{"version", program_version()}};
  for (const auto& [key, value] :
       yaml_values(config_to_yaml([&](ConfigVisitor& v) { copy.visit(v); }), "this configuration"))
    if (!may_differ_between_ranks(key)) facts.emplace_back(key, value);
  require_same_facts(world, facts, "start every rank with one command and one configuration");
  Facts program = {{"program", hash_text(file_hash("/proc/self/exe"))}};
  for (auto& fact : library_facts()) program.push_back(std::move(fact));
  require_same_facts(world, program, "install one build of the program and its libraries on every host");
  return config;
}

Facts clip_facts(const data::ClipPlan& plan, const std::string& data_path) {
  const fs::path base = fs::is_directory(data_path) ? fs::path(data_path) : fs::path(data_path).parent_path();
  Facts out;
  for (const data::Clip& clip : plan.clips) {
    const fs::path inside = fs::path(clip.path).lexically_relative(base);
    const bool below = !inside.empty() && !inside.string().starts_with("..");
    out.emplace_back(fmt::format("clip {}", out.size() + 1),
                     data::clip_to_json(plan, clip, below ? inside.string() : clip.path));
  }
  return out;
}

Facts clip_file_facts(const data::ClipPlan& plan, FileFact fact) {
  Facts out;
  std::string last;
  for (const data::Clip& clip : plan.clips) {
    if (clip.path == last) continue;
    last = clip.path;
    out.emplace_back("file of clip " + fs::path(clip.path).filename().string(),
                     fact == FileFact::kBytes ? fmt::format("{} bytes", clip.stamp.bytes)
                                              : "sampled hash " + hash_text(clip.stamp.sample));
  }
  return out;
}

std::string clips_hash(const Facts& clips) {
  ContentHash hash;
  for (const auto& [name, value] : clips) hash.add(value + "\n");
  return hash_text(hash.value());
}

void require_same_clips(dist::World& world, const data::ClipPlan& plan, const std::string& data_path) {
  if (world.size() == 1) return;
  require_same_facts(world, clip_facts(plan, data_path), "give every host the same files at data.path");
}

void require_same_encoders(dist::World& world, const RootConfig& config) {
  if (world.size() == 1) return;
  Facts facts;
  const auto add_part = [&](const std::string& path, const char* part, const char* key) {
    if (path.empty()) return;
    std::vector<std::string> files = model::find_weight_files(model::model_folder(path, part, key));
    // Its numbers enter what the encoder makes.
    if (const fs::path config = fs::path(files.front()).parent_path() / "config.json"; fs::exists(config))
      files.push_back(config.string());
    add_files(facts, key, files);
  };
  add_part(config.codec.weights, "vae", "codec.weights");
  add_part(config.image_encoder.weights, "image_encoder", "image_encoder.weights");
  if (!config.text.weights.empty()) add_files(facts, "text.weights", model::text_encoder_files(config.text));
  require_same_facts(world, facts, "give every host the same files");
}

void require_same_copies(dist::World& world, const dist::MeshSizes& sizes, const std::vector<Expert>& experts,
                         bool frozen, int64_t step) {
  if (world.size() == 1) return;
  const at::NoGradGuard no_grad;
  // Ranks whose numbers leave the same rest hold the same part; where every rank holds everything, all do.
  const int parts_of_trained = experts.front().holders ? int(sizes.state_ranks()) : 1;
  const int parts_of_frozen = experts.front().shards ? int(sizes.state_ranks()) : 1;
  const auto compare = [&](int parts, const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
    std::vector<uint64_t> sums;
    for (const auto& [name, tensor] : tensors) sums.push_back(sum_of_values(tensor, 0, device_of(experts)));
    const std::vector<std::string> all = dist::all_gather_text(world.control(), bytes_of(sums));
    for (int part = 0; part < parts; ++part) {
      std::vector<std::string> copies;
      for (int rank = part; rank < world.size(); rank += parts) copies.push_back(all[size_t(rank)]);
      if (all_equal(copies)) continue;
      const size_t right = reference_rank(copies);
      size_t wrong = 0;
      while (copies[wrong] == copies[right]) ++wrong;
      const std::string& name = tensors.at(first_difference(copies[right], copies[wrong])).first;
      const int wrong_rank = part + int(wrong) * parts, right_rank = part + int(right) * parts;
      throw_on_first(world, [&] {
        const std::string text = fmt::format(
            "after step {}: expected the same {} on ranks {} ({}) and {} ({}), found different values on rank {}", step,
            name, right_rank, world.host(right_rank), wrong_rank, world.host(wrong_rank), wrong_rank);
        if (frozen && step == 0) throw_input("{}; give every host the same files of weights", text);
        throw_runtime(
            "{}; its device or memory computes wrongly: leave that host out and resume from the last "
            "checkpoint",
            text);
      });
    }
  };
  std::vector<std::pair<std::string, at::Tensor>> trained, others;
  for (const Expert& expert : experts) {
    const auto add = [&](const char* kind, const std::vector<HeldTensor>& tensors) {
      for (const HeldTensor& t : tensors)
        trained.emplace_back(fmt::format("{} '{}'", kind, t.name),
                             t.held.view(-1).narrow(0, 0, held_run(expert, t).count));
    };
    add("weights", held_weights(expert));
    if (expert.ema) add("average", held_average(expert));
    add("optimiser state", held_state(expert));
    if (!frozen) continue;
    for (const model::Parameter& p : expert.dit->parameters())
      others.emplace_back("weights '" + p.name + "'", p.tensor);
    if (!expert.teacher) continue;
    for (const model::Parameter& p : expert.teacher->parameters())
      others.emplace_back("weights of the teacher '" + p.name + "'", p.tensor);
  }
  compare(parts_of_trained, trained);
  if (frozen) compare(parts_of_frozen, others);
}

std::string base_hash(dist::World& world, const dist::MeshSizes& sizes, const std::vector<Expert>& experts) {
  const at::NoGradGuard no_grad;
  std::vector<uint64_t> own;
  std::string names;
  // Parts follow each other by the ranks' numbers and end in zeros, which add nothing.
  const int parts = experts.front().shards ? int(sizes.state_ranks()) : 1;
  const int part = world.rank() % parts;
  for (const Expert& expert : experts) {
    for (const model::Parameter& p : expert.dit->parameters()) {
      own.push_back(sum_of_values(p.tensor, p.tensor.numel() * part, device_of(experts)));
      names += p.name + "\n";
    }
  }
  const std::vector<std::string> all = dist::all_gather_text(world.control(), bytes_of(own));
  std::vector<uint64_t> sums(own.size(), 0);
  for (int rank = 0; rank < parts; ++rank) {
    for (size_t i = 0; i < sums.size(); ++i) {
      uint64_t sum = 0;
      std::memcpy(&sum, all[size_t(rank)].data() + i * sizeof sum, sizeof sum);
      sums[i] += sum;
    }
  }
  return hash_text(content_hash(names + bytes_of(sums)));
}

}  // namespace vmoba::train
