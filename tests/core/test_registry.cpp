#include "core/registry.h"

#include "support/catch.h"

using namespace vmoba;

TEST_CASE("a registry finds what is named and lists the names for what is not") {
  struct Shape {
    int (*corners)(int);
  };
  const Registry<Shape> shapes("shape", {{"polygon", {[](int n) { return n; }}}, {"point", {[](int) { return 0; }}}});
  CHECK(shapes.find("polygon").corners(5) == 5);
  CHECK(shapes.find("point").corners(5) == 0);
  CHECK(shapes.names() == std::vector<std::string>{"point", "polygon"});
  try {
    shapes.find("circle");
    FAIL("not refused");
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::kInput);
    CHECK(std::string(e.what()) == "expected a known shape (point, polygon), found 'circle'");
  }
}
