#include "data/csv.h"

#include "support/catch.h"

using vmoba::data::CsvReader;
using vmoba::data::CsvRow;

namespace {

std::vector<CsvRow> rows(const std::string& text) {
  CsvReader reader(text);
  std::vector<CsvRow> out;
  for (CsvRow row; reader.next(row);) out.push_back(row);
  return out;
}

using Fields = std::vector<std::string>;

}  // namespace

TEST_CASE("CSV fields follow RFC 4180") {
  const auto out = rows("a,b\r\n\"x, y\",\"say \"\"hi\"\"\"\n\n,\nlast,\"two\nlines\"");
  REQUIRE(out.size() == 4);
  CHECK(out[0].fields == Fields{"a", "b"});
  CHECK(out[1].fields == Fields{"x, y", "say \"hi\""});
  CHECK(out[2].fields == Fields{"", ""});
  CHECK(out[3].fields == Fields{"last", "two\nlines"});
  for (const CsvRow& row : out) CHECK(row.problem.empty());
}

TEST_CASE("A CSV record knows the line it starts on, line breaks inside quotes counted") {
  const auto out = rows("h\n\"a\nb\"\n\nc\n");
  REQUIRE(out.size() == 3);
  CHECK(out[0].line == 1);
  CHECK(out[1].line == 2);
  CHECK(out[2].line == 5);
}

TEST_CASE("CSV quote mistakes are problems of their record only") {
  const auto out = rows("\"a\"b,c\nmid\"dle,d\nfine,e\n\"open\nto the end");
  REQUIRE(out.size() == 4);
  CHECK(!out[0].problem.empty());
  CHECK(!out[1].problem.empty());
  CHECK(out[2].problem.empty());
  CHECK(out[2].fields == Fields{"fine", "e"});
  CHECK(out[3].problem.find("closing quote") != std::string::npos);
}

TEST_CASE("An empty quoted field is a field") {
  const auto out = rows("\"\",x\n\"\"\n");
  REQUIRE(out.size() == 2);
  CHECK(out[0].fields == Fields{"", "x"});
  CHECK(out[1].fields == Fields{""});
}
