#include "window.h"

#include <cmath>
#include <utility>

#include <QCloseEvent>
#include <QEvent>
#include <QHBoxLayout>
#include <QLabel>
#include <QLocale>
#include <QMessageBox>
#include <QPushButton>
#include <QVBoxLayout>
#include <QtMath>

#include <tandem/session/session.h>

#include "digit_grid.h"
#include "look.h"
#include "loss_chart.h"
#include "progress_panel.h"
#include "settings_form.h"

using tandem::SessionState;

namespace {

constexpr const char* kTitle = "Handwritten digits";
constexpr int kPreviewInterval = 1000;  // milliseconds

QPushButton* control(const char* name, const QString& text) {
  auto* const button = new QPushButton(text);
  button->setObjectName(name);
  button->setProperty("role", "control");
  button->setIconSize({16, 12});
  return button;
}

QLabel* label(const QString& text, const char* role) {
  auto* const made = new QLabel(text);
  made->setProperty("role", role);
  return made;
}

// A panel with room for a title and what belongs to it.
QVBoxLayout* add_card(QBoxLayout* to, int stretch = 0) {
  auto* const card = new QFrame;
  card->setObjectName("card");
  auto* const inside = new QVBoxLayout(card);
  inside->setContentsMargins(16, 14, 16, 14);
  inside->setSpacing(10);
  to->addWidget(card, stretch);
  return inside;
}

void add_card(QBoxLayout* to, const char* title, QLabel* caption, QWidget* content, int stretch = 0) {
  auto* const inside = add_card(to, stretch);
  auto* const row = new QHBoxLayout;
  row->addWidget(label(title, "title"), 1);
  row->addWidget(caption);
  inside->addLayout(row);
  inside->addWidget(content, 1);
}

QString name_of(SessionState state, bool was_stopped) {
  switch (state) {
    case SessionState::idle: return "Ready";
    case SessionState::starting: return "Starting";
    case SessionState::running: return "Training";
    case SessionState::pausing: return "Pausing";
    case SessionState::paused: return "Paused";
    case SessionState::stopping: return "Stopping";
    case SessionState::ended: return was_stopped ? "Stopped" : "Finished";
    case SessionState::cancelled: return "Cancelled";
    case SessionState::failed: return "Failed";
  }
  return {};
}

QColor colour_of(SessionState state, const Look& look) {
  switch (state) {
    case SessionState::idle: return look.line;
    case SessionState::ended: return look.right;
    case SessionState::failed: return look.wrong;
    case SessionState::paused: return look.muted;
    default: return look.accent;
  }
}

bool is_at_rest(SessionState state) {
  return state == SessionState::idle || state == SessionState::ended || state == SessionState::cancelled ||
         state == SessionState::failed;
}

QString time_left(double seconds) {
  if (seconds < 0) return {};
  if (seconds < 100) return QString("%1 s left").arg(std::ceil(seconds));
  return QString("%1 min left").arg(std::ceil(seconds / 60));
}

}  // namespace

Window::Window(const Settings& settings)
    : form_(new SettingsForm(settings)),
      start_(control("start", "Start")),
      pause_(control("pause", "Pause")),
      stop_(control("stop", "Stop")),
      panel_(new ProgressPanel),
      legend_(label({}, "muted")),
      chart_(new LossChart),
      accuracy_(label({}, "muted")),
      grid_(new DigitGrid) {
  setWindowTitle(kTitle);
  setLocale(QLocale(QLocale::English));  // of the numbers, as the words are
  lay_out();
  apply_look();
  connect(start_, &QPushButton::clicked, this, &Window::start);
  connect(pause_, &QPushButton::clicked, this, &Window::pause_or_resume);
  connect(stop_, &QPushButton::clicked, this, &Window::stop);

  session_ = std::make_unique<tandem::Session>(tandem::SessionOptions{
      .executor =
          [this](std::function<void()> call) {
            QMetaObject::invokeMethod(this, std::move(call), Qt::QueuedConnection);
          },
      .on_event = [this](const tandem::SessionEvent& event) { hear(event); },
  });
  connect(&timer_, &QTimer::timeout, this, &Window::show_progress);
  timer_.start(33);
  show_progress();
}

Window::~Window() = default;

void Window::lay_out() {
  auto* const columns = new QHBoxLayout(this);
  columns->setContentsMargins(16, 16, 16, 16);
  columns->setSpacing(16);
  auto* const left = add_card(columns);
  left->addWidget(label("Settings", "title"));
  left->addWidget(form_);
  left->addStretch();
  left->addWidget(label("They apply at the next start.", "muted"));
  form_->setFixedWidth(220);

  auto* const right = new QVBoxLayout;
  right->setSpacing(16);
  columns->addLayout(right, 1);
  auto* const controls = new QHBoxLayout;
  controls->setSpacing(8);
  controls->addWidget(label(kTitle, "heading"), 1);
  for (QPushButton* const button : {start_, pause_, stop_}) controls->addWidget(button);
  right->addLayout(controls);
  add_card(right)->addWidget(panel_);
  add_card(right, "Loss", legend_, chart_, 1);
  add_card(right, "Predictions", accuracy_, grid_);
  accuracy_->setObjectName("accuracy");
  resize(1120, 780);
}

