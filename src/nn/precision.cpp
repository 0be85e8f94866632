#include "tandem/nn/precision.h"

#include <exception>
#include <string>

#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>

#include "tandem/core/error.h"
#include "tandem/nn/model.h"

namespace tandem::nn {
namespace {

at::ScalarType scalar_type_of(Precision precision) { return precision == Precision::fp16 ? at::kHalf : at::kBFloat16; }

// LibTorch's own kernels say the first, oneDNN's the second.
bool says_missing_kernel(const std::string& text) {
  return text.find("not implemented for 'Half'") != std::string::npos ||
         text.find("not implemented for 'BFloat16'") != std::string::npos ||
         text.find("could not create a primitive") != std::string::npos;
}

}  // namespace

AutocastScope::AutocastScope(c10::DeviceType device, Precision precision)
    : device_(device), active_(precision != Precision::no) {
  if (!active_) return;
  enabled_before_ = at::autocast::is_autocast_enabled(device);
  type_before_ = at::autocast::get_autocast_dtype(device);
  cache_before_ = at::autocast::is_autocast_cache_enabled();
  at::autocast::set_autocast_dtype(device, scalar_type_of(precision));
  at::autocast::set_autocast_cache_enabled(false);
  at::autocast::set_autocast_enabled(device, true);
}

AutocastScope::~AutocastScope() {
  if (!active_) return;
  at::autocast::set_autocast_enabled(device_, enabled_before_);
  at::autocast::set_autocast_cache_enabled(cache_before_);
  at::autocast::set_autocast_dtype(device_, type_before_);
}

void explain_missing_kernel(c10::DeviceType device, Precision precision) {
  std::string text;
  try {
    throw;
  } catch (const c10::Error& error) {
    text = error.what_without_backtrace();
  } catch (const std::exception& error) {
    text = error.what();
  } catch (...) {
    return;
  }
  if (precision == Precision::no || !says_missing_kernel(text)) return;
  const bool half = precision == Precision::fp16;
  std::throw_with_nested(ConfigError("LibTorch has no " + std::string(half ? "float16" : "bfloat16") + " kernel on " +
                                     c10::DeviceTypeName(device) + " for an operator of this model (" + text +
                                     "); use mixed precision " + (half ? "bf16 or no" : "no")));
}

void check_on_device(const torch::nn::Module& module, c10::Device device) {
  for (const at::Tensor& parameter : module.parameters()) {
    const c10::Device here = parameter.device();
    if (here.type() == device.type() && (!device.has_index() || here.index() == device.index())) continue;
    throw ConfigError("a prepared model stays on its rank's device, " + here.str() + ", and cannot go to " +
                      device.str() + "; LaunchConfig says on which devices ranks are");
  }
}

void check_of_type(const torch::nn::Module& module, at::ScalarType type) {
  for (const at::Tensor& parameter : module.parameters())
    if (parameter.is_floating_point() && parameter.scalar_type() != type)
      throw ConfigError(std::string("a prepared model keeps its type, ") + c10::toString(parameter.scalar_type()) +
                        ", and cannot become " + c10::toString(type) + "; convert the module before prepare");
}

}  // namespace tandem::nn
