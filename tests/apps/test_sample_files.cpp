// vmoba-sample's files: every kind that the name can say, several videos of one call, seeds, and what is refused before
// anything is loaded.
#include <array>
#include <filesystem>
#include <fstream>
#include <set>

#include "support/catch.h"
#include "support/messages.h"
#include "support/paths.h"
#include "support/process.h"

using namespace vmoba::test;
namespace fs = std::filesystem;

namespace {

const std::string kSample = bin_dir() + "/vmoba-sample";

// A run of one step that the cases share, with a LoRA beside.
const std::string& run_folder() {
  static const TemporaryFolder folder;
  static const std::string run = folder.path() + "/run";
  static const ProcessResult trained =
      run_process({bin_dir() + "/vmoba-train", "--config", fixtures() + "/train/tiny.yaml", "run.dir=" + run,
                   "train.steps=2", "train.checkpoint_every=1", "train.ema.enabled=false"});
  INFO(trained.output);
  REQUIRE(trained.exit_code == 0);
  return run;
}

ProcessResult sampled(const std::vector<std::string>& extra) {
  std::vector<std::string> command = {kSample, "--checkpoint", run_folder(), "sample.steps=1"};
  command.insert(command.end(), extra.begin(), extra.end());
  return run_process(command);
}

std::string must(const ProcessResult& result) {
  INFO(result.output);
  REQUIRE(result.exit_code == 0);
  return result.output;
}

std::string probe(const std::string& path) {
  return run_process({"ffprobe", "-v", "error", "-select_streams", "v:0", "-count_frames", "-show_entries",
                      "stream=codec_name,width,height,nb_read_frames", "-of", "csv=p=0", path})
      .output;
}

// The frames of a file as ffmpeg decodes them: a hash of RGB values.
std::string frames_hash(const std::vector<std::string>& input) {
  std::vector<std::string> command = {"ffmpeg", "-v", "error"};
  command.insert(command.end(), input.begin(), input.end());
  for (const char* word : {"-pix_fmt", "rgb24", "-f", "md5", "-"}) command.push_back(word);
  return run_process(command).output;
}

}  // namespace

TEST_CASE("the name's end chooses the kind of file; the lossless ones hold the same frames") {
  const TemporaryFolder folder;
  const auto file = [&](const std::string& name) {
    must(sampled({"--prompt", "a rocket", "--seed", "4", "--out", folder.path() + "/" + name}));
    return folder.path() + "/" + name;
  };
  CHECK(probe(file("a.mp4")) == "h264,64,32,5\n");
  CHECK(probe(file("a.webm")) == "vp9,64,32,5\n");
  CHECK(probe(file("a.gif")) == "gif,64,32,5\n");
  const std::string lossless = file("a.mkv");
  CHECK(probe(lossless) == "ffv1,64,32,5\n");
  const std::string pictures = file("sub/folder/%03d.png");  // folders are made
  CHECK(fs::exists(folder.path() + "/sub/folder/000.png"));
  CHECK(fs::exists(folder.path() + "/sub/folder/004.png"));
  CHECK_FALSE(fs::exists(folder.path() + "/sub/folder/005.png"));
  const std::string exact = frames_hash({"-i", lossless});
  CHECK(contains(exact, "MD5="));
  CHECK(exact == frames_hash({"-framerate", "8", "-i", pictures}));
  CHECK(exact != frames_hash({"-i", folder.path() + "/a.mp4"}));
  for (const std::string name : {"a.webm", "a.gif", "a.mkv"}) {
    const std::string bytes = read_text(folder.path() + "/" + name);
    file(name);
    CHECK(read_text(folder.path() + "/" + name) == bytes);
  }
}

