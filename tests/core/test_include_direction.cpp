// The house's rule of who may see whom (docs/architecture.md), read from the #include lines of src/ and apps/. The
// checker itself is tried on small trees that break each rule.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>

#include "support/catch.h"
#include "support/paths.h"
#include "support/process.h"

namespace fs = std::filesystem;

namespace {

bool starts_with_any(const std::string& text, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const std::string& p) { return text.starts_with(p); });
}

// What each folder may include of the project: prefixes of paths below src/ (or "apps/").
const std::map<std::string, std::vector<std::string>>& allowed_project_includes() {
  static const std::map<std::string, std::vector<std::string>> table = {
      {"core", {"core/"}},
      {"report", {"report/", "core/"}},
      {"attention/kernels", {"attention/kernels/"}},
      {"attention/block", {"attention/block/", "attention/attention.h", "attention/method.h", "core/"}},
      {"attention/reference", {"attention/reference/", "attention/block/", "attention/attention.h", "core/"}},
      {"attention/native",
       {"attention/native/", "attention/block/", "attention/kernels/kernels.h", "attention/kernels/tiles.h",
        "attention/attention.h", "core/"}},
      {"attention/a method",
       {"attention/block/", "attention/reference/", "attention/native/", "attention/kernels/kernels.h",
        "attention/attention.h", "attention/method.h", "core/"}},
      {"attention", {"attention/", "core/"}},
      {"ops", {"ops/", "attention/", "core/"}},
      {"model/kernels", {"model/kernels/", "core/philox.h"}},
      {"model", {"model/", "attention/attention.h", "core/"}},
      {"train/kernels", {"train/kernels/", "core/philox.h"}},
      {"data", {"data/", "core/"}},
      {"config", {"config/", "model/", "attention/attention.h", "data/", "core/"}},
      {"sample", {"sample/", "config/", "model/", "attention/attention.h", "data/video_writer.h", "core/"}},
      {"train",
       {"train/", "sample/", "config/", "model/", "attention/attention.h", "attention/kernel_work.h", "data/",
        "report/", "core/"}},
      {"apps", {"apps/", "train/", "sample/", "config/", "model/", "attention/", "data/", "report/", "core/"}},
  };
  return table;
}

// What each room inside src/train may include of src/train. The files beside the rooms may include all of them.
const std::map<std::string, std::vector<std::string>>& allowed_train_includes() {
  static const std::map<std::string, std::vector<std::string>> table = {
      {"cache", {"train/cache/", "train/batch.h", "train/signals.h", "train/dist/launch.h"}},
      {"checkpoint", {"train/checkpoint/", "train/expert.h"}},
      {"codec", {"train/codec/", "train/optim/", "train/signals.h"}},
      {"dist", {"train/dist/", "train/signals.h"}},
      {"forecast", {"train/forecast/", "train/optim/", "train/dist/mesh_sizes.h", "train/dist/link_model.h"}},
      {"kernels", {"train/kernels/"}},
      {"optim", {"train/optim/", "train/kernels/"}},
      {"report", {"train/report/"}},
      {"validation",
       {"train/validation/", "train/expert.h", "train/batch.h", "train/report/callback.h", "train/dist/mesh.h",
        "train/cache/encode_cache.h"}},
  };
  return table;
}

// The rooms of src/model, and what each may include of the others; headers beside the rooms are open to all. Any other
// folder there is one model.
const std::map<std::string, std::set<std::string>>& model_rooms() {
  static const std::map<std::string, std::set<std::string>> table = {
      {"kernels", {}},
      {"common", {"kernels"}},
      {"weights", {"common"}},
      {"adapter", {"common", "weights"}},
      {"codec", {"common", "weights"}},
      {"text", {"common", "weights", "image"}},
      {"image", {"common", "weights"}},
  };
  return table;
}
const std::set<std::string> kRoomsOfOneModel = {"common", "weights"};

// Rooms of src/attention with a rule of their own; any other folder there is one method.
const std::set<std::string> kAttentionRooms = {"kernels", "block", "reference", "native"};

// The folder inside `parent` that a path lies in, or "".
std::string inner_folder(const std::string& path, const std::string& parent) {
  if (!path.starts_with(parent + "/")) return "";
  const size_t begin = parent.size() + 1, end = path.find('/', begin);
  return end == std::string::npos ? "" : path.substr(begin, end - begin);
}

