#include "task.h"

#include "model_flags.h"
#include "picture_folders.h"

namespace train {

std::unique_ptr<const Task> make_task(const Options& options) {
  if (is_text_model(options.model)) return make_text_task(options);
  if (!options.data.file.empty()) return make_table_task(options);
  return recognise(options.data.dir) == DataIn::pictures ? make_picture_task(options) : make_mnist_task(options);
}

}  // namespace train
