#pragma once

#include <QColor>
#include <QString>
#include <QWidget>

class QLabel;
class QProgressBar;

/// Where the training is, in words and figures.
class ProgressPanel : public QWidget {
 public:
  struct Figures {
    QString state{};
    QColor colour{};  ///< of the state
    QString time_left{};
    QString epoch = "–";
    QString step = "–";
    QString loss = "–";
    QString speed = "–";
    double done = 0;  ///< 0 to 1
  };

  ProgressPanel();

  void show_figures(const Figures& figures);

 private:
  QLabel* dot_;
  QLabel* state_;
  QLabel* time_left_;
  QProgressBar* bar_;
  QLabel* epoch_;
  QLabel* step_;
  QLabel* loss_;
  QLabel* speed_;
};