// "vmoba" of "attention/vmoba/x.cpp"; "" outside a method's own folder.
std::string method_of(const std::string& path) {
  const std::string folder = inner_folder(path, "attention");
  return kAttentionRooms.contains(folder) ? "" : folder;
}

std::string folder_of(const std::string& path) {
  if (path.starts_with("model/kernels/")) return "model/kernels";
  if (path.starts_with("train/kernels/")) return "train/kernels";
  if (!method_of(path).empty()) return "attention/a method";
  const std::string room = inner_folder(path, "attention");
  return room.empty() ? path.substr(0, path.find('/')) : "attention/" + room;
}

bool is_model(const std::string& folder) {
  return !folder.empty() && !model_rooms().contains(folder);
}

// One model is known to itself, to the table of architectures, and to programs.
std::string model_violation(const std::string& file, const std::string& include) {
  const std::string from = inner_folder(file, "model"), to = inner_folder(include, "model");
  if (to.empty() || from == to) return "";
  if (is_model(from) && is_model(to)) return "one model never includes another";
  if (is_model(to))
    return file == "model/architecture.cpp" || file.starts_with("apps/")
               ? ""
               : "only model/architecture.cpp and programs see a model's folder";
  if (from.empty()) return "";
  const std::set<std::string>& seen = is_model(from) ? kRoomsOfOneModel : model_rooms().at(from);
  return seen.contains(to) ? "" : "model/" + from + " does not see model/" + to;
}

// "dist" of "train/dist/x.cpp"; "" for a file beside the rooms and outside src/train.
std::string train_room_of(const std::string& path) {
  const size_t end = path.find('/', 6);
  return path.starts_with("train/") && end != std::string::npos ? path.substr(6, end - 6) : "";
}

std::string train_violation(const std::string& file, const std::string& include) {
  if (!file.starts_with("train/") || !include.starts_with("train/")) return "";
  if (include == "train/trainer.h" && !file.starts_with("train/trainer")) return "train's parts do not see the trainer";
  const std::string room = train_room_of(file);
  if (room.empty()) return "";
  const auto rule = allowed_train_includes().find(room);
  if (rule == allowed_train_includes().end()) return "room 'train/" + room + "' has no rule";
  return starts_with_any(include, rule->second) ? "" : "train/" + room + " does not see it";
}

std::string foreign_violation(const std::string& file, const std::string& include) {
  const bool torch = starts_with_any(include, {"torch/", "ATen/", "c10/"});
  if (torch && folder_of(file).ends_with("kernels")) return "kernels do not see torch";
  if (torch && file.starts_with("core/")) return "core does not see torch";
  if (torch && file.starts_with("report/")) return "report does not see torch";
  if (starts_with_any(include, {"mpi.h", "nccl.h"}) && !file.starts_with("train/dist/"))
    return "only train/dist includes MPI and NCCL";
  if (starts_with_any(include, {"libav", "libsw"}) && !(file.starts_with("data/") && file.ends_with(".cpp")))
    return "only data's .cpp files include libav";
  if (include.starts_with("cairo") && file != "core/drawing.cpp") return "only core/drawing.cpp includes Cairo";
  if (include == "xxhash.h" && file != "core/hash.cpp") return "only core/hash.cpp includes xxHash";
  if (include == "pcre2.h" && file != "model/text/text_pattern.cpp")
    return "only model/text/text_pattern.cpp includes PCRE2";
  if (include == "utf8proc.h" && file != "model/text/unicode_text.cpp")
    return "only model/text/unicode_text.cpp includes utf8proc";
  if (include.starts_with("spdlog") && file != "core/log.cpp") return "only core/log.cpp includes spdlog";
  return "";
}

std::string project_violation(const std::string& file, const std::string& include) {
  const std::string folder = folder_of(file);
  const auto rule = allowed_project_includes().find(folder);
  if (rule == allowed_project_includes().end()) return "folder '" + folder + "' has no rule";
  const std::string method = method_of(file);
  const bool own = !method.empty() && method_of(include) == method;
  if (!own && !starts_with_any(include, rule->second)) return folder + " does not see it";
  const std::string of_model = model_violation(file, include);
  return of_model.empty() ? train_violation(file, include) : of_model;
}

