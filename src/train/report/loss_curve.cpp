#include "train/report/loss_curve.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "train/report/bitmap_font.h"
#include "train/report/canvas.h"

namespace vmoba::train {
namespace {

using Points = std::vector<std::pair<int64_t, double>>;
using Path = std::vector<std::pair<double, double>>;

constexpr Color kBackground{255, 255, 255}, kGrid{228, 231, 236}, kAxis{90, 96, 108}, kInk{40, 44, 52};
constexpr Color kLine{28, 90, 180};
constexpr double kRawOpacity = 0.28;

// Values of both axes and where they lie on the picture.
struct Frame {
  Rectangle area;
  double first_step, last_step, low, high;

  double x(double step) const {
    return area.left + (step - first_step) / (last_step - first_step) * (area.right - area.left);
  }
  double y(double loss) const { return area.bottom - (loss - low) / (high - low) * (area.bottom - area.top); }
};

Points finite_only(const Points& points) {
  Points kept;
  for (const auto& point : points)
    if (std::isfinite(point.second)) kept.push_back(point);
  return kept;
}

Frame make_frame(const Points& points, const std::vector<double>& means, const LossCurveStyle& style) {
  Frame frame{{110, 64, double(style.width) - 32, double(style.height) - 76}, 0, 1, 0, 1};
  if (points.empty()) return frame;
  frame.first_step = double(points.front().first);
  frame.last_step = std::max(double(points.back().first), frame.first_step + 1);
  std::vector<double> losses;
  for (const auto& [step, loss] : points) losses.push_back(loss);
  std::sort(losses.begin(), losses.end());
  // The highest percent may run out of the frame; the mean line never does.
  const double usual = losses[size_t(std::ceil(double(losses.size() - 1) * 0.99))];
  frame.low = losses.front();
  frame.high = std::max(usual, *std::max_element(means.begin(), means.end()));
  const double margin = std::max(0.06 * (frame.high - frame.low), 1e-3 * std::abs(frame.high) + 1e-12);
  // A loss that is near 0 at its lowest is shown from 0.
  const bool from_zero = frame.low >= 0 && frame.low < 0.3 * frame.high;
  frame.low = from_zero ? 0 : frame.low - margin;
  frame.high += margin;
  return frame;
}

// Steps -> path. Where several steps share a pixel column, only the lowest and highest of the column are drawn.
Path make_path(const Frame& frame, const Points& points) {
  Path path;
  for (size_t i = 0; i < points.size();) {
    const double column = std::floor(frame.x(double(points[i].first)));
    size_t end = i, lowest = i, highest = i;
    for (; end < points.size() && std::floor(frame.x(double(points[end].first))) == column; ++end) {
      if (points[end].second < points[lowest].second) lowest = end;
      if (points[end].second > points[highest].second) highest = end;
    }
    for (size_t at : {std::min(lowest, highest), std::max(lowest, highest)}) {
      // Far outside the frame is as good as infinitely far, and cheaper to draw.
      const double y = std::max(frame.y(points[at].second), frame.area.top - 100);
      path.emplace_back(frame.x(double(points[at].first)), y);
      if (lowest == highest) break;
    }
    i = end;
  }
  return path;
}

std::string tick_label(double value, double spacing) {
  if (value == 0) return "0";
  if (std::abs(value) >= 1e6 || spacing < 1e-4) return fmt::format("{:.3g}", value);
  const int decimals = std::max(0, -int(std::floor(std::log10(spacing) + 1e-9)));
  return fmt::format("{:.{}f}", value, decimals);
}

void draw_axes(Canvas& canvas, const Frame& frame) {
  const Rectangle& area = frame.area;
  const auto losses = axis_ticks(frame.low, frame.high, 6);
  const auto steps = axis_ticks(frame.first_step, frame.last_step, 8);
  const auto spacing = [](const std::vector<double>& ticks) { return ticks.size() > 1 ? ticks[1] - ticks[0] : 1.0; };
  for (double tick : losses) {
    const double y = std::round(frame.y(tick));
    canvas.fill({area.left, y, area.right, y + 1}, kGrid);
    const std::string label = tick_label(tick, spacing(losses));
    canvas.text(area.left - 12 - double(Canvas::text_width(label, 2)), y - kGlyphHeight, label, 2, kInk);
  }
  for (double tick : steps) {
    if (tick != std::floor(tick)) continue;  // there is no half step
    const double x = std::round(frame.x(tick));
    canvas.fill({x, area.top, x + 1, area.bottom}, kGrid);
    canvas.fill({x, area.bottom, x + 1, area.bottom + 6}, kAxis);
    const std::string label = tick_label(tick, std::max(1.0, spacing(steps)));
    canvas.text(x - double(Canvas::text_width(label, 2)) / 2, area.bottom + 14, label, 2, kInk);
  }
  canvas.fill({area.left, area.bottom, area.right, area.bottom + 2}, kAxis);
  canvas.fill({area.left - 2, area.top, area.left, area.bottom + 2}, kAxis);
  const double middle = (area.left + area.right) / 2;
  canvas.text(middle - double(Canvas::text_width("step", 2)) / 2, area.bottom + 46, "step", 2, kInk);
  canvas.text(16, (area.top + area.bottom) / 2 + double(Canvas::text_width("loss", 2)) / 2, "loss", 2, kInk, true);
}

size_t half_window(size_t points) {
  return points < 6 ? 0 : std::max<size_t>(2, points / 30);
}

void draw_legend(Canvas& canvas, const Frame& frame, size_t points) {
  const std::string mean = fmt::format("mean of {} steps", 2 * half_window(points) + 1), raw = "each step";
  const Rectangle whole{0, 0, double(canvas.width()), double(canvas.height())};
  double x = frame.area.right - double(Canvas::text_width(raw, 2));
  const double y = frame.area.top - 22;
  canvas.text(x, y, raw, 2, kInk);
  const bool averaged = half_window(points) > 0;
  canvas.polyline({{x - 44, y + 7}, {x - 10, y + 7}}, 3, kLine, averaged ? kRawOpacity * 1.6 : 1.0, whole);
  if (!averaged) return;
  x -= 84 + double(Canvas::text_width(mean, 2));
  canvas.text(x, y, mean, 2, kInk);
  canvas.polyline({{x - 44, y + 7}, {x - 10, y + 7}}, 3, kLine, 1.0, whole);
}

}  // namespace

std::vector<double> smoothed(const Points& points) {
  const size_t half = half_window(points.size());
  std::vector<double> sums = {0.0}, means;
  for (const auto& [step, loss] : points) sums.push_back(sums.back() + loss);
  for (size_t i = 0; i < points.size(); ++i) {
    const size_t first = i - std::min(half, i), end = std::min(points.size(), i + half + 1);
    means.push_back((sums[end] - sums[first]) / double(end - first));
  }
  return means;
}

std::vector<double> axis_ticks(double low, double high, int count) {
  const double raw = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double lead = raw / power;
  const double spacing = power * (lead < 1.41 ? 1 : lead < 3.16 ? 2 : lead < 7.07 ? 5 : 10);
  std::vector<double> ticks;
  const double first = std::ceil(low / spacing - 1e-9);
  // Counted, for `first + 1` may equal `first` far from 0.
  for (int i = 0; i <= 2 * count && (first + i) * spacing <= high + 1e-9 * spacing; ++i)
    ticks.push_back((first + i) * spacing);
  return ticks;
}

RgbImage draw_loss_curve(const Points& points, const LossCurveStyle& style) {
  VMOBA_CHECK_INPUT(style.width >= 320 && style.height >= 240 && style.width <= 16384 && style.height <= 16384,
                    "expected a loss curve of 320x240 to 16384x16384 pixels, found {}x{}", style.width, style.height);
  const Points shown = finite_only(points);
  const std::vector<double> means = smoothed(shown);
  const Frame frame = make_frame(shown, means, style);
  Canvas canvas(style.width, style.height, kBackground);
  canvas.text(frame.area.left, 10, style.title.substr(0, size_t(style.width - 142) / (kGlyphAdvance * 3)), 3, kInk);
  draw_axes(canvas, frame);
  if (shown.empty()) {
    canvas.text(frame.area.left + 40, (frame.area.top + frame.area.bottom) / 2, "no steps recorded", 2, kAxis);
    return {style.width, style.height, canvas.take()};
  }
  Points mean_points = shown;
  for (size_t i = 0; i < shown.size(); ++i) mean_points[i].second = means[i];
  const auto draw = [&](Path path, double thickness, double opacity) {
    if (path.size() == 1) path.push_back({path[0].first + 0.01, path[0].second});  // a single step is a dot
    canvas.polyline(path, thickness, kLine, opacity, frame.area);
  };
  const bool averaged = half_window(shown.size()) > 0;
  draw(make_path(frame, shown), shown.size() == 1 ? 8 : averaged ? 1.5 : 3, averaged ? kRawOpacity : 1.0);
  if (averaged) draw(make_path(frame, mean_points), 3, 1.0);
  draw_legend(canvas, frame, shown.size());
  return {style.width, style.height, canvas.take()};
}

}  // namespace vmoba::train
