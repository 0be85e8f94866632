// Where the files of a model's weights are, in the layout of Hugging Face.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "io/checkpoint_source.h"

namespace tandem::io {

inline constexpr const char* kSingleModelFile = "model.safetensors";
inline constexpr const char* kModelIndex = "model.safetensors.index.json";

/// The files of one model: `model.safetensors`, its shards, or the same of Python's `pytorch_model.bin`.
class ModelSource {
 public:
  /// `stem` is "model", or "model_1" and so on for further models. `source` outlives it. Throws CheckpointError when
  /// there is no such file.
  explicit ModelSource(const CheckpointSource& source, const std::string& stem = "model");

  /// Whether they are torch.save's, not safetensors.
  bool of_torch_save() const { return of_torch_save_; }

  /// Each once, in order.
  const std::vector<std::string>& files() const { return files_; }

  /// Throws when a tensor of the index is not in its file. `file_of` gives the file in which a tensor was found, as
  /// CheckpointSource::shown gives it; empty: in none.
  void check_places(const std::function<std::string(const std::string& tensor)>& file_of) const;

 private:
  bool find(const std::string& single);
  void read_index();

  const CheckpointSource& source_;
  bool of_torch_save_ = false;
  std::vector<std::string> files_;
  std::string index_;                          // name; empty: there is none
  std::map<std::string, std::string> places_;  // by tensor: file, as the index says
};

}  // namespace tandem::io
