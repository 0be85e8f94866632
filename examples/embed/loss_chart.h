#pragma once

#include <QList>
#include <QPointF>
#include <QTimer>
#include <QtCharts/QChartView>

class QLineSeries;
class QLogValueAxis;
class QValueAxis;
struct Look;

/// A live curve of the loss over steps. Holds a bounded number of points however long a training goes on.
class LossChart : public QChartView {
 public:
  LossChart();

  void clear();
  void add(std::int64_t step, double loss);
  void use(const Look& look);

  /// The mean of the last losses, the latest counting most; NaN: there is none yet.
  double smoothed() const { return recent_sum_ / recent_samples_; }

 private:
  void thin_out();
  void draw();
  void fit_axes();

  QTimer redraw_;
  QLineSeries* raw_;
  QLineSeries* smooth_;
  QValueAxis* steps_;
  QLogValueAxis* losses_;
  QList<QPointF> raw_points_;
  QList<QPointF> smooth_points_;
  QPointF sum_;      // of the samples that make the next point
  int samples_ = 0;  // in it
  int per_point_ = 1;
  double recent_sum_ = 0;
  double recent_samples_ = 0;
};
