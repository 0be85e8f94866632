#include <algorithm>

#include <QAbstractButton>
#include <QApplication>
#include <QComboBox>
#include <QDir>
#include <QFile>
#include <QLabel>
#include <QMessageBox>
#include <QProgressBar>
#include <QPushButton>
#include <QRegularExpression>
#include <QTest>
#include <QtCharts/QLineSeries>

#include "desktop.h"
#include "loss_chart.h"
#include "window.h"

// Waits as long as a slow machine may take.
#define EVENTUALLY(condition) QTRY_VERIFY_WITH_TIMEOUT(condition, 60'000)

namespace {

// The first number in a text such as "1,234 of 5,000"; -1: there is none.
double number_in(const QString& text, const char* before = "") {
  const auto match = QRegularExpression(QString(before) + "([0-9][0-9,.]*)").match(text);
  return match.hasMatch() ? match.captured(1).remove(',').toDouble() : -1;
}

QPalette dark_palette() {
  const QColor text(0xe8, 0xea, 0xed);
  QPalette palette(text, QColor(0x34, 0x37, 0x3e), Qt::white, Qt::black, Qt::gray, text, Qt::white,
                   QColor(0x27, 0x2a, 0x30), QColor(0x1b, 0x1d, 0x22));
  for (const auto role : {QPalette::WindowText, QPalette::Text, QPalette::ButtonText})
    palette.setColor(QPalette::Disabled, role, QColor(0x8a, 0x8f, 0x98));
  palette.setColor(QPalette::Highlight, QColor(0x4c, 0x8d, 0xe8));
  return palette;
}

QStringList names_of_threads() {
  QStringList names;
  for (const QString& thread : QDir("/proc/self/task").entryList(QDir::Dirs | QDir::NoDotAndDotDot)) {
    QFile name("/proc/self/task/" + thread + "/comm");
    if (name.open(QIODevice::ReadOnly)) names += QString::fromUtf8(name.readAll()).trimmed();
  }
  return names;
}

}  // namespace

/// The life of a window, told in order: each stage goes on from the one before.
class WindowTest : public QObject {
  Q_OBJECT

 public:
  WindowTest(QString program, QString data, QString screenshots)
      : program_(std::move(program)), data_(std::move(data)), screenshots_(std::move(screenshots)) {}

 private Q_SLOTS:
  void init() {
    if (has_failed_) QSKIP("a stage before has failed");
  }

  void cleanup() {
    if (!has_failed_ && QTest::currentTestFailed()) desktop::save_screenshot(screenshots_ + "/failure.png");
    has_failed_ |= QTest::currentTestFailed();
  }

