// Charts, drawn with Cairo: lines over two axes with a title, a legend and round numbers, as PNG or SVG.
//
// A Chart is plain data; the functions return the bytes of a file and keep nothing between calls. Text takes the
// system's sans-serif font, and its size follows the chart's width. Throws Error(kInput) for a chart that cannot be
// drawn: too small for its labels, an axis without extent, a logarithmic axis that reaches 0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace vmoba {

struct Color {
  uint8_t red = 0, green = 0, blue = 0;
};

// Colours of the lines of one chart, apart from each other also for most colour-blind readers; repeats after six.
Color line_color(size_t index);

enum class AxisScale { kLinear, kLogarithmic };

struct ChartAxis {
  std::string label;
  double low = 0, high = 1;  // what the axis shows; both above 0 where it is logarithmic
  AxisScale scale = AxisScale::kLinear;
  bool whole_numbers = false;  // labels no fractions
};

struct ChartLine {
  std::string name;                               // in the legend
  std::vector<std::pair<double, double>> points;  // x ascending; all finite. A single point is a dot
  Color color;
  double thickness = 2;  // pixels on a chart 800 pixels wide; grows with the chart
  double opacity = 1;
  bool markers = false;  // a dot at each point
};

struct Chart {
  std::string title;
  ChartAxis x, y;
  std::vector<ChartLine> lines;  // drawn in this order; parts outside the axes are cut off
  std::string note;              // in the middle, for a chart with nothing to show
  // A map in place of lines: rows of cells, the first at the bottom; the axes count cells. The darker, the greater.
  std::vector<std::vector<double>> cells = {};
  bool logarithmic_cells = false;      // over at most four powers of ten below the greatest
  int64_t width = 1200, height = 720;  // pixels, 320 x 240 to 16384 x 16384
};

std::string chart_to_png(const Chart& chart);
std::string chart_to_svg(const Chart& chart);

// Charts of one size side by side, in rows of `columns`.
std::string sheet_to_png(const std::vector<Chart>& charts, int64_t columns);

// RGB pixels, row by row; empty: nothing to show.
struct GridPicture {
  int64_t width = 0, height = 0;
  std::vector<uint8_t> rgb;
};

// Pictures in rows and columns: a column's name above it, a row's above its pictures. Pictures larger than a cell are
// cut off.
struct PictureGrid {
  std::vector<std::string> columns, rows;
  std::vector<std::vector<GridPicture>> pictures;  // by row
  int64_t cell_width = 160, cell_height = 90;
};

std::string grid_to_png(const PictureGrid& grid);

// About `count` round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high], from inside.
std::vector<double> axis_ticks(double low, double high, int count);

// The same for a logarithmic axis: 1, 2 and 5 times the powers of ten, of more than three decades the powers alone.
std::vector<double> logarithmic_ticks(double low, double high);

}  // namespace vmoba
