#pragma once

#include <QWidget>

#include "training.h"

class QComboBox;
class QDoubleSpinBox;
class QFormLayout;
class QLineEdit;
class QSpinBox;

/// The form on the left.
class SettingsForm : public QWidget {
 public:
  explicit SettingsForm(const Settings& settings);

  Settings settings() const;

 private:
  QSpinBox* number(const char* name, const QString& label, int value, int least, int most);
  void section(const QString& title);
  void add_model(const Settings& settings);
  void add_training(const Settings& settings);
  void add_machine(const Settings& settings);
  void add_data(const Settings& settings);
  void choose_folder();

  QFormLayout* layout_;
  QSpinBox* hidden_;
  QSpinBox* epochs_;
  QSpinBox* batch_size_;
  QDoubleSpinBox* learning_rate_;
  QSpinBox* seed_;
  QComboBox* machine_;
  QSpinBox* ranks_;
  QLineEdit* folder_;
};
