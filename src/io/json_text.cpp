#include "io/json_text.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "tandem/core/error.h"

namespace tandem::io {
namespace {

using ErrorHandler = nlohmann::json::error_handler_t;

// For an error, which may become JSON too: bytes that are no ASCII as \xff and the like.
std::string with_escapes(std::string_view text) {
  std::string shown;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    std::array<char, 5> escape{c, '\0'};
    if (byte < 0x20 || byte >= 0x7f) std::snprintf(escape.data(), escape.size(), "\\x%02x", unsigned{byte});
    shown += escape.data();
  }
  return shown;
}

template <class Json>
void check_texts(const Json& json, const std::string& shown) {
  if (json.is_string()) check_is_utf8(json.template get_ref<const std::string&>(), shown, "the text");
  if (!json.is_structured()) return;
  for (const auto& [key, value] : json.items()) {
    if (json.is_object()) check_is_utf8(key, shown, "the name");
    check_texts(value, shown);
  }
}

template <class Json>
std::string checked(const Json& json, const std::string& shown, int indent) {
  try {
    return json.dump(indent);
  } catch (const nlohmann::json::exception& error) {
    check_texts(json, shown);
    throw CheckpointError(shown + ": cannot be written: " + error.what());
  }
}

}  // namespace

bool is_utf8(std::string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; })) return true;
  try {
    nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

std::string as_utf8(std::string_view text) {
  if (is_utf8(text)) return std::string(text);
  return nlohmann::json::parse(shown_json(nlohmann::json(text))).get<std::string>();
}

std::string shown_json(const nlohmann::json& json, int indent) {
  return json.dump(indent, ' ', false, ErrorHandler::replace);
}

std::string shown_json(const nlohmann::ordered_json& json, int indent) {
  return json.dump(indent, ' ', false, ErrorHandler::replace);
}

std::string exact_json(const nlohmann::json& json, const std::string& shown, int indent) {
  return checked(json, shown, indent);
}

std::string exact_json(const nlohmann::ordered_json& json, const std::string& shown, int indent) {
  return checked(json, shown, indent);
}

void check_is_utf8(std::string_view text, const std::string& shown, const std::string& what) {
  if (!is_utf8(text))
    throw CheckpointError(shown + ": " + what + " '" + with_escapes(text) + "' is no UTF-8, which JSON has to be");
}

}  // namespace tandem::io
