#pragma once

#include <QWidget>

#include "look.h"
#include "training.h"

/// Digits with what the network takes them for, and how sure it is: green where it is right; red where it is wrong,
/// with the right answer in the corner.
class DigitGrid : public QWidget {
 public:
  DigitGrid();

  void show_guesses(std::vector<Guess> guesses);
  void use(const Look& look);

 protected:
  void paintEvent(QPaintEvent* event) override;

 private:
  void paint_guess(QPainter& painter, const QRectF& tile, const Guess& guess) const;
  void paint_caption(QPainter& painter, const QRectF& where, const Guess& guess) const;

  std::vector<Guess> guesses_;
  Look look_;
};
