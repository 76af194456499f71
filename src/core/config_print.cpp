#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/config.h"
#include "core/config_text.h"

namespace vmoba {

std::string join(const std::vector<std::string>& words, const char* separator) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : separator) + word;
  return out;
}

namespace {

std::string number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return fmt::format("{}", int64_t(value));
  return fmt::format("{}", value);
}

}  // namespace

std::string allowed_text(const Constraint& c) {
  if (!c.choices.empty()) return join(c.choices, " | ");
  const bool low = std::isfinite(c.min), high = std::isfinite(c.max);
  std::string text;
  if (low && high)
    text = fmt::format("{} .. {}", number(c.min), number(c.max));
  else if (low)
    text = fmt::format("{} {}", c.exclusive_min ? ">" : ">=", number(c.min));
  else if (high)
    text = fmt::format("<= {}", number(c.max));
  if (c.size >= 0) text = fmt::format("{} values{}{}", c.size, text.empty() ? "" : ", each ", text);
  return text;
}

namespace {

std::string quoted(const std::string& text) {
  YAML::Emitter out;
  out << YAML::DoubleQuoted << text;
  return out.c_str();
}
std::string yaml_value(bool v) {
  return v ? "true" : "false";
}
std::string yaml_value(int64_t v) {
  return std::to_string(v);
}
std::string yaml_value(double v) {
  return fmt::format("{}", v);
}
std::string yaml_value(const std::string& v) {
  return quoted(v);
}
template <typename T>
std::string yaml_value(const std::vector<T>& values) {
  std::string out;
  for (const T& v : values) out += (out.empty() ? "" : ", ") + yaml_value(v);
  return "[" + out + "]";
}

// Calls `leaf` for each scalar or list of a configuration; shared by the YAML and the Markdown writer.
class Writer : public ConfigVisitor {
 public:
  void field(const std::string& n, bool& v, const std::string& d) override { leaf(n, yaml_value(v), "bool", d, {}); }
  void field(const std::string& n, int64_t& v, const std::string& d, const Constraint& c) override {
    leaf(n, yaml_value(v), "int", d, c);
  }
  void field(const std::string& n, double& v, const std::string& d, const Constraint& c) override {
    leaf(n, yaml_value(v), "number", d, c);
  }
  void field(const std::string& n, std::string& v, const std::string& d, const Constraint& c) override {
    leaf(n, yaml_value(v), "text", d, c);
  }
  void field(const std::string& n, std::vector<int64_t>& v, const std::string& d, const Constraint& c) override {
    leaf(n, yaml_value(v), "list of int", d, c);
  }
  void field(const std::string& n, std::vector<double>& v, const std::string& d, const Constraint& c) override {
    leaf(n, yaml_value(v), "list of number", d, c);
  }
  void field(const std::string& n, std::vector<std::string>& v, const std::string& d, const Constraint& c) override {
    leaf(n, yaml_value(v), "list of text", d, c);
  }
  const std::string& text() const { return text_; }

 protected:
  virtual void leaf(const std::string& name, const std::string& value, const std::string& type, const std::string& doc,
                    const Constraint& c) = 0;
  std::string text_;
};

class YamlWriter : public Writer {
 protected:
  void leaf(const std::string& name, const std::string& value, const std::string&, const std::string&,
            const Constraint&) override {
    text_ += lead() + name + ": " + value + "\n";
  }
  void begin_group(const std::string& name, const std::string&) override {
    text_ += lead() + name + ":\n";
    indent_ += 2;
    group_starts_.push_back(text_.size());
  }
  void end_group() override {
    if (text_.size() == group_starts_.back()) text_.insert(text_.size() - 1, " {}");
    group_starts_.pop_back();
    indent_ -= 2;
  }
  void list_of_groups(const std::string& name, const std::string&, size_t count, const std::function<void(size_t)>&,
                      const std::function<void(size_t)>& visit) override {
    text_ += lead() + name + (count ? ":\n" : ": []\n");
    indent_ += 4;
    for (size_t i = 0; i < count; ++i) {
      dash_ = true;
      visit(i);
    }
    indent_ -= 4;
  }

