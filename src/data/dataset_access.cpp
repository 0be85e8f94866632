#include "tandem/data/detail/dataset_access.h"

#include <c10/util/Exception.h>

namespace tandem::data::detail {

std::string describe_read(const std::string& what, const ReadContext& context) {
  return "reading " + what + " (epoch " + std::to_string(context.epoch) + ", step " + std::to_string(context.step) +
         ", for rank " + std::to_string(context.rank) + ")";
}

void throw_sample_error(const std::string& what, const ReadContext& context) {
  const std::string text = describe_read(what, context) + ": ";
  try {
    throw;
  } catch (const Cancelled&) {
    throw;
  } catch (const c10::Error& error) {
    throw SampleError(text + error.what_without_backtrace());
  } catch (const std::exception& error) {
    throw SampleError(text + error.what());
  } catch (...) {
    throw SampleError(text + "an exception that is no std::exception");
  }
}

std::string name_samples(const std::vector<std::int64_t>& indices) {
  constexpr std::size_t kShown = 8;
  std::string text = indices.size() == 1 ? "sample " : "samples ";
  for (std::size_t i = 0; i < std::min(indices.size(), kShown); ++i)
    text += (i > 0 ? ", " : "") + std::to_string(indices[i]);
  if (indices.size() > kShown) text += ", … (" + std::to_string(indices.size()) + " at once)";
  return text;
}

}  // namespace tandem::data::detail