void Window::apply_look() {
  const Look look(palette());
  if (const QString sheet = look.style_sheet(); sheet != styleSheet()) setStyleSheet(sheet);
  start_->setIcon(icon(Symbol::play, Qt::white, look.muted));
  pause_->setIcon(icon(is_paused_ ? Symbol::play : Symbol::pause, look.text, look.muted));
  stop_->setIcon(icon(Symbol::stop, look.text, look.muted));
  legend_->setText(QString("<font color='%1'>━</font> one batch &nbsp; <font color='%2'>━</font> smoothed")
                       .arg(blend(look.accent, look.card, 0.5).name(), look.accent.name()));
  chart_->use(look);
  grid_->use(look);
}

void Window::changeEvent(QEvent* event) {
  if (event->type() == QEvent::PaletteChange) apply_look();
  QWidget::changeEvent(event);
}

// The training need not be over when the window goes: the destructor waits for it.
void Window::closeEvent(QCloseEvent* event) {
  session_->cancel();
  event->accept();
}

void Window::start() {
  training_ = std::make_shared<Training>(form_->settings());
  was_stopped_ = false;
  step_ = 0;
  since_preview_.invalidate();
  chart_->clear();
  grid_->show_guesses({});
  accuracy_->clear();
  try {
    session_->start(training_->launch_config(),
                    [training = training_](tandem::Accelerator& accelerator) { training->run(accelerator); });
  } catch (const std::exception& error) {
    show_error("The training could not be started", error.what());
  }
  show_progress();
}

void Window::pause_or_resume() {
  if (session_->progress().state == SessionState::paused)
    session_->resume();
  else
    session_->pause();
  show_progress();
}

void Window::stop() {
  was_stopped_ = true;
  session_->request_stop();
  show_progress();
}

// Called by the session through the executor: on this thread, between two events of Qt's.
void Window::hear(const tandem::SessionEvent& event) {
  using Kind = tandem::SessionEvent::Kind;
  if (event.kind == Kind::failed) show_error("The training has failed", QString::fromStdString(event.text));
  if (event.kind == Kind::paused || event.kind == Kind::ended) ask_for_preview();  // of the weights that it stands at
}

void Window::show_progress() {
  const tandem::Progress progress = session_->progress();
  if (progress.step > step_) {
    chart_->add(progress.step, progress.loss);
    step_ = progress.step;
  }
  show_state(progress.state);
  show_figures(progress);
  if (progress.state == SessionState::running &&
      (!since_preview_.isValid() || since_preview_.hasExpired(kPreviewInterval)))
    ask_for_preview();
}

void Window::show_state(SessionState state) {
  const bool at_rest = is_at_rest(state);
  form_->setEnabled(at_rest);
  start_->setEnabled(at_rest);
  // Not off while it pauses, for a moment: the keyboard's focus would go to Stop.
  pause_->setEnabled(state == SessionState::running || state == SessionState::pausing || state == SessionState::paused);
  stop_->setEnabled(!at_rest && state != SessionState::stopping);
  if (const bool paused = state == SessionState::paused; paused != is_paused_) {
    is_paused_ = paused;
    pause_->setText(paused ? "Resume" : "Pause");
    apply_look();
  }
}

void Window::show_figures(const tandem::Progress& progress) {
  const bool at_rest = is_at_rest(progress.state);
  ProgressPanel::Figures figures{.state = name_of(progress.state, was_stopped_),
                                 .colour = colour_of(progress.state, Look(palette()))};
  if (progress.total_steps > 0) {
    const Settings& settings = training_->settings();
    const double speed = progress.steps_per_second * settings.batch_size * settings.ranks;
    figures.done = static_cast<double>(progress.step) / static_cast<double>(progress.total_steps);
    figures.epoch = QString("%1 of %2").arg(progress.epoch + 1).arg(settings.epochs);
    figures.step = QString("%1 of %2").arg(locale().toString(progress.step), locale().toString(progress.total_steps));
    if (progress.step > 0) figures.loss = text_of_loss(chart_->smoothed());
    figures.speed = locale().toString(std::llround(speed));
    if (!at_rest) figures.time_left = time_left(progress.seconds_left);
  }
  panel_->show_figures(figures);
  setWindowTitle(at_rest || figures.done == 0 ? kTitle
                                              : QString("%1 % – %2").arg(qFloor(100 * figures.done)).arg(kTitle));
}

QString Window::text_of_loss(double loss) const { return locale().toString(loss, loss < 1000 ? 'f' : 'g', 4); }

void Window::ask_for_preview() {
  since_preview_.start();
  session_->snapshot([this, training = training_](const tandem::ModelSnapshot& weights) {
    if (training == training_) show_preview(training->preview(weights));  // otherwise another has begun meanwhile
  });
}

void Window::show_preview(const Preview& preview) {
  grid_->show_guesses(preview.guesses);
  accuracy_->setText(QString("%1 % of %2 test digits are right at step %3")
                         .arg(100 * preview.accuracy, 0, 'f', 1)
                         .arg(locale().toString(preview.judged), locale().toString(preview.step)));
}

// Not exec(), which would keep the session's next callbacks waiting until it is closed.
void Window::show_error(const QString& title, const QString& text) {
  auto* const box = new QMessageBox(QMessageBox::Critical, kTitle, title, QMessageBox::Ok, this);
  box->setInformativeText(text);
  box->setAttribute(Qt::WA_DeleteOnClose);
  box->open();
}
