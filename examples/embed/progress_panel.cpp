#include "progress_panel.h"

#include <QGridLayout>
#include <QHBoxLayout>
#include <QLabel>
#include <QProgressBar>

namespace {

constexpr int kParts = 1000;  // of the progress bar

QLabel* label(const char* name, const char* role, const QString& text = {}) {
  auto* const made = new QLabel(text);
  made->setObjectName(name);
  made->setProperty("role", role);
  return made;
}

}  // namespace

ProgressPanel::ProgressPanel()
    : dot_(new QLabel),
      state_(label("state", "title")),
      time_left_(label("time_left", "muted")),
      bar_(new QProgressBar),
      epoch_(label("epoch_figure", "figure")),
      step_(label("step_figure", "figure")),
      loss_(label("loss_figure", "figure")),
      speed_(label("speed_figure", "figure")) {
  bar_->setObjectName("bar");
  bar_->setRange(0, kParts);
  bar_->setTextVisible(false);
  auto* const grid = new QGridLayout(this);
  grid->setContentsMargins(0, 0, 0, 0);
  grid->setHorizontalSpacing(24);
  grid->setVerticalSpacing(2);
  auto* const state = new QHBoxLayout;
  state->setSpacing(6);
  state->addWidget(dot_);
  state->addWidget(state_, 1);
  grid->addLayout(state, 0, 0);
  grid->addWidget(time_left_, 0, 1, 1, 3, Qt::AlignRight);
  grid->addWidget(bar_, 2, 0, 1, 4);
  grid->setRowMinimumHeight(1, 6);
  grid->setRowMinimumHeight(3, 10);
  const std::pair<const char*, QLabel*> figures[] = {
      {"Epoch", epoch_}, {"Step", step_}, {"Loss", loss_}, {"Samples per second", speed_}};
  for (int column = 0; column < 4; ++column) {
    grid->addWidget(label("", "muted", figures[column].first), 4, column);
    grid->addWidget(figures[column].second, 5, column);
    grid->setColumnStretch(column, column == 1 ? 3 : 2);  // steps have the most digits
  }
}

void ProgressPanel::show_figures(const Figures& figures) {
  dot_->setText(QString("<font color='%1'>●</font>").arg(figures.colour.name()));
  state_->setText(figures.state);
  time_left_->setText(figures.time_left);
  epoch_->setText(figures.epoch);
  step_->setText(figures.step);
  loss_->setText(figures.loss);
  speed_->setText(figures.speed);
  bar_->setValue(static_cast<int>(figures.done * kParts));
}