TEST_CASE("a name that says no file, or a folder that cannot be written, is refused before anything is loaded") {
  const TemporaryFolder folder;
  const std::string blocked = folder.path() + "/file";
  std::ofstream(blocked) << "x";
  // Weights that are missing would be the next complaint.
  const auto refused = [&](const std::string& out, const std::string& says) {
    const ProcessResult result = sampled({"--prompt", "x", "--out", out, "codec.weights=/none", "codec.type=dct"});
    INFO(out << "\n" << result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, says));
    CHECK_FALSE(contains(result.output, "weights: "));
  };
  refused(folder.path() + "/x.avi", ".webm");
  refused(folder.path() + "/x", "ends in .mp4");
  refused(folder.path() + "/x.png", "%04d.png");
  refused(folder.path(), "found the folder");
  refused(folder.path() + "/", "found the folder");
  refused(blocked + "/x.mp4", "cannot be made");
  refused("/proc/x.mp4", "cannot be written");  // where rights allow what the file system does not
  const ProcessResult fast = sampled({"--prompt", "x", "--out", folder.path() + "/x.gif", "sample.fps=60"});
  INFO(fast.output);
  CHECK(fast.exit_code == 2);
  CHECK(contains(fast.output, "sample.fps: expected at most 50"));
  const ProcessResult size = sampled({"--prompt", "x", "--out", folder.path() + "/x.mp4", "sample.frames=4"});
  CHECK(size.exit_code == 2);
  CHECK(contains(size.output, "sample.frames"));
  CHECK_FALSE(contains(size.output, "weights: "));
  CHECK_FALSE(fs::exists(folder.path() + "/x.mp4"));
}

TEST_CASE("a seed of -1 is drawn and printed, and gives the video again") {
  const TemporaryFolder folder;
  const auto seed_of = [](const std::string& output) {
    const size_t at = output.find("seed ");
    REQUIRE(at != std::string::npos);
    return output.substr(at + 5, output.find(',', at) - at - 5);
  };
  const std::string one = folder.path() + "/1.mkv", two = folder.path() + "/2.mkv", again = folder.path() + "/3.mkv";
  const std::string first = must(sampled({"--prompt", "x", "--seed", "-1", "--out", one}));
  const std::string second = must(sampled({"--prompt", "x", "--seed=-1", "--out", two}));
  CHECK(seed_of(first) != seed_of(second));
  CHECK(read_text(one) != read_text(two));
  must(sampled({"--prompt", "x", "--seed", seed_of(first), "--out", again}));
  CHECK(read_text(one) == read_text(again));
  CHECK(contains(first, "density "));
  CHECK(contains(first, " s of which denoising "));
  CHECK(sampled({"--prompt", "x", "--seed", "-2", "--out", one}).exit_code == 2);
}

TEST_CASE("a file of prompts makes a video of each line with one load") {
  const TemporaryFolder folder;
  const std::string prompts = folder.path() + "/prompts.txt";
  std::ofstream(prompts) << "# comment\n\na red lift --w 64 --h 48 --f 9 --d 5 --s 2 --g 1 --fs 3 --n blurry\n"
                         << "a gold mirror --zz 6\n";
  const ProcessResult odd = sampled({"--prompts", prompts, "--out", folder.path() + "/v.mkv"});
  CHECK(odd.exit_code == 2);
  CHECK(contains(odd.output, "prompts.txt:4: "));
  std::ofstream(prompts) << "# comment\n\na red lift --w 64 --h 48 --f 9 --d 5 --s 2 --g 1 --fs 3 --n blurry\n"
                         << "a gold mirror -- with dashes --d 6\n";
  const std::string output = must(sampled({"--prompts", prompts, "--out", folder.path() + "/v.mkv"}));
  CHECK(probe(folder.path() + "/v-000.mkv") == "ffv1,64,48,9\n");
  CHECK(probe(folder.path() + "/v-001.mkv") == "ffv1,64,32,5\n");
  CHECK(lines_of(output).size() > 2);
  CHECK(output.find("weights: ") == output.rfind("weights: "));  // one load
  // The first is what a call for it alone gives.
  must(sampled({"--prompt", "a red lift", "--negative-prompt", "blurry", "--seed", "5", "--out",
                folder.path() + "/alone.mkv", "sample.width=64", "sample.height=48", "sample.frames=9",
                "sample.steps=2", "sample.guidance=1", "sample.shift=3"}));
  CHECK(read_text(folder.path() + "/alone.mkv") == read_text(folder.path() + "/v-000.mkv"));
  // Two processes share the file.
  must(sampled({"--prompts", prompts, "--out", folder.path() + "/half/", "--rank", "1", "--ranks", "2"}));
  CHECK_FALSE(fs::exists(folder.path() + "/half/000.mp4"));
  CHECK(fs::exists(folder.path() + "/half/001.mp4"));
  // A name without an end is a folder, for one video of a file too.
  std::ofstream(prompts) << "a red lift\n";
  must(sampled({"--prompts", prompts, "--out", folder.path() + "/made"}));
  CHECK(fs::exists(folder.path() + "/made/000.mp4"));
}