struct Tree {
  int files = 0, includes = 0;
  std::vector<std::string> violations;
};

// The project's path (below src/, or apps/...) that a quoted include means, or "" for something foreign.
std::string resolve(const fs::path& root, const std::string& file, const std::string& include) {
  if (fs::exists(root / "src" / include)) return fs::path(include).lexically_normal().string();
  if (include.starts_with("apps/") && fs::exists(root / include)) return include;
  const fs::path beside = (fs::path(file).parent_path() / include).lexically_normal();
  if (fs::exists(root / "src" / beside) || fs::exists(root / beside)) return beside.string();
  return "";
}

void check_file(const fs::path& root, const fs::path& path, const std::string& file, Tree& tree) {
  static const std::regex pattern(R"(^\s*#\s*include\s*(.*)$)"), name(R"(^[<"]([^>"]+)[>"].*$)");
  std::ifstream stream(path);
  std::string line;
  ++tree.files;
  for (int number = 1; std::getline(stream, line); ++number) {
    std::smatch match;
    if (!std::regex_match(line, match, pattern)) continue;
    ++tree.includes;
    const std::string target = match[1].str();
    std::smatch found;
    std::string why;
    std::string include = target;
    if (!std::regex_match(target, found, name)) {
      why = "an include must name its file";
    } else {
      include = found[1].str();
      const std::string project = resolve(root, file, include);
      if (include.find("..") != std::string::npos)
        why = "includes are written from src/, without '..'";
      else if (!project.empty())
        why = project_violation(file, project);
      else if (target[0] == '"')
        why = "a quoted include must exist below src/";
      else
        why = foreign_violation(file, include);
    }
    if (!why.empty()) tree.violations.push_back(file + ":" + std::to_string(number) + ": " + include + ": " + why);
  }
}

// Checks `root`/src and `root`/apps.
Tree check_tree(const fs::path& root) {
  static const std::set<std::string> kSources = {".h", ".hpp", ".cpp", ".cu", ".cuh", ".inc", ".cc"};
  Tree tree;
  for (const char* top : {"src", "apps"}) {
    if (!fs::exists(root / top)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      if (!entry.is_regular_file() || !kSources.contains(entry.path().extension().string())) continue;
      check_file(root, entry.path(),
                 fs::relative(entry.path(), top == std::string("src") ? root / "src" : root).string(), tree);
    }
  }
  std::sort(tree.violations.begin(), tree.violations.end());
  return tree;
}

// The violations of a tree of the given files (path from the root -> text).
std::vector<std::string> violations(const std::map<std::string, std::string>& files) {
  const vmoba::test::TemporaryFolder temp;
  for (const auto& [path, text] : files) {
    fs::create_directories((fs::path(temp.path()) / path).parent_path());
    std::ofstream(temp.path() + "/" + path) << text;
  }
  return check_tree(temp.path()).violations;
}

