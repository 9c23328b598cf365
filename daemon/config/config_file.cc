// load_config: the TOML side of daemon/config/config.h. toml++ parses and knows lines; what a key
// is and which values it takes is the table's business.
#include <toml++/toml.h>

#include <algorithm>
#include <system_error>

#include "base/os.h"
#include "daemon/config/config.h"

namespace foldswap {
namespace {

namespace fs = std::filesystem;

// Collects what is wrong, a line each, and applies what is right.
class Loader {
 public:
  explicit Loader(Config& config) : config_(config) {}

  void load(const fs::path& file);
  void load_dropins(const fs::path& directory);
  void complain(const std::string& line) {
    if (!errors_.empty()) errors_ += '\n';
    errors_ += line;
  }
  [[nodiscard]] const std::string& errors() const { return errors_; }

 private:
  void apply_table(const toml::table& table, const std::string& prefix);
  void apply_value(const KeySpec& spec, const toml::node& node);
  void complain_at(const toml::source_position& at, const std::string& what) {
    complain(file_ + ":" + std::to_string(at.line) + ": " + what);
  }

  Config& config_;
  std::string file_;
  std::string errors_;
};

// The keys of a configuration are few and known, so that "is there a key below this section" is a
// scan.
bool is_section(std::string_view name) {
  const std::string prefix = std::string(name) + ".";
  return std::ranges::any_of(config_keys(),
                             [&](const KeySpec& spec) { return spec.name.starts_with(prefix); });
}

// An element of a list as text; the separator of value text cannot be part of it.
std::optional<std::string> element_text(const toml::node& element) {
  if (const auto* number = element.as_integer()) return std::to_string(number->get());
  const auto* string = element.as_string();
  if (string == nullptr || string->get().empty()) return std::nullopt;
  if (string->get().find(',') != std::string::npos) return std::nullopt;
  return string->get();
}

Result<std::string> list_text(const toml::node& node) {
  const toml::array* array = node.as_array();
  if (array == nullptr) return fail("must be an array of names or numbers");
  std::string text;
  for (const toml::node& element : *array) {
    const auto one = element_text(element);
    if (!one) return fail("every element must be a name in quotes or a number");
    if (!text.empty()) text += ',';
    text += *one;
  }
  return text;
}

// The node's value text when its TOML type fits the key.
Result<std::string> value_text(KeyType type, const toml::node& node) {
  const auto* integer = node.as_integer();
  const auto* string = node.as_string();
  switch (type) {
    case KeyType::integer:
      if (integer == nullptr) return fail("must be a whole number without quotes");
      return std::to_string(integer->get());
    case KeyType::size:
    case KeyType::size_or_percent:
      if (integer != nullptr) return std::to_string(integer->get());
      if (string == nullptr) return fail("must be a size in quotes, or a number of bytes");
      return string->get();
    case KeyType::text:
      if (string == nullptr) return fail("must be text in quotes");
      return string->get();
    case KeyType::boolean: {
      const auto* boolean = node.as_boolean();
      if (boolean == nullptr) return fail("must be true or false without quotes");
      return boolean->get() ? "true" : "false";
    }
    case KeyType::list:
      return list_text(node);
  }
  return fail("has no type");
}

void Loader::apply_value(const KeySpec& spec, const toml::node& node) {
  const auto text = value_text(spec.type, node);
  if (!text) {
    complain_at(node.source().begin, std::string(spec.name) + ": " + text.error().message);
    return;
  }
  if (const auto done = spec.parse(config_, *text); !done) {
    complain_at(node.source().begin, std::string(spec.name) + ": " + done.error().message);
  }
}

void Loader::apply_table(const toml::table& table, const std::string& prefix) {
  for (const auto& [key, node] : table) {
    const std::string name = prefix + std::string(key.str());
    if (const auto spec = find_key(name)) {
      apply_value(**spec, node);
    } else if (!is_section(name)) {
      complain_at(key.source().begin, spec.error().message);
    } else if (const toml::table* section = node.as_table()) {
      apply_table(*section, name + ".");
    } else {
      complain_at(key.source().begin, "'" + name + "' is a section, not a key");
    }
  }
}

void Loader::load(const fs::path& file) {
  file_ = file.string();
  const auto text = real_os().read_file(file_);
  if (!text) {
    complain(text.error().text());
    return;
  }
  try {  // toml++ reports by throwing; it ends here
    apply_table(toml::parse(*text, file_), "");
  } catch (const toml::parse_error& error) {
    complain_at(error.source().begin, std::string(error.description()));
  }
}

void Loader::load_dropins(const fs::path& directory) {
  std::error_code error;
  std::vector<fs::path> files;
  // The range's own increment would throw.
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".toml") files.push_back(it->path());
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    complain(directory.string() + ": cannot list it: " + error.message());
  }
  std::ranges::sort(files);
  for (const fs::path& file : files) load(file);
}

}  // namespace

Result<Config> load_config(const std::optional<fs::path>& file) {
  Config config;
  Loader loader(config);
  const fs::path main_file = file.value_or(kDefaultConfigFile);
  std::error_code error;
  const bool exists = fs::status(main_file, error).type() != fs::file_type::not_found;
  if (file || exists) loader.load(main_file);
  loader.load_dropins(main_file.string() + ".d");
  if (!loader.errors().empty()) return fail(loader.errors());
  return config;
}

}  // namespace foldswap
