// vmoba-plot: a metric of several runs in one picture (docs/running.md).
#include <filesystem>
#include <iostream>

#include "apps/main_guard.h"
#include "core/file.h"
#include "train/report/run_chart.h"

namespace {

using namespace vmoba;

struct Arguments {
  std::vector<std::string> files, names;
  std::string x = "step", y = "loss", out = "plot.png";
  int64_t window = 0, width = 1200, height = 720;
};

int plot(const Arguments& a) {
  std::vector<std::string> paths = a.files;
  for (std::string& path : paths)
    if (std::filesystem::is_directory(path)) path += "/metrics.jsonl";
  const std::vector<std::string> names = a.names.empty() ? train::run_names(paths) : a.names;
  VMOBA_CHECK_INPUT(names.size() == paths.size(), "--name: expected one for each of {} runs, found {}", paths.size(),
                    names.size());
  std::vector<train::RunCurve> curves;
  for (size_t i = 0; i < paths.size(); ++i) {
    curves.push_back(train::read_run_curve(paths[i], a.x, a.y));
    curves.back().name = names[i];
  }
  Chart chart = train::run_chart(curves, a.x, a.y, a.window);
  chart.width = a.width;
  chart.height = a.height;
  const bool svg = a.out.ends_with(".svg");
  VMOBA_CHECK_INPUT(svg || a.out.ends_with(".png"), "--out: expected a .png or .svg, found '{}'", a.out);
  write_file_atomically(a.out, svg ? chart_to_svg(chart) : chart_to_png(chart));
  std::cout << a.out << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Draws a metric of several runs in one picture."};
  Arguments a;
  app.add_option("runs", a.files, "metrics.jsonl files, or the folders of runs")->required();
  app.add_option("--x", a.x, "What the horizontal axis counts (step)")->check(CLI::IsMember(train::run_axes()));
  app.add_option("--y", a.y, "A number of metrics.jsonl: loss (default), val_loss, grad_norm, density, ...");
  app.add_option("--name", a.names, "Names in the legend, in the order of the runs (default: their folders')")
      ->allow_extra_args(false);
  app.add_option("--window", a.window, "Points of the moving mean; 1: none (default: a thirtieth of more than 100)")
      ->check(CLI::PositiveNumber);
  app.add_option("--out", a.out, "The .png or .svg to write (plot.png)");
  app.add_option("--width", a.width, "Pixels (1200)")->check(CLI::Range(320, 16384));
  app.add_option("--height", a.height, "Pixels (720)")->check(CLI::Range(240, 16384));
  return apps::guarded_main(app, argc, argv, [&] { return plot(a); });
}
