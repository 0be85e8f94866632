#include "io/scalar_types.h"

#include <algorithm>
#include <array>

#include <ATen/Functions.h>

#include "nn/tensor_layout.h"

namespace tandem::io {
namespace {

struct Names {
  at::ScalarType type;
  const char* python;
  bool has_storage = false;  // of its own, in Python
};

using Type = at::ScalarType;

// All that LibTorch 2.11 has, but for the quantized ones (PyTorch, torch/storage.py: _dtype_to_storage_type_map and
// _new_dtypes).
constexpr std::array kNames{Names{Type::Byte, "uint8", true},
                            Names{Type::Char, "int8", true},
                            Names{Type::Short, "int16", true},
                            Names{Type::Int, "int32", true},
                            Names{Type::Long, "int64", true},
                            Names{Type::Half, "float16", true},
                            Names{Type::Float, "float32", true},
                            Names{Type::Double, "float64", true},
                            Names{Type::ComplexFloat, "complex64", true},
                            Names{Type::ComplexDouble, "complex128", true},
                            Names{Type::Bool, "bool", true},
                            Names{Type::BFloat16, "bfloat16", true},
                            Names{Type::ComplexHalf, "complex32"},
                            Names{Type::Bits1x8, "bits1x8"},
                            Names{Type::Bits2x4, "bits2x4"},
                            Names{Type::Bits4x2, "bits4x2"},
                            Names{Type::Bits8, "bits8"},
                            Names{Type::Bits16, "bits16"},
                            Names{Type::Float8_e5m2, "float8_e5m2"},
                            Names{Type::Float8_e4m3fn, "float8_e4m3fn"},
                            Names{Type::Float8_e5m2fnuz, "float8_e5m2fnuz"},
                            Names{Type::Float8_e4m3fnuz, "float8_e4m3fnuz"},
                            Names{Type::Float8_e8m0fnu, "float8_e8m0fnu"},
                            Names{Type::Float4_e2m1fn_x2, "float4_e2m1fn_x2"},
                            Names{Type::UInt16, "uint16"},
                            Names{Type::UInt32, "uint32"},
                            Names{Type::UInt64, "uint64"},
                            Names{Type::UInt1, "uint1"},
                            Names{Type::UInt2, "uint2"},
                            Names{Type::UInt3, "uint3"},
                            Names{Type::UInt4, "uint4"},
                            Names{Type::UInt5, "uint5"},
                            Names{Type::UInt6, "uint6"},
                            Names{Type::UInt7, "uint7"},
                            Names{Type::Int1, "int1"},
                            Names{Type::Int2, "int2"},
                            Names{Type::Int3, "int3"},
                            Names{Type::Int4, "int4"},
                            Names{Type::Int5, "int5"},
                            Names{Type::Int6, "int6"},
                            Names{Type::Int7, "int7"}};

template <class Matches>
const Names* find(const Matches& matches) {
  const auto* const found = std::find_if(kNames.begin(), kNames.end(), matches);
  return found == kNames.end() ? nullptr : found;
}

// "UInt16Storage" is in checkpoints of Tandem up to 0.1, which LibTorch has written and Python does not know.
std::string of_storage(const Names& names) { return std::string(c10::toString(names.type)) + "Storage"; }

std::optional<at::ScalarType> type_of(const Names* names) { return names ? std::optional(names->type) : std::nullopt; }

}  // namespace

std::string python_name(at::ScalarType type) {
  const Names* const found = find([&](const Names& names) { return names.type == type; });
  return found ? found->python : "";
}

std::string storage_name(at::ScalarType type) {
  const Names* const found = find([&](const Names& names) { return names.type == type; });
  return found && found->has_storage ? of_storage(*found) : "";
}

std::optional<at::ScalarType> type_of_python(std::string_view name) {
  return type_of(find([&](const Names& names) { return names.python == name; }));
}

std::optional<at::ScalarType> type_of_storage(std::string_view name) {
  return type_of(find([&](const Names& names) { return of_storage(names) == name; }));
}

bool is_number(at::ScalarType type) {
  if (type == at::kFloat4_e2m1fn_x2) return false;
  return at::isFloatingType(type) || at::isComplexType(type) || at::isIntegralType(type, /*includeBool=*/true);
}

at::Tensor as_plain(const at::Tensor& tensor) {
  at::ScalarType plain = at::kByte;
  switch (tensor.element_size()) {
    case 1: break;
    case 2: plain = at::kShort; break;
    case 4: plain = at::kInt; break;
    case 8: plain = at::kLong; break;
    default: plain = at::kComplexDouble;
  }
  if (tensor.scalar_type() == plain) return tensor.detach();
  return at::empty({0}, tensor.options().dtype(plain).requires_grad(false))
      .set_(tensor.storage(), tensor.storage_offset(), tensor.sizes(), tensor.strides());
}

at::Tensor copy_of(const at::Tensor& tensor) {
  const at::Tensor copy = nn::without_repetitions(as_plain(tensor), tensor).clone().expand(tensor.sizes());
  return at::empty({0}, tensor.options()).set_(copy.storage(), copy.storage_offset(), copy.sizes(), copy.strides());
}

}  // namespace tandem::io
