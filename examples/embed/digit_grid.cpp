#include "digit_grid.h"

#include <algorithm>
#include <utility>

#include <QImage>
#include <QPainter>

namespace {

constexpr int kColumns = 12;
constexpr int kRows = 2;
constexpr int kGap = 8;
constexpr int kCaption = 20;  // pixels below a picture
constexpr int kPadding = 6;

QImage picture(const Guess& guess, const QColor& ink) {
  QImage image(28, 28, QImage::Format_ARGB32);
  for (int i = 0; i < 28 * 28; ++i) {
    QColor pixel = ink;
    pixel.setAlpha(guess.ink[static_cast<std::size_t>(i)]);
    image.setPixelColor(i % 28, i / 28, pixel);
  }
  return image;
}

}  // namespace

DigitGrid::DigitGrid() : look_(palette()) { setMinimumSize(kColumns * 56, kRows * (56 + kCaption)); }

void DigitGrid::show_guesses(std::vector<Guess> guesses) {
  guesses_ = std::move(guesses);
  update();
}

void DigitGrid::use(const Look& look) {
  look_ = look;
  update();
}

void DigitGrid::paintEvent(QPaintEvent*) {
  QPainter painter(this);
  painter.setRenderHints(QPainter::Antialiasing | QPainter::SmoothPixmapTransform);
  const double tile_width = (width() - 1.0 - kGap * (kColumns - 1)) / kColumns;
  const double tile_height = (height() - 1.0 - kGap * (kRows - 1)) / kRows;
  for (int i = 0; i < kColumns * kRows; ++i) {
    const QRectF tile(0.5 + (i % kColumns) * (tile_width + kGap), 0.5 + (i / kColumns) * (tile_height + kGap),
                      tile_width, tile_height);
    if (const auto index = static_cast<std::size_t>(i); index < guesses_.size()) {
      paint_guess(painter, tile, guesses_[index]);
    } else {
      painter.setPen(QPen(look_.line, 1, Qt::DotLine));
      painter.setBrush(Qt::NoBrush);
      painter.drawRoundedRect(tile, 6, 6);
    }
  }
}

void DigitGrid::paint_guess(QPainter& painter, const QRectF& tile, const Guess& guess) const {
  const bool is_right = guess.guessed == guess.digit;
  const QColor colour = is_right ? look_.right : look_.wrong;
  painter.setPen(QPen(blend(colour, look_.card, is_right ? 0.45 : 0.8), 1));
  painter.setBrush(blend(colour, look_.card, is_right ? 0.05 : 0.14));
  painter.drawRoundedRect(tile, 6, 6);

  const double side = std::min(tile.width() - 2 * kPadding, tile.height() - kCaption - kPadding);
  const QRectF place(tile.center().x() - side / 2, tile.top() + (tile.height() - kCaption - side) / 2 + 1, side, side);
  painter.drawImage(place, picture(guess, look_.text));
  paint_caption(painter, {tile.left() + 7, tile.bottom() - kCaption - 1, tile.width() - 14, kCaption}, guess);
  if (is_right) return;

  const QRectF corner(tile.right() - 16, tile.top(), 16, 16);
  painter.setPen(Qt::NoPen);
  painter.setBrush(look_.wrong);
  painter.drawRoundedRect(corner, 6, 6);
  painter.setPen(look_.card);
  painter.drawText(corner, Qt::AlignCenter, QString::number(guess.digit));
}

void DigitGrid::paint_caption(QPainter& painter, const QRectF& where, const Guess& guess) const {
  QFont bold = font();
  bold.setBold(true);
  painter.setFont(bold);
  painter.setPen(guess.guessed == guess.digit ? look_.right : look_.wrong);
  painter.drawText(where, Qt::AlignLeft | Qt::AlignVCenter, QString::number(guess.guessed));
  QFont small = font();
  small.setPointSizeF(small.pointSizeF() * 0.85);
  painter.setFont(small);
  painter.setPen(look_.muted);
  painter.drawText(where, Qt::AlignRight | Qt::AlignVCenter, QString("%1 %").arg(qRound(100 * guess.confidence)));
}