  void opens() {
    Settings settings;
    settings.data_folder = data_.toStdString();
    window_ = std::make_unique<Window>(settings);
    window_->show();
    QVERIFY(QTest::qWaitForWindowActive(window_.get(), 60'000));
    EVENTUALLY(window_->frameGeometry().top() < window_->geometry().top());  // has a title bar
    check_buttons(true, false, false);
    QCOMPARE(state(), "Ready");
    take_screenshot("1-ready");
  }

  void starts() {
    desktop::type_into(child<QWidget>("epochs"), "500");
    desktop::click(button("start"));
    EVENTUALLY(state() == "Training");
    check_buttons(false, true, true);
    QVERIFY(!child<QWidget>("epochs").isEnabled());
    EVENTUALLY(step() > 0);
    EVENTUALLY(number_in(text("epoch_figure"), "of ") == 500);
  }

  void draws_the_loss_while_it_falls() {
    EVENTUALLY(points() > 10);
    const double loss = number_in(text("loss_figure"));
    const auto drawn = points();
    EVENTUALLY(points() > drawn + 10);
    EVENTUALLY(number_in(text("loss_figure")) < loss / 2);
  }

  void shows_predictions_that_improve() {
    EVENTUALLY(preview_step() > 0);
    const double first = preview_step();
    EVENTUALLY(preview_step() > first);
    EVENTUALLY(accuracy() > 90);
    take_screenshot("2-training");
  }

  void pauses() {
    desktop::click(button("pause"));
    EVENTUALLY(state() == "Paused");
    QCOMPARE(button("pause").text(), "Resume");
    check_buttons(false, true, true);
    QTest::qWait(500);  // the chart may be a little late
    const double standing = step();
    const auto drawn = points();
    QTest::qWait(1000);
    QCOMPARE(step(), standing);
    QCOMPARE(points(), drawn);
    EVENTUALLY(preview_step() == standing);
    take_screenshot("3-paused");
  }

  void resumes() {
    const double standing = step();
    const double shown = preview_step();
    desktop::click(button("pause"));
    EVENTUALLY(state() == "Training");
    QCOMPARE(button("pause").text(), "Pause");
    EVENTUALLY(step() > standing);
    EVENTUALLY(preview_step() > shown);
  }

  void stops() {
    desktop::click(button("stop"));
    EVENTUALLY(state() == "Stopped");
    check_buttons(true, false, false);
    QVERIFY(child<QWidget>("epochs").isEnabled());
    EVENTUALLY(preview_step() == step());  // of the weights that it has ended with
    QVERIFY(accuracy() > 90);
    take_screenshot("4-stopped");
  }

  void says_that_a_folder_is_missing() {
    desktop::type_into(child<QWidget>("folder"), "/no/such/folder");
    desktop::click(button("start"));
    confirm_error("/no/such/folder", "5-wrong-folder");
    QCOMPARE(state(), "Failed");
    check_buttons(true, false, false);
    desktop::type_into(child<QWidget>("folder"), data_);
  }

  void says_that_training_diverges() {
    desktop::type_into(child<QWidget>("learning_rate"), "1000");
    desktop::click(button("start"));
    confirm_error("smaller learning rate", "6-diverged");
    desktop::type_into(child<QWidget>("learning_rate"), "0.05");
  }

  void says_that_there_is_no_gpu() {
    if (QFile::exists("/proc/driver/nvidia/version")) QSKIP("there may be one");
    choose("machine", "Down");
    desktop::click(button("start"));
    confirm_error("GPU", "7-no-gpu");
    choose("machine", "Up");
  }

  void starts_again_and_finishes() {
    desktop::type_into(child<QWidget>("epochs"), "1");
    desktop::click(button("start"));
    EVENTUALLY(state() == "Finished");
    const auto& bar = child<QProgressBar>("bar");
    QCOMPARE(bar.value(), bar.maximum());
    EVENTUALLY(preview_step() == step());
    take_screenshot("8-finished");
  }

  void follows_a_dark_desktop() {
    desktop::type_into(child<QWidget>("epochs"), "500");
    desktop::click(button("start"));
    QApplication::setPalette(dark_palette());
    EVENTUALLY(state() == "Training");
    EVENTUALLY(preview_step() > 100);
    const QImage shown = window_->grab().toImage();
    QVERIFY(shown.pixelColor(4, 4).lightness() < 100);
    QVERIFY(shown.pixelColor(child<QWidget>("card").geometry().center()).lightness() < 100);
    take_screenshot("9-dark");
  }

  void closes_while_it_trains() {
    if (button("start").isEnabled()) desktop::click(button("start"));  // some stages may have been left out
    EVENTUALLY(state() == "Training" && step() > 0);
    QVERIFY(names_of_threads().contains("rank 0"));
    QVERIFY(names_of_threads().contains("session events"));
    to_close_button_ = desktop::close_button(*window_) - window_->geometry().topLeft();
    to_start_button_ = button("start").mapTo(window_.get(), button("start").rect().center());
    desktop::click(desktop::close_button(*window_));
    EVENTUALLY(!window_->isVisible());
    window_ = nullptr;
    QVERIFY(!names_of_threads().contains("rank 0"));
    QVERIFY(!names_of_threads().contains("session events"));
  }

  void the_program_ends_while_it_trains() {
    QProcess program;
    program.start(program_, {data_});
    QString id;
    EVENTUALLY(!(id = desktop::xdotool({"search", "--onlyvisible", "--name", "Handwritten digits"})).isEmpty());
    click_in(id, to_start_button_);
    EVENTUALLY(desktop::xdotool({"getwindowname", id}).contains('%'));
    click_in(id, to_close_button_);
    EVENTUALLY(program.state() == QProcess::NotRunning);
    QCOMPARE(program.exitStatus(), QProcess::NormalExit);
    QCOMPARE(program.exitCode(), 0);
    QCOMPARE(program.readAllStandardError(), QByteArray());
  }

 private:
  template <class Widget>
  const Widget& child(const char* name) const {
    return *window_->findChild<Widget*>(name);
  }
  const QAbstractButton& button(const char* name) const { return child<QAbstractButton>(name); }
  QString text(const char* name) const { return child<QLabel>(name).text(); }

  // What there is to see.
  QString state() const { return text("state"); }
  double step() const { return number_in(text("step_figure")); }
  double preview_step() const { return number_in(text("accuracy"), "step "); }
  double accuracy() const { return number_in(text("accuracy")); }
  qsizetype points() const {
    const auto series = window_->findChild<QChartView*>()->chart()->series();
    return static_cast<const QLineSeries*>(series.first())->count();
  }

  void check_buttons(bool start, bool pause, bool stop) {
    QCOMPARE(button("start").isEnabled(), start);
    QCOMPARE(button("pause").isEnabled(), pause);
    QCOMPARE(button("stop").isEnabled(), stop);
  }

  void confirm_error(const QString& expected, const QString& screenshot) {
    QMessageBox* box = nullptr;
    EVENTUALLY((box = window_->findChild<QMessageBox*>()) && QTest::qWaitForWindowActive(box));
    QVERIFY2(box->informativeText().contains(expected), qPrintable(box->informativeText()));
    take_screenshot(screenshot);
    desktop::click(*box->button(QMessageBox::Ok));
    EVENTUALLY(!window_->findChild<QMessageBox*>());
  }

  void choose(const char* name, const QString& key) {
    const auto& box = child<QComboBox>(name);
    const int before = box.currentIndex();
    desktop::click(box);
    QTest::qWait(300);  // the list is there
    desktop::xdotool({"key", key, "Return"});
    EVENTUALLY(box.currentIndex() != before);
  }

  static void click_in(const QString& window, const QPoint& where) {
    desktop::xdotool(
        {"mousemove", "--window", window, "--", QString::number(where.x()), QString::number(where.y()), "click", "1"});
  }

  void take_screenshot(const QString& name) {
    QTest::qWait(200);  // what has changed is painted
    QVERIFY(desktop::save_screenshot(screenshots_ + '/' + name + ".png"));
  }

  const QString program_;
  const QString data_;
  const QString screenshots_;
  std::unique_ptr<Window> window_;
  QPoint to_close_button_, to_start_button_;  // from the window's corner
  bool has_failed_ = false;
};

// Usage: window_test PROGRAM MNIST SCREENSHOTS [options of Qt Test]
int main(int argc, char** argv) {
  QApplication application(argc, argv);
  QApplication::setStyle("Fusion");
  QApplication::setFont(QFont("Inter", 10));  // as a desktop sets its own
  const QStringList arguments = QApplication::arguments();
  if (arguments.size() < 4) qFatal("usage: window_test PROGRAM MNIST SCREENSHOTS [options of Qt Test]");
  WindowTest test(arguments[1], arguments[2], arguments[3]);
  return QTest::qExec(&test, arguments.mid(0, 1) + arguments.mid(4));
}

#include "window_test.moc"
