#pragma once

#include <cstdint>
#include <memory>

#include <QElapsedTimer>
#include <QString>
#include <QTimer>
#include <QWidget>

#include "training.h"

namespace tandem {
class Session;
struct Progress;
struct SessionEvent;
enum class SessionState;
}  // namespace tandem

class DigitGrid;
class LossChart;
class ProgressPanel;
class QLabel;
class QPushButton;
class SettingsForm;

/// The program's window, with a training in it.
class Window : public QWidget {
 public:
  explicit Window(const Settings& settings = {});
  ~Window() override;

 protected:
  void changeEvent(QEvent* event) override;
  void closeEvent(QCloseEvent* event) override;

 private:
  void lay_out();
  void apply_look();

  void start();
  void pause_or_resume();
  void stop();

  void hear(const tandem::SessionEvent& event);
  void show_progress();
  void show_state(tandem::SessionState state);
  void show_figures(const tandem::Progress& progress);
  QString text_of_loss(double loss) const;
  void ask_for_preview();
  void show_preview(const Preview& preview);
  void show_error(const QString& title, const QString& text);

  SettingsForm* form_;
  QPushButton* start_;
  QPushButton* pause_;
  QPushButton* stop_;
  ProgressPanel* panel_;
  QLabel* legend_;
  LossChart* chart_;
  QLabel* accuracy_;
  DigitGrid* grid_;

  QTimer timer_;
  QElapsedTimer since_preview_;
  std::int64_t step_ = 0;  // on the chart last
  bool is_paused_ = false;
  bool was_stopped_ = false;
  std::shared_ptr<Training> training_;
  // The last member: it ends first, so that no callback finds the others gone. Its destructor waits for the ranks.
  std::unique_ptr<tandem::Session> session_;
};
