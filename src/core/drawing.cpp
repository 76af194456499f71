#include "core/drawing.h"

#include <cairo-svg.h>
#include <cairo.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numbers>

#include "core/check.h"

namespace vmoba {
namespace {

using Surface = std::unique_ptr<cairo_surface_t, decltype(&cairo_surface_destroy)>;
using Context = std::unique_ptr<cairo_t, decltype(&cairo_destroy)>;
using Path = std::vector<std::pair<double, double>>;

constexpr Color kBackground{255, 255, 255}, kGrid{230, 233, 238}, kAxis{120, 126, 138}, kInk{44, 48, 56};
constexpr double kLegendSample = 1.8;     // length of a line in the legend, in text heights
constexpr double kLeastLegendInk = 0.45;  // a faint line must be seen in the legend too
constexpr double kFarOutside = 100;       // pixels: as good as infinitely far

struct Box {
  double left, top, right, bottom;
};

struct Tick {
  double pixel;
  std::string label;
};

cairo_status_t append_bytes(void* file, const unsigned char* bytes, unsigned count) {
  static_cast<std::string*>(file)->append(reinterpret_cast<const char*>(bytes), count);
  return CAIRO_STATUS_SUCCESS;
}

void check_status(cairo_status_t status) {
  VMOBA_CHECK(status == CAIRO_STATUS_SUCCESS, "expected to draw a chart, failed: {}", cairo_status_to_string(status));
}

void check_axis(const char* name, const ChartAxis& axis) {
  VMOBA_CHECK_INPUT(std::isfinite(axis.low) && std::isfinite(axis.high) && axis.low < axis.high,
                    "expected a chart's {} axis to rise from a finite number to another, found {} to {}", name,
                    axis.low, axis.high);
  VMOBA_CHECK_INPUT(axis.scale == AxisScale::kLinear || axis.low > 0,
                    "expected a chart's logarithmic {} axis to begin above 0, found {}", name, axis.low);
}

// Where a value lies on an axis that goes from pixel `first` to pixel `last`.
double pixel_of(const ChartAxis& axis, double value, double first, double last) {
  const bool linear = axis.scale == AxisScale::kLinear;
  const double share = linear ? (value - axis.low) / (axis.high - axis.low)
                              : std::log(value / axis.low) / std::log(axis.high / axis.low);
  return first + share * (last - first);
}

std::string with_unit(double value, double spacing, double unit, const char* suffix) {
  const int decimals = std::max(0, -int(std::floor(std::log10(spacing / unit) + 1e-9)));
  std::string digits = fmt::format("{:.{}f}", value / unit, decimals);
  if (decimals > 0) digits.erase(digits.find_last_not_of('0') + 1);
  if (digits.back() == '.') digits.pop_back();
  return digits + suffix;
}

std::string tick_label(double value, double spacing) {
  const double size = std::abs(value);
  if (value == 0) return "0";
  if (size >= 1e9 || spacing < 1e-4) return fmt::format("{:.3g}", value);
  if (size >= 1e6) return with_unit(value, spacing, 1e6, "M");
  if (size >= 1e4) return with_unit(value, spacing, 1e3, "k");
  return fmt::format("{:.{}f}", value, std::max(0, -int(std::floor(std::log10(spacing) + 1e-9))));
}

// Where several points share a pixel column, only the lowest and the highest of the column are drawn: a million points
// cost no more than their pixels.
Path thinned(const Path& path) {
  Path kept;
  for (size_t i = 0; i < path.size();) {
    const double column = std::floor(path[i].first);
    size_t end = i, lowest = i, highest = i;
    for (; end < path.size() && std::floor(path[end].first) == column; ++end) {
      if (path[end].second < path[lowest].second) lowest = end;
      if (path[end].second > path[highest].second) highest = end;
    }
    kept.push_back(path[std::min(lowest, highest)]);
    if (lowest != highest) kept.push_back(path[std::max(lowest, highest)]);
    i = end;
  }
  return kept;
}

class Drawing {
 public:
  Drawing(cairo_t* context, const Chart& chart)
      : context_(context),
        chart_(chart),
        text_(std::max(11.0, double(chart.width) / 60)),
        scale_(std::max(0.75, double(chart.width) / 800)) {
    cairo_font_options_t* options = cairo_font_options_create();
    cairo_font_options_set_antialias(options, CAIRO_ANTIALIAS_GRAY);
    cairo_font_options_set_hint_metrics(options, CAIRO_HINT_METRICS_OFF);
    cairo_set_font_options(context_, options);
    cairo_font_options_destroy(options);
    const bool named =
        std::any_of(chart.lines.begin(), chart.lines.end(), [](const auto& l) { return !l.name.empty(); });
    const double title = chart.title.empty() ? 0 : 2 * text_, legend = named ? 1.8 * text_ : 0;
    area_ = {0, text_ + title + legend, double(chart.width) - 1.6 * text_, double(chart.height) - 4 * text_};
    y_ = ticks(chart.y, area_.bottom, area_.top, 6);
    double widest = 0;
    for (const Tick& tick : y_) widest = std::max(widest, text_width(tick.label));
    area_.left = std::round(3.6 * text_ + widest);
    x_ = ticks(chart.x, area_.left, area_.right, 8);
  }

