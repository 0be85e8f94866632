#include "task.h"

#include "model_flags.h"

namespace train {

std::unique_ptr<const Task> make_task(const Options& options) {
  return is_text_model(options.model) ? make_text_task(options) : make_image_task(options);
}

}  // namespace train
