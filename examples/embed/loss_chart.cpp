#include "loss_chart.h"

#include <algorithm>
#include <cmath>

#include <QGraphicsLayout>
#include <QtCharts/QChart>
#include <QtCharts/QLegend>
#include <QtCharts/QLineSeries>
#include <QtCharts/QLogValueAxis>
#include <QtCharts/QValueAxis>

#include "look.h"

namespace {

constexpr qsizetype kMostPoints = 600;  // more than that no screen shows
constexpr int kRedrawInterval = 100;    // milliseconds: to draw is what a chart costs, and not to add
constexpr double kLeastLoss = 1e-4;     // a logarithm needs one
constexpr double kMemory = 0.93;        // of some 14 samples

// 1, 2 or 5 times a power of ten, so that some five of them make `range`.
double tick_interval(double range) {
  const double power = std::pow(10, std::floor(std::log10(range / 5)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (range / (factor * power) <= 7) return factor * power;
  return 10 * power;
}

void average_pairs(QList<QPointF>& points) {
  for (qsizetype i = 0; i < points.size() / 2; ++i) points[i] = (points[2 * i] + points[2 * i + 1]) / 2;
  points.resize(points.size() / 2);
}

}  // namespace

LossChart::LossChart()
    : raw_(new QLineSeries), smooth_(new QLineSeries), steps_(new QValueAxis), losses_(new QLogValueAxis) {
  setRenderHint(QPainter::Antialiasing);
  setFrameShape(QFrame::NoFrame);
  setMinimumHeight(190);
  chart()->addSeries(raw_);
  chart()->addSeries(smooth_);
  chart()->addAxis(steps_, Qt::AlignBottom);
  chart()->addAxis(losses_, Qt::AlignLeft);
  for (QLineSeries* const series : {raw_, smooth_}) {
    series->attachAxis(steps_);
    series->attachAxis(losses_);
  }
  steps_->setTitleText("Step");
  steps_->setLabelFormat("%.0f");
  steps_->setTickType(QValueAxis::TicksDynamic);
  losses_->setTitleText("Loss");
  losses_->setLabelFormat("%.4g");
  chart()->setLocalizeNumbers(true);
  chart()->setBackgroundVisible(false);
  chart()->setMargins({});
  chart()->layout()->setContentsMargins(0, 0, 0, 0);
  chart()->legend()->hide();
  redraw_.setSingleShot(true);
  redraw_.setInterval(kRedrawInterval);
  connect(&redraw_, &QTimer::timeout, this, &LossChart::draw);
  clear();
}

void LossChart::clear() {
  redraw_.stop();
  raw_points_.clear();
  smooth_points_.clear();
  raw_->clear();
  smooth_->clear();
  sum_ = {};
  samples_ = 0;
  per_point_ = 1;
  recent_sum_ = 0;
  recent_samples_ = 0;
  steps_->setRange(0, 100);
  steps_->setTickInterval(20);
  losses_->setBase(2);
  losses_->setRange(0.5, 4);
}

void LossChart::add(std::int64_t step, double loss) {
  if (!std::isfinite(loss)) return;
  recent_sum_ = kMemory * recent_sum_ + loss;
  recent_samples_ = kMemory * recent_samples_ + 1;
  sum_ += QPointF(static_cast<double>(step), std::max(loss, kLeastLoss));
  if (++samples_ < per_point_) return;
  const QPointF mean = sum_ / samples_;
  raw_points_.append(mean);
  smooth_points_.append({mean.x(), std::max(smoothed(), kLeastLoss)});
  sum_ = {};
  samples_ = 0;
  if (raw_points_.size() > kMostPoints) thin_out();
  if (!redraw_.isActive()) redraw_.start();
}

void LossChart::draw() {
  raw_->replace(raw_points_);
  smooth_->replace(smooth_points_);
  fit_axes();
}

void LossChart::thin_out() {
  average_pairs(raw_points_);
  average_pairs(smooth_points_);
  per_point_ *= 2;
}

// The smoothed curve decides: single batches may leave the picture.
void LossChart::fit_axes() {
  const double last = std::max(raw_points_.last().x(), 10.0);
  steps_->setTickInterval(tick_interval(last));
  steps_->setRange(0, last);
  const auto [low, high] = std::minmax_element(smooth_points_.begin(), smooth_points_.end(),
                                               [](const QPointF& a, const QPointF& b) { return a.y() < b.y(); });
  const double least = low->y() / 3;
  const double base = high->y() > 1000 || high->y() / least > 1000 ? 10 : 2;  // labels are its powers
  losses_->setBase(base);
  losses_->setRange(std::pow(base, std::floor(std::log(least) / std::log(base))),
                    std::pow(base, std::ceil(std::log(high->y()) / std::log(base))));
}

void LossChart::use(const Look& look) {
  QColor pale = look.accent;
  pale.setAlphaF(0.5F);
  raw_->setPen(QPen(pale, 1));
  smooth_->setPen(QPen(look.accent, 2.2));
  for (QAbstractAxis* const axis : {static_cast<QAbstractAxis*>(steps_), static_cast<QAbstractAxis*>(losses_)}) {
    axis->setLabelsColor(look.muted);
    axis->setTitleBrush(look.muted);
    axis->setLinePenColor(look.line);
    axis->setGridLineColor(look.line);
    axis->setTitleFont(font());
    axis->setLabelsFont(font());
  }
  setBackgroundBrush(look.card);
}