 private:
  std::string lead() {
    const std::string out = dash_ ? std::string(indent_ - 2, ' ') + "- " : std::string(indent_, ' ');
    dash_ = false;
    return out;
  }
  int indent_ = 0;
  bool dash_ = false;
  std::vector<size_t> group_starts_;
};

class ValueWriter : public Writer {
 public:
  const std::map<std::string, std::string>& values() const { return values_; }

 protected:
  void leaf(const std::string& name, const std::string& value, const std::string&, const std::string&,
            const Constraint&) override {
    values_[prefix_ + name] = value;
  }
  void begin_group(const std::string& name, const std::string&) override {
    outer_.push_back(prefix_.size());
    prefix_ += name + ".";
  }
  void end_group() override {
    prefix_.resize(outer_.back());
    outer_.pop_back();
  }
  void list_of_groups(const std::string&, const std::string&, size_t, const std::function<void(size_t)>&,
                      const std::function<void(size_t)>&) override {}

 private:
  std::string prefix_;
  std::vector<size_t> outer_;  // lengths of the prefix outside the open groups
  std::map<std::string, std::string> values_;
};

// One section per group, in the order in which the groups begin; a field behind a group still lands in its own section.
class MarkdownWriter : public Writer {
 public:
  MarkdownWriter() { open_section(""); }

  void kind_fields(const std::string& name, const std::string&, const std::vector<Kind>& kinds) override {
    for (const Kind& kind : kinds) {
      open_section(fmt::format("\n### {}{}: {}\n\nKeys that this choice has besides.\n", prefix(), name, kind.word));
      kind.visit(*this);
      open_.pop_back();
    }
  }

  std::string markdown() const {
    std::string out;
    for (const Section& section : sections_) {
      out += section.heading;
      if (!section.rows.empty())
        out += "\n| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n" + section.rows;
    }
    return out;
  }

 protected:
  void leaf(const std::string& name, const std::string& value, const std::string& type, const std::string& doc,
            const Constraint& c) override {
    sections_[open_.back()].rows += fmt::format("| `{}{}` | {} | `{}` | {} | {} |\n", prefix(), name, type, value,
                                                cell(allowed_text(c)), cell(doc));
  }
  void begin_group(const std::string& name, const std::string& doc) override {
    path_.push_back(name);
    open_section(fmt::format("\n## {}\n\n{}\n", join(path_, "."), doc));
  }
  void end_group() override {
    path_.pop_back();
    open_.pop_back();
  }
  void list_of_groups(const std::string& name, const std::string& doc, size_t, const std::function<void(size_t)>&,
                      const std::function<void(size_t)>& visit) override {
    begin_group(name + "[]", doc);
    visit(std::numeric_limits<size_t>::max());
    end_group();
  }

 private:
  struct Section {
    std::string heading, rows;
  };

  void open_section(std::string heading) {
    open_.push_back(sections_.size());
    sections_.push_back({std::move(heading), ""});
  }
  // A bare bar would end the cell.
  static std::string cell(const std::string& text) {
    std::string out;
    for (char ch : text) {
      if (ch == '|') out += '\\';
      out += ch;
    }
    return out;
  }
  std::string prefix() const { return path_.empty() ? "" : join(path_, ".") + "."; }

  std::vector<std::string> path_;
  std::vector<Section> sections_;
  std::vector<size_t> open_;  // indices of the sections that enclose the current field
};

}  // namespace

std::map<std::string, std::string> config_values(const VisitFunction& visit) {
  ValueWriter writer;
  visit(writer);
  return writer.values();
}

std::string config_to_yaml(const VisitFunction& visit) {
  YamlWriter writer;
  visit(writer);
  return writer.text();
}

std::string config_to_markdown(const VisitFunction& visit) {
  MarkdownWriter writer;
  visit(writer);
  return writer.markdown();
}

}  // namespace vmoba