TEST_CASE("images and LoRA files are looked at before anything is loaded") {
  const TemporaryFolder folder;
  const std::string text = folder.path() + "/x.png", out = folder.path() + "/v.mp4";
  std::ofstream(text) << "<!DOCTYPE html><html>Sign in</html>";
  const auto refused = [&](const std::vector<std::string>& extra, const std::string& says) {
    const ProcessResult result = sampled(extra);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, says));
    CHECK_FALSE(contains(result.output, "weights: "));
  };
  std::ofstream(folder.path() + "/p.jsonl")
      << "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"image\": \"" << text << "\"}\n";
  refused({"--prompts", folder.path() + "/p.jsonl", "--out", out}, "web page");
  refused({"--prompt", "a", "--out", out, "--lora", text}, "HTML page");
  const std::string picture = fixtures() + "/data/pictures/grey.png";
  refused({"--prompt", "a", "--out", out, "--image", picture}, "expected i2v, flf2v or ti2v for an image");
  refused({"--prompt", "a", "--out", out, "--last-image", picture}, "expected flf2v for the image of the last frame");
  refused({"--prompt", "a", "--out", out, "--lora-strength", "0.5"}, "--lora-strength: expected --lora beside it");
  refused({"--prompt", "a", "--out", out, "--lora", text, "--lora-strength", "nan"}, "expected a number");
  refused({"--prompt", "a", "--out", out, "--seed", "99999999999999999999"}, "expected a whole number");
  refused({"--prompt", "a", "--out", out, "--lora", folder.path() + "/none.safetensors"}, "none.safetensors");
}

TEST_CASE("only the weights that are sampled must be whole") {
  const TemporaryFolder folder;
  const std::string run = folder.path() + "/run", checkpoint = run + "/checkpoint-1";
  must(run_process({bin_dir() + "/vmoba-train", "--config", fixtures() + "/train/tiny.yaml", "run.dir=" + run,
                    "train.steps=1", "train.tensorboard=false"}));
  const std::string average = checkpoint + "/transformer_ema/diffusion_pytorch_model.safetensors";
  std::string bytes = read_text(average);
  bytes.back() = char(bytes.back() ^ 1);
  std::ofstream(average, std::ios::binary) << bytes;
  const std::vector<std::string> command = {kSample, "--checkpoint",           checkpoint,      "--prompt", "x",
                                            "--out", folder.path() + "/v.mp4", "sample.steps=1"};
  const ProcessResult averaged = run_process(command);
  INFO(averaged.output);
  CHECK(averaged.exit_code == 2);
  CHECK(contains(averaged.output, "transformer_ema"));
  std::vector<std::string> trained = command;
  trained.push_back("--no-ema");
  must(run_process(trained));
}