// A tree with one header in every folder, to which a test adds an offender.
std::map<std::string, std::string> house() {
  return {{"src/core/check.h", "#include <string>\n"},
          {"src/core/log.cpp", "#include <spdlog/spdlog.h>\n"},
          {"src/attention/attention.h", "#include <ATen/core/Tensor.h>\n#include \"core/check.h\"\n"},
          {"src/attention/method.h", "#include \"attention/attention.h\"\n"},
          {"src/attention/methods.cpp", "#include \"attention/method.h\"\n#include \"attention/vmoba/vmoba.h\"\n"},
          {"src/attention/block/engine.h", "#include \"attention/attention.h\"\n#include \"attention/method.h\"\n"},
          {"src/attention/block/table_cache.h", "#include <mutex>\n"},
          {"src/attention/reference/reference.h", "#include \"attention/block/engine.h\"\n"},
          {"src/attention/native/native.h",
           "#include \"attention/block/engine.h\"\n#include \"attention/kernels/kernels.h\"\n"},
          {"src/attention/vmoba/vmoba.h", "#include \"attention/method.h\"\n#include \"attention/vmoba/config.h\"\n"},
          {"src/attention/vmoba/config.h", "#include \"attention/attention.h\"\n"},
          {"src/attention/full/full.h", "#include \"attention/method.h\"\n"},
          {"src/attention/kernels/kernels.h", "#include <cuda_runtime.h>\n"},
          {"src/attention/kernels/gate.cu", "#include <cute/tensor.hpp>\n#include \"attention/kernels/kernels.h\"\n"},
          {"src/ops/options.h", "#include \"attention/attention.h\"\n"},
          {"src/ops/options.cpp", "#include \"attention/block/table_cache.h\"\n#include \"core/check.h\"\n"},
          {"src/model/dit.h", "#include \"attention/attention.h\"\n#include \"core/check.h\"\n"},
          {"src/model/architecture.h", "#include \"model/dit.h\"\n#include \"model/weights/files.h\"\n"},
          {"src/model/architecture.cpp", "#include \"model/hunyuan_video/block.h\"\n"},
          {"src/model/common/rope.h", "#include <ATen/ATen.h>\n"},
          {"src/model/weights/files.h", "#include \"model/common/rope.h\"\n"},
          {"src/model/adapter/lora.h", "#include \"model/architecture.h\"\n#include \"model/weights/files.h\"\n"},
          {"src/model/codec/codec.cpp", "#include \"model/weights/files.h\"\n"},
          {"src/model/wan/wan.cpp",
           "#include \"model/architecture.h\"\n#include \"model/common/rope.h\"\n#include \"model/weights/files.h\"\n"},
          {"src/model/hunyuan_video/block.h", "#include \"model/common/rope.h\"\n"},
          {"src/data/video_writer.h", "#include \"core/check.h\"\n"},
          {"src/data/video_reader.cpp", "extern \"C\" {\n#include <libavformat/avformat.h>\n}\n"},
          {"src/sample/pipeline.h", "#include \"model/dit.h\"\n#include \"data/video_writer.h\"\n"},
          {"src/train/trainer.h", "#include \"sample/pipeline.h\"\n#include \"train/dist/world.h\"\n"},
          {"src/train/trainer.cpp", "#include \"train/trainer.h\"\n#include \"train/report/callback.h\"\n"},
          {"src/train/expert.h", "#include \"train/optim/optimizer.h\"\n#include \"train/dist/mesh.h\"\n"},
          {"src/train/batch.h", "#include \"model/dit.h\"\n"},
          {"src/train/cache/encode_cache.h", "#include \"train/batch.h\"\n"},
          {"src/train/checkpoint/checkpoint.h", "#include \"train/expert.h\"\n"},
          {"src/train/dist/mesh_sizes.h", "#include <cstdint>\n"},
          {"src/train/dist/mesh.h", "#include \"train/dist/world.h\"\n"},
          {"src/train/dist/nccl.cpp", "#include <nccl.h>\n#include <mpi.h>\n"},
          {"src/train/dist/world.h", "#include \"core/check.h\"\n"},
          {"src/train/forecast/rank_memory.cpp", "#include \"train/dist/mesh_sizes.h\"\n"},
          {"src/train/kernels/updates.h", "#include <cuda_runtime_api.h>\n"},
          {"src/train/optim/optimizer.h", "#include \"model/dit.h\"\n#include \"train/kernels/updates.h\"\n"},
          {"src/report/html.h", "#include \"core/check.h\"\n"},
          {"src/train/report/callback.h", "#include \"core/check.h\"\n#include \"report/html.h\"\n"},
          {"src/train/validation/videos.cpp", "#include \"train/expert.h\"\n"},
          {"apps/main_guard.h", "#include <CLI/CLI.hpp>\n"},
          {"apps/bench.cpp", "#include \"model/hunyuan_video/block.h\"\n"},
          {"apps/train.cpp", "#include \"apps/main_guard.h\"\n#include \"train/trainer.h\"\n"}};
}

}  // namespace

TEST_CASE("the project's own includes obey the rules") {
  const Tree tree = check_tree(vmoba::test::source_dir());
  std::string text;
  for (const std::string& violation : tree.violations) text += violation + "\n";
  INFO(text);
  CHECK(tree.violations.empty());
  CHECK(tree.files > 50);  // it did read the tree
  CHECK(tree.includes > 200);
}

TEST_CASE("a tree that obeys has no violations") {
  CHECK(violations(house()) == std::vector<std::string>{});
}

