// Text in JSON, which has to be UTF-8. Names, paths and messages may be any bytes.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace tandem::io {

bool is_utf8(std::string_view text);

/// `text`, with U+FFFD for what is no UTF-8.
std::string as_utf8(std::string_view text);

/// JSON that people look at: what is no UTF-8 in it becomes U+FFFD. `indent` as nlohmann-json's dump.
std::string shown_json(const nlohmann::json& json, int indent = -1);
std::string shown_json(const nlohmann::ordered_json& json, int indent = -1);  ///< \copydoc shown_json

/// JSON that will be read again, where another text would be another thing. Throws CheckpointError that names the file,
/// as `shown`, and the text that is no UTF-8.
std::string exact_json(const nlohmann::json& json, const std::string& shown, int indent = -1);
std::string exact_json(const nlohmann::ordered_json& json, const std::string& shown,
                       int indent = -1);  ///< \copydoc exact_json

/// Throws CheckpointError that names `what`, such as "tensor", and `text` in the file `shown` when it is no UTF-8.
void check_is_utf8(std::string_view text, const std::string& shown, const std::string& what);

}  // namespace tandem::io
