#include "task.h"

namespace train {

std::unique_ptr<const Task> make_task(const Options& options) {
  return options.model == ModelKind::gpt ? make_text_task(options) : make_image_task(options);
}

}  // namespace train