TEST_CASE("each broken rule is found") {
  struct Offence {
    std::string file, line, part;
  };
  const Offence offences[] = {
      {"src/core/x.cpp", "#include \"model/dit.h\"", "core does not see it"},
      {"src/core/x.cpp", "#include <ATen/ATen.h>", "core does not see torch"},
      {"src/core/x.cpp", "#include \"report/html.h\"", "core does not see it"},
      {"src/report/x.cpp", "#include <ATen/ATen.h>", "report does not see torch"},
      {"src/report/x.cpp", "#include \"train/report/callback.h\"", "report does not see it"},
      {"src/core/config.cpp", "#include <spdlog/spdlog.h>", "only core/log.cpp"},
      {"src/core/drawing.h", "#include <cairo.h>", "only core/drawing.cpp"},
      {"src/train/report/x.cpp", "#include <cairo-svg.h>", "only core/drawing.cpp"},
      {"src/core/x.cpp", "#include <xxhash.h>", "only core/hash.cpp"},
      {"src/model/text/x.cpp", "#include <pcre2.h>", "only model/text/text_pattern.cpp"},
      {"src/model/text/x.cpp", "#include <utf8proc.h>", "only model/text/unicode_text.cpp"},
      {"src/attention/kernels/x.cu", "#include <ATen/ATen.h>", "kernels do not see torch"},
      {"src/attention/kernels/x.cuh", "#include <torch/types.h>", "kernels do not see torch"},
      {"src/attention/kernels/x.cu", "#include \"core/check.h\"", "kernels does not see it"},
      {"src/attention/kernels/x.cu", "#include \"attention/attention.h\"", "kernels does not see it"},
      {"src/attention/block/x.cpp", "#include \"attention/vmoba/vmoba.h\"", "attention/block does not see it"},
      {"src/attention/block/x.cpp", "#include \"attention/reference/reference.h\"", "attention/block does not see it"},
      {"src/attention/reference/x.cpp", "#include \"attention/vmoba/vmoba.h\"", "attention/reference does not see it"},
      {"src/attention/reference/x.cpp", "#include \"attention/native/native.h\"",
       "attention/reference does not see it"},
      {"src/attention/native/x.cpp", "#include \"attention/method.h\"", "attention/native does not see it"},
      {"src/attention/full/x.cpp", "#include \"attention/vmoba/vmoba.h\"", "a method does not see it"},
      {"src/ops/x.cpp", "#include \"model/dit.h\"", "ops does not see it"},
      {"src/model/x.cpp", "#include \"ops/options.h\"", "model does not see it"},
      {"src/model/x.cpp", "#include \"attention/vmoba/config.h\"", "model does not see it"},
      {"src/model/kernels/x.cu", "#include <ATen/ATen.h>", "kernels do not see torch"},
      {"src/model/kernels/x.cu", "#include \"model/dit.h\"", "kernels does not see it"},
      {"src/train/kernels/x.cu", "#include <ATen/ATen.h>", "kernels do not see torch"},
      {"src/train/kernels/x.cpp", "#include \"core/check.h\"", "kernels does not see it"},
      {"src/train/report/x.cpp", "#include \"train/kernels/updates.h\"", "train/report does not see it"},
      {"src/attention/x.cpp", "#include \"model/dit.h\"", "attention does not see it"},
      {"src/model/x.cpp", "#include \"attention/block/engine.h\"", "model does not see it"},
      {"src/model/x.cpp", "#include \"attention/kernels/kernels.h\"", "model does not see it"},
      {"src/model/x.cpp", "#include \"data/video_writer.h\"", "model does not see it"},
      {"src/model/wan/x.cpp", "#include \"model/hunyuan_video/block.h\"", "one model never includes another"},
      {"src/model/x.cpp", "#include \"model/hunyuan_video/block.h\"", "a model's folder"},
      {"src/model/weights/x.cpp", "#include \"model/hunyuan_video/block.h\"", "a model's folder"},
      {"src/model/adapter/x.cpp", "#include \"model/hunyuan_video/block.h\"", "a model's folder"},
      {"src/config/x.cpp", "#include \"model/hunyuan_video/block.h\"", "a model's folder"},
      {"src/train/x.cpp", "#include \"model/hunyuan_video/block.h\"", "a model's folder"},
      {"src/model/weights/x.cpp", "#include \"model/adapter/lora.h\"", "model/weights does not see model/adapter"},
      {"src/model/common/x.cpp", "#include \"model/weights/files.h\"", "model/common does not see model/weights"},
      {"src/model/codec/x.cpp", "#include \"model/adapter/lora.h\"", "model/codec does not see model/adapter"},
      {"src/model/wan/x.cpp", "#include \"model/adapter/lora.h\"", "model/wan does not see model/adapter"},
      {"src/data/x.cpp", "#include \"model/dit.h\"", "data does not see it"},
      {"src/data/x.h", "#include <libavcodec/avcodec.h>", "only data's .cpp"},
      {"src/sample/x.cpp", "#include <libswscale/swscale.h>", "only data's .cpp"},
      {"src/sample/x.cpp", "#include \"train/trainer.h\"", "sample does not see it"},
      {"src/train/x.cpp", "#include \"train/trainer.h\"", "do not see the trainer"},
      {"src/train/optim/x.cpp", "#include \"train/trainer.h\"", "do not see the trainer"},
      {"src/train/optim/x.cpp", "#include \"train/dist/mesh_sizes.h\"", "train/optim does not see it"},
      {"src/train/optim/x.cpp", "#include \"train/expert.h\"", "train/optim does not see it"},
      {"src/train/codec/x.cpp", "#include \"train/expert.h\"", "train/codec does not see it"},
      {"src/train/report/x.cpp", "#include \"train/expert.h\"", "train/report does not see it"},
      {"src/train/dist/x.cpp", "#include \"train/optim/optimizer.h\"", "train/dist does not see it"},
      {"src/train/dist/x.cpp", "#include \"train/batch.h\"", "train/dist does not see it"},
      {"src/train/forecast/x.cpp", "#include \"train/dist/world.h\"", "train/forecast does not see it"},
      {"src/train/forecast/x.cpp", "#include \"train/dist/mesh.h\"", "train/forecast does not see it"},
      {"src/train/checkpoint/x.cpp", "#include \"train/report/callback.h\"", "train/checkpoint does not see it"},
      {"src/train/cache/x.cpp", "#include \"train/expert.h\"", "train/cache does not see it"},
      {"src/train/validation/x.cpp", "#include \"train/checkpoint/checkpoint.h\"", "train/validation does not see it"},
      {"src/train/attic/x.cpp", "#include \"train/batch.h\"", "room 'train/attic' has no rule"},
      {"src/train/x.cpp", "#include <mpi.h>", "only train/dist"},
      {"src/train/x.cpp", "#include <nccl.h>", "only train/dist"},
      {"src/train/x.cpp", "#include \"attention/block/engine.h\"", "train does not see it"},
      {"src/train/x.cpp", "#include \"apps/main_guard.h\"", "train does not see it"},
      {"src/train/x.cpp", "#include \"../model/dit.h\"", "without '..'"},
      {"src/train/x.cpp", "#include \"model/nowhere.h\"", "must exist below src/"},
      {"src/train/x.cpp", "#include HEADER", "must name its file"},
      {"src/train/x.cpp", "  #  include <mpi.h>  // why", "only train/dist"},
      {"src/core/x.cpp", "#include <model/dit.h>", "core does not see it"},  // angle brackets hide nothing
      {"src/new_folder/x.cpp", "#include \"core/check.h\"", "has no rule"},
      {"apps/x.cpp", "#include <mpi.h>", "only train/dist"},
  };
  for (const Offence& offence : offences) {
    auto files = house();
    files[offence.file] = "#include <vector>\n" + offence.line + "\n";
    const auto found = violations(files);
    INFO(offence.file << " " << offence.line);
    REQUIRE(found.size() == 1);
    INFO(found[0]);
    CHECK(found[0].find(offence.part) != std::string::npos);
    CHECK(found[0].find(":2: ") != std::string::npos);
  }
}

TEST_CASE("a file beside may be named without its folder, and falls under the same rules") {
  auto files = house();
  files["src/model/wan/block.h"] = "";
  files["src/model/wan/x.cpp"] = "#include \"block.h\"\n";
  CHECK(violations(files).empty());
}