  void draw() {
    set_color(kBackground, 1);
    cairo_paint(context_);
    draw_grid();
    set_color(kInk, 1);
    if (!chart_.title.empty()) put_text(chart_.title, area_.left, 2 * text_, 0, 1.25, true);
    draw_labels();
    draw_legend();
    cairo_save(context_);
    cairo_rectangle(context_, area_.left, area_.top, area_.right - area_.left, area_.bottom - area_.top);
    cairo_clip(context_);
    draw_cells();
    for (const ChartLine& line : chart_.lines) draw_line(line);
    cairo_restore(context_);
    set_color(kAxis, 1);
    put_text(chart_.note, (area_.left + area_.right) / 2, (area_.top + area_.bottom) / 2, 0.5, 1);
  }

 private:
  void set_color(Color color, double opacity) {
    cairo_set_source_rgba(context_, color.red / 255.0, color.green / 255.0, color.blue / 255.0, opacity);
  }

  void set_font(double size, bool bold) {
    cairo_select_font_face(context_, "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(context_, size * text_);
  }

  double text_width(const std::string& words) {
    set_font(1, false);
    cairo_text_extents_t extents;
    cairo_text_extents(context_, words.c_str(), &extents);
    return extents.x_advance;
  }

  // (x, y): on the base line; `share` of the width lies left of x.
  void put_text(const std::string& words, double x, double y, double share, double size, bool bold = false) {
    set_font(size, bold);
    cairo_text_extents_t extents;
    cairo_text_extents(context_, words.c_str(), &extents);
    cairo_move_to(context_, x - share * extents.x_advance, y);
    cairo_show_text(context_, words.c_str());
  }

  void stroke_segment(double x0, double y0, double x1, double y1, double thickness) {
    cairo_set_line_width(context_, thickness);
    cairo_move_to(context_, x0, y0);
    cairo_line_to(context_, x1, y1);
    cairo_stroke(context_);
  }

  std::vector<Tick> ticks(const ChartAxis& axis, double first, double last, int count) {
    std::vector<Tick> out;
    const bool linear = axis.scale == AxisScale::kLinear;
    const auto values = linear ? axis_ticks(axis.low, axis.high, count) : logarithmic_ticks(axis.low, axis.high);
    for (size_t i = 0; i < values.size(); ++i) {
      const double value = values[i];
      if (axis.whole_numbers && value != std::floor(value)) continue;
      const size_t pair = std::min(i, std::max<size_t>(1, values.size() - 1) - 1);
      double step = values.size() > 1 ? values[pair + 1] - values[pair] : 1;
      if (!linear) step = std::min(step, value);
      if (axis.whole_numbers) step = std::max(step, 1.0);
      out.push_back({pixel_of(axis, value, first, last), tick_label(value, step)});
    }
    return out;
  }

  // Lines of one pixel lie in the middle of a pixel, where they are sharp.
  static double sharp(double pixel) { return std::floor(pixel) + 0.5; }

  void draw_grid() {
    set_color(kGrid, 1);
    for (const Tick& tick : y_) stroke_segment(area_.left, sharp(tick.pixel), area_.right, sharp(tick.pixel), 1);
    for (const Tick& tick : x_) stroke_segment(sharp(tick.pixel), area_.top, sharp(tick.pixel), area_.bottom, 1);
    set_color(kAxis, 1);
    stroke_segment(area_.left, sharp(area_.bottom), area_.right, sharp(area_.bottom), 1);
  }

  void draw_labels() {
    for (const Tick& tick : y_) put_text(tick.label, area_.left - 0.6 * text_, tick.pixel + 0.36 * text_, 1, 1);
    for (const Tick& tick : x_) put_text(tick.label, tick.pixel, area_.bottom + 1.5 * text_, 0.5, 1);
    put_text(chart_.x.label, (area_.left + area_.right) / 2, area_.bottom + 3.2 * text_, 0.5, 1);
    cairo_save(context_);
    cairo_translate(context_, 1.5 * text_, (area_.top + area_.bottom) / 2);
    cairo_rotate(context_, -std::numbers::pi / 2);
    put_text(chart_.y.label, 0, 0, 0.5, 1);
    cairo_restore(context_);
  }

  void draw_legend() {
    double x = area_.left;
    const double y = area_.top - text_;
    for (const ChartLine& line : chart_.lines) {
      if (line.name.empty()) continue;
      const double end = x + kLegendSample * text_, middle = y - 0.35 * text_;
      set_color(line.color, std::max(line.opacity, kLeastLegendInk));
      stroke_segment(x, middle, end, middle, std::max(2.0, line.thickness) * scale_);
      if (line.markers) draw_dot((x + end) / 2, middle, 1.6 * line.thickness * scale_);
      set_color(kInk, 1);
      put_text(line.name, end + 0.5 * text_, y, 0, 1);
      x = end + 2 * text_ + text_width(line.name);
    }
  }

  void draw_cells() {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (const auto& row : chart_.cells)
      for (const double value : row) low = std::min(low, value), high = std::max(high, value);
    if (chart_.logarithmic_cells) low = std::max(low, high / 1e4);
    const auto share = [&](double value) {
      if (high <= low) return 0.0;
      value = std::max(value, low);
      return chart_.logarithmic_cells ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
    };
    const auto rows = double(chart_.cells.size());
    for (size_t r = 0; r < chart_.cells.size(); ++r) {
      const auto columns = double(chart_.cells[r].size());
      for (size_t c = 0; c < chart_.cells[r].size(); ++c) {
        const auto across = [&](double cell) {
          return std::round(area_.left + cell / columns * (area_.right - area_.left));
        };
        const auto up = [&](double cell) {
          return std::round(area_.bottom - cell / rows * (area_.bottom - area_.top));
        };
        set_color(line_color(0), share(chart_.cells[r][c]));
        cairo_rectangle(context_, across(double(c)), up(double(r + 1)), across(double(c + 1)) - across(double(c)),
                        up(double(r)) - up(double(r + 1)));
        cairo_fill(context_);
      }
    }
  }

  void draw_dot(double x, double y, double radius) {
    cairo_new_path(context_);
    cairo_arc(context_, x, y, radius, 0, 2 * std::numbers::pi);
    cairo_fill(context_);
  }

  // One stroke for the whole line: where it crosses itself it does not get darker.
  void draw_line(const ChartLine& line) {
    Path path;
    for (const auto& [x, y] : line.points) {
      const double down = pixel_of(chart_.y, y, area_.bottom, area_.top);
      path.emplace_back(pixel_of(chart_.x, x, area_.left, area_.right),
                        std::clamp(down, area_.top - kFarOutside, area_.bottom + kFarOutside));
    }
    set_color(line.color, line.opacity);
    const Path shown = line.markers ? path : thinned(path);
    if (line.markers || shown.size() == 1)
      for (const auto& [x, y] : shown) draw_dot(x, y, 1.6 * line.thickness * scale_);
    cairo_set_line_width(context_, line.thickness * scale_);
    cairo_set_line_join(context_, CAIRO_LINE_JOIN_ROUND);
    cairo_new_path(context_);
    for (const auto& [x, y] : shown) cairo_line_to(context_, x, y);
    cairo_stroke(context_);
  }

  cairo_t* context_;
  const Chart& chart_;
  const double text_, scale_;  // height of the text, and of what is given for 800 pixels; pixels
  Box area_;                   // inside the axes
  std::vector<Tick> x_, y_;
};

void check_chart(const Chart& chart) {
  VMOBA_CHECK_INPUT(chart.width >= 320 && chart.height >= 240 && chart.width <= 16384 && chart.height <= 16384,
                    "expected a chart of 320x240 to 16384x16384 pixels, found {}x{}", chart.width, chart.height);
  check_axis("horizontal", chart.x);
  check_axis("vertical", chart.y);
}

void draw_on(cairo_surface_t* surface, const Chart& chart) {
  const Context context(cairo_create(surface), cairo_destroy);
  Drawing(context.get(), chart).draw();
  check_status(cairo_status(context.get()));
}

}  // namespace

Color line_color(size_t index) {
  static constexpr std::array<Color, 6> kColors = {Color{28, 90, 180},  Color{214, 92, 32}, Color{32, 140, 96},
                                                   Color{150, 80, 170}, Color{90, 96, 108}, Color{200, 150, 20}};
  return kColors[index % kColors.size()];
}

std::string chart_to_png(const Chart& chart) {
  check_chart(chart);
  const Surface surface(cairo_image_surface_create(CAIRO_FORMAT_RGB24, int(chart.width), int(chart.height)),
                        cairo_surface_destroy);
  draw_on(surface.get(), chart);
  std::string file;
  check_status(cairo_surface_write_to_png_stream(surface.get(), append_bytes, &file));
  return file;
}

std::string sheet_to_png(const std::vector<Chart>& charts, int64_t columns) {
  VMOBA_CHECK_INPUT(!charts.empty() && columns >= 1, "expected charts in at least one column, found {} in {}",
                    charts.size(), columns);
  const int64_t width = charts.front().width, height = charts.front().height;
  const int64_t across = std::min(columns, int64_t(charts.size())), rows = (int64_t(charts.size()) - 1) / columns + 1;
  const Surface sheet(cairo_image_surface_create(CAIRO_FORMAT_RGB24, int(width * across), int(height * rows)),
                      cairo_surface_destroy);
  const Context context(cairo_create(sheet.get()), cairo_destroy);
  cairo_set_source_rgb(context.get(), 1, 1, 1);
  cairo_paint(context.get());
  for (size_t i = 0; i < charts.size(); ++i) {
    check_chart(charts[i]);
    VMOBA_CHECK_INPUT(charts[i].width == width && charts[i].height == height,
                      "expected charts of one size on a sheet, found {}x{} and {}x{}", width, height, charts[i].width,
                      charts[i].height);
    const Surface part(
        cairo_surface_create_for_rectangle(sheet.get(), double(int64_t(i) % columns * width),
                                           double(int64_t(i) / columns * height), double(width), double(height)),
        cairo_surface_destroy);
    draw_on(part.get(), charts[i]);
  }
  std::string file;
  check_status(cairo_surface_write_to_png_stream(sheet.get(), append_bytes, &file));
  return file;
}

namespace {

constexpr double kGridText = 14, kGridGap = 6;  // pixels

// Valid UTF-8 that fits into `width` pixels, in the context's font.
std::string fitting_text(cairo_t* context, std::string text, double width) {
  for (char& ch : text)
    if (static_cast<unsigned char>(ch) < 0x20) ch = ' ';
  const auto is_too_long = [&](const std::string& candidate) {
    cairo_text_extents_t extents;
    cairo_text_extents(context, candidate.c_str(), &extents);
    return extents.x_advance > width;
  };
  if (!is_too_long(text)) return text;
  do {
    // The last character, which may have several bytes.
    while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80) text.pop_back();
    if (!text.empty()) text.pop_back();
  } while (!text.empty() && is_too_long(text + "..."));
  return text + "...";
}

void draw_text(cairo_t* context, const std::string& text, double x, double y, double width) {
  cairo_move_to(context, x, y);
  cairo_show_text(context, fitting_text(context, text, width).c_str());
}

void draw_picture(cairo_t* context, const GridPicture& picture, double x, double y, const PictureGrid& grid) {
  if (picture.rgb.empty()) return;
  VMOBA_CHECK(int64_t(picture.rgb.size()) == 3 * picture.width * picture.height,
              "expected {} bytes of a picture of {}x{}, found {}", 3 * picture.width * picture.height, picture.width,
              picture.height, picture.rgb.size());
  const Surface surface(cairo_image_surface_create(CAIRO_FORMAT_RGB24, int(picture.width), int(picture.height)),
                        cairo_surface_destroy);
  unsigned char* bytes = cairo_image_surface_get_data(surface.get());
  const int stride = cairo_image_surface_get_stride(surface.get());
  for (int64_t row = 0; row < picture.height; ++row) {
    auto* pixels = reinterpret_cast<uint32_t*>(bytes + row * stride);
    for (int64_t column = 0; column < picture.width; ++column) {
      const uint8_t* rgb = &picture.rgb[size_t(3 * (row * picture.width + column))];
      pixels[column] = uint32_t(rgb[0]) << 16 | uint32_t(rgb[1]) << 8 | rgb[2];
    }
  }
  cairo_surface_mark_dirty(surface.get());
  cairo_save(context);
  cairo_rectangle(context, x, y, double(grid.cell_width), double(grid.cell_height));
  cairo_clip(context);
  cairo_set_source_surface(context, surface.get(), x, y);
  cairo_paint(context);
  cairo_restore(context);
}

}  // namespace

std::string grid_to_png(const PictureGrid& grid) {
  VMOBA_CHECK(!grid.columns.empty() && !grid.rows.empty() && grid.rows.size() == grid.pictures.size(),
              "expected a grid of pictures with a name for each row, found {} columns, {} names and {} rows",
              grid.columns.size(), grid.rows.size(), grid.pictures.size());
  const double across = double(grid.cell_width) + kGridGap, line = kGridText + kGridGap;
  const double down = double(grid.cell_height) + kGridGap + line;
  const double width = kGridGap + across * double(grid.columns.size());
  const double height = kGridGap + line + down * double(grid.rows.size());
  const Surface surface(cairo_image_surface_create(CAIRO_FORMAT_RGB24, int(width), int(height)), cairo_surface_destroy);
  check_status(cairo_surface_status(surface.get()));
  const Context context(cairo_create(surface.get()), cairo_destroy);
  cairo_t* at = context.get();
  cairo_set_source_rgb(at, 1, 1, 1);
  cairo_paint(at);
  cairo_select_font_face(at, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
  cairo_set_font_size(at, kGridText);
  const auto ink = [&] { cairo_set_source_rgb(at, kInk.red / 255.0, kInk.green / 255.0, kInk.blue / 255.0); };
  ink();
  for (size_t column = 0; column < grid.columns.size(); ++column)
    draw_text(at, grid.columns[column], kGridGap + across * double(column), line, double(grid.cell_width));
  for (size_t row = 0; row < grid.rows.size(); ++row) {
    const double top = kGridGap + line + down * double(row);
    ink();
    draw_text(at, grid.rows[row], kGridGap, top + kGridText, width - 2 * kGridGap);
    for (size_t column = 0; column < std::min(grid.pictures[row].size(), grid.columns.size()); ++column)
      draw_picture(at, grid.pictures[row][column], kGridGap + across * double(column), top + line, grid);
  }
  std::string file;
  check_status(cairo_surface_write_to_png_stream(surface.get(), append_bytes, &file));
  return file;
}

std::string chart_to_svg(const Chart& chart) {
  check_chart(chart);
  std::string file;
  const Surface surface(
      cairo_svg_surface_create_for_stream(append_bytes, &file, double(chart.width), double(chart.height)),
      cairo_surface_destroy);
  cairo_svg_surface_set_document_unit(surface.get(), CAIRO_SVG_UNIT_PX);
  draw_on(surface.get(), chart);
  cairo_surface_finish(surface.get());
  check_status(cairo_surface_status(surface.get()));
  return file;
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

std::vector<double> logarithmic_ticks(double low, double high) {
  const bool fine = high / low <= 1000;
  std::vector<double> ticks;
  for (int decade = int(std::floor(std::log10(low))); std::pow(10.0, decade) <= high; ++decade)
    for (const int lead : {1, 2, 5}) {
      const double value = lead * std::pow(10.0, decade);
      if ((lead == 1 || fine) && value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) ticks.push_back(value);
    }
  // Too little of a decade for round numbers of their own.
  return ticks.size() > 1 ? ticks : axis_ticks(low, high, 4);
}

}  // namespace vmoba
