// Messages of Protocol Buffers, in their wire format.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace tandem::io {

/// Writes a message field by field (protobuf.dev/programming-guides/encoding). TensorBoard's messages need six kinds of
/// fields: less than a page, where the library would bring its compiler into the build and 3 MB into every program.
class ProtoWriter {
 public:
  void integer(int field, std::int64_t value) {  // int32, int64, bool, enum
    tag(field, 0);
    varint(static_cast<std::uint64_t>(value));
  }
  void number(int field, double value) {  // double
    tag(field, 1);
    fixed(value);
  }
  void number32(int field, float value) {  // float
    tag(field, 5);
    fixed(value);
  }
  void text(int field, std::string_view value) {  // string, bytes
    tag(field, 2);
    varint(value.size());
    bytes_ += value;
  }
  void message(int field, const ProtoWriter& value) { text(field, value.bytes_); }

  /// repeated double [packed]
  template <class Numbers>
  void numbers(int field, const Numbers& values) {
    ProtoWriter packed;
    for (const auto value : values) packed.fixed(static_cast<double>(value));
    message(field, packed);
  }

  const std::string& bytes() const { return bytes_; }

 private:
  void tag(int field, int wire_type) { varint(static_cast<std::uint64_t>(field << 3 | wire_type)); }

  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }

  template <std::floating_point Number>
  void fixed(Number value) {
    static_assert(std::endian::native == std::endian::little);
    char raw[sizeof value];
    std::memcpy(raw, &value, sizeof value);
    bytes_.append(raw, sizeof raw);
  }

  std::string bytes_;
};

}  // namespace tandem::io
