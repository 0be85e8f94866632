#include "settings_form.h"

#include <QComboBox>
#include <QDoubleSpinBox>
#include <QFileDialog>
#include <QFormLayout>
#include <QHBoxLayout>
#include <QLabel>
#include <QLineEdit>
#include <QSpinBox>
#include <QToolButton>

SettingsForm::SettingsForm(const Settings& settings) : layout_(new QFormLayout(this)) {
  layout_->setContentsMargins(0, 0, 0, 0);
  layout_->setHorizontalSpacing(12);
  layout_->setVerticalSpacing(8);
  layout_->setFieldGrowthPolicy(QFormLayout::AllNonFixedFieldsGrow);
  layout_->setLabelAlignment(Qt::AlignLeft | Qt::AlignVCenter);
  add_model(settings);
  add_training(settings);
  add_machine(settings);
  add_data(settings);
  for (QWidget* const field : findChildren<QWidget*>(Qt::FindDirectChildrenOnly))
    if (!qobject_cast<QLabel*>(field)) field->setMinimumHeight(28);
}

Settings SettingsForm::settings() const {
  return {.data_folder = folder_->text().toStdString(),
          .on_gpus = machine_->currentIndex() == 1,
          .ranks = ranks_->value(),
          .hidden = hidden_->value(),
          .batch_size = batch_size_->value(),
          .learning_rate = learning_rate_->value(),
          .epochs = epochs_->value(),
          .seed = static_cast<std::uint64_t>(seed_->value())};
}

void SettingsForm::section(const QString& title) {
  auto* const label = new QLabel(title.toUpper());
  label->setProperty("role", "section");
  label->setIndent(0);
  layout_->addRow(label);
}

QSpinBox* SettingsForm::number(const char* name, const QString& label, int value, int least, int most) {
  auto* const box = new QSpinBox;
  box->setObjectName(name);
  box->setRange(least, most);
  box->setValue(value);
  layout_->addRow(label, box);
  return box;
}

void SettingsForm::add_model(const Settings& settings) {
  section("Model");
  hidden_ = number("hidden", "Hidden units", settings.hidden, 1, 2048);
  hidden_->setSingleStep(32);
}

void SettingsForm::add_training(const Settings& settings) {
  section("Training");
  epochs_ = number("epochs", "Epochs", settings.epochs, 1, 1000);
  batch_size_ = number("batch_size", "Batch size", settings.batch_size, 1, 4096);
  batch_size_->setToolTip("Samples of a batch, on each rank");
  learning_rate_ = new QDoubleSpinBox;
  learning_rate_->setObjectName("learning_rate");
  learning_rate_->setDecimals(4);
  learning_rate_->setRange(0.0001, 1000);
  learning_rate_->setStepType(QDoubleSpinBox::AdaptiveDecimalStepType);
  learning_rate_->setValue(settings.learning_rate);
  layout_->addRow("Learning rate", learning_rate_);
  seed_ = number("seed", "Seed", static_cast<int>(settings.seed), 0, 1'000'000'000);
}

void SettingsForm::add_machine(const Settings& settings) {
  section("Machine");
  machine_ = new QComboBox;
  machine_->setObjectName("machine");
  machine_->addItems({"CPU", "GPUs"});
  machine_->setCurrentIndex(settings.on_gpus ? 1 : 0);
  layout_->addRow("Train on", machine_);
  ranks_ = number("ranks", "Ranks", settings.ranks, 1, 64);
  ranks_->setToolTip("Each trains on its share of the data: on a GPU, or on some of the CPU's cores");
}

void SettingsForm::add_data(const Settings& settings) {
  section("Data");
  folder_ = new QLineEdit(QString::fromStdString(settings.data_folder));
  folder_->setObjectName("folder");
  folder_->setToolTip("A folder with the files of MNIST");
  auto* const browse = new QToolButton;
  browse->setText("…");
  browse->setToolTip("Choose a folder");
  connect(browse, &QToolButton::clicked, this, &SettingsForm::choose_folder);
  auto* const row = new QHBoxLayout;
  row->setSpacing(6);
  row->addWidget(folder_);
  row->addWidget(browse);
  layout_->addRow(row);
}

void SettingsForm::choose_folder() {
  const QString folder = QFileDialog::getExistingDirectory(this, "Folder with MNIST", folder_->text());
  if (!folder.isEmpty()) folder_->setText(folder);
}
