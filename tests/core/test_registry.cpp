#include "core/registry.h"

#include "support/catch.h"

using namespace vmoba;

namespace {

struct Shape {
  virtual ~Shape() = default;
  virtual int corners() const = 0;
};
struct Polygon : Shape {
  explicit Polygon(int n) : n_(n) {}
  int corners() const override { return n_; }
  int n_;
};

}  // namespace

TEST_CASE("a registry makes what is named and lists the names for what is not") {
  const Registry<Shape, int> shapes("shape", {{"polygon", [](int n) { return std::make_unique<Polygon>(n); }},
                                              {"point", [](int) { return std::make_unique<Polygon>(0); }}});
  CHECK(shapes.create("polygon", 5)->corners() == 5);
  CHECK(shapes.create("point", 5)->corners() == 0);
  CHECK(shapes.names() == std::vector<std::string>{"point", "polygon"});
  try {
    shapes.create("circle", 1);
    FAIL("not refused");
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::kInput);
    CHECK(std::string(e.what()) == "expected a known shape (point, polygon), found 'circle'");
  }
}