TEST_CASE("JSON prompts, as a list, named data, or lines") {
  const TemporaryFolder folder;
  const auto made = [&](const std::string& name, const std::string& text) {
    std::ofstream(folder.path() + "/" + name) << text;
    return sampled({"--prompts", folder.path() + "/" + name, "--out", folder.path() + "/v.mkv"});
  };
  must(made("a.json", R"({"data": [{"caption": "a", "num_frames": 9, "height": 32, "width": 64,
                                    "num_inference_steps": 1, "image_path": null},
                                   {"prompt": "b", "seed": 3, "out": ")" +
                          folder.path() + R"(/named.gif"}]})"));
  CHECK(probe(folder.path() + "/v-000.mkv") == "ffv1,64,32,9\n");
  CHECK(probe(folder.path() + "/named.gif") == "gif,64,32,5\n");
  must(made("b.jsonl", "{\"prompt\": \"a\"}\n{\"text\": \"b\", \"guidance\": 1.5}\n"));
  CHECK(fs::exists(folder.path() + "/v-001.mkv"));
  const auto refused = [&](const std::string& text, const std::string& says) {
    const ProcessResult result = made("c.json", text);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, says));
  };
  refused(R"([{"prompt": "a", "gidance": 2}])", "did you mean 'guidance'");
  refused(R"([{"prompt": "a", "steps": 0}])", "c.json[0]: steps: expected 1 .. 1000");
  refused(R"([{"prompt": "a", "width": "wide"}])", "c.json[0]: width: expected a whole number");
  refused(R"([{"seed": 1}])", "expected a prompt");
  refused(R"([{"prompt": "a", "frames": 6}])", "sample.frames");
  refused(R"([{"prompt": "a", "out": "x.mkv"}, {"prompt": "b", "out": "x.mkv"}])", "twice");
  refused(R"([{"prompt": "a")", "c.json");
  refused("[]", "found none");
  // Of another kind, where every line would be a prompt.
  for (const auto& [name, text, says] : std::vector<std::array<std::string, 3>>{
           {"d.csv", "prompt,seed\na,1\n", "expected a file of lines (.txt), .jsonl or .json"},
           {"d.yaml", "- prompt: a\n", "expected a file of lines (.txt), .jsonl or .json"},
           {"d.txt", "{\"prompt\": \"a\"}\n", "d.txt:1: expected a prompt, found JSON; name the file .jsonl"},
           {"e.txt", "[\n{\"prompt\": \"a\"}]\n", "e.txt:1: expected a prompt, found JSON"}}) {
    const ProcessResult result = made(name, text);
    INFO(result.output);
    CHECK(result.exit_code == 2);
    CHECK(contains(result.output, says));
  }
}

TEST_CASE("a run's folder means its newest checkpoint") {
  const TemporaryFolder folder;
  const std::string out = folder.path() + "/a.mkv", named = folder.path() + "/b.mkv";
  const std::string output = must(sampled({"--prompt", "x", "--out", out}));
  CHECK(contains(output, "checkpoint-2 is the newest"));
  must(run_process(
      {kSample, "--checkpoint", run_folder() + "/checkpoint-2", "--prompt", "x", "--out", named, "sample.steps=1"}));
  CHECK(read_text(out) == read_text(named));
}

TEST_CASE("an override behind --lora is an override") {
  const TemporaryFolder folder;
  const std::string run = folder.path() + "/lora";
  must(run_process({bin_dir() + "/vmoba-train", "--config", fixtures() + "/train/tiny.yaml", "run.dir=" + run,
                    "train.steps=1", "train.ema.enabled=false", "lora.rank=2",
                    "model.weights=" + run_folder() + "/checkpoint-2/transformer"}));
  const std::string lora = run + "/checkpoint-1/lora/comfyui.safetensors";
  const std::string output =
      must(sampled({"--prompt", "x", "--out", folder.path() + "/a.mkv", "--lora", lora, "sample.frames=9"}));
  CHECK(probe(folder.path() + "/a.mkv") == "ffv1,64,32,9\n");
  CHECK(contains(output, "9 frames of 64x32"));
  must(
      sampled({"--prompt", "x", "--lora", lora, "--lora", lora, "sample.frames=1", "--out", folder.path() + "/b.png"}));
  CHECK(fs::exists(folder.path() + "/b.png"));
}
