// Pixels of a PNG file's bytes.
#pragma once
#include <cairo.h>

#include <cstdint>
#include <cstring>
#include <string>

namespace vmoba::test {

struct Pixel {
  int red, green, blue;
};

class Picture {
 public:
  explicit Picture(const std::string& png) {
    std::string left = png;
    const auto read = [](void* from, unsigned char* to, unsigned count) {
      std::string& bytes = *static_cast<std::string*>(from);
      if (bytes.size() < count) return CAIRO_STATUS_READ_ERROR;
      std::memcpy(to, bytes.data(), count);
      bytes.erase(0, count);
      return CAIRO_STATUS_SUCCESS;
    };
    surface_ = cairo_image_surface_create_from_png_stream(read, &left);
  }
  ~Picture() { cairo_surface_destroy(surface_); }
  Picture(const Picture&) = delete;
  Picture& operator=(const Picture&) = delete;

  int width() const { return cairo_image_surface_get_width(surface_); }  // 0 for bytes that are no PNG
  int height() const { return cairo_image_surface_get_height(surface_); }
  Pixel pixel(int x, int y) const {
    uint32_t word;
    std::memcpy(&word, cairo_image_surface_get_data(surface_) + y * cairo_image_surface_get_stride(surface_) + 4 * x,
                sizeof(word));
    return {int(word >> 16 & 255), int(word >> 8 & 255), int(word & 255)};
  }

 private:
  cairo_surface_t* surface_;
};

}  // namespace vmoba::test
