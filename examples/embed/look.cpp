#include "look.h"

#include <QPainter>
#include <QPixmap>
#include <QPolygonF>

namespace {

QPixmap draw(Symbol symbol, const QColor& colour) {
  QPixmap pixmap(88, 64);  // scaled down where it is shown; with room between symbol and text
  pixmap.fill(Qt::transparent);
  QPainter painter(&pixmap);
  painter.setRenderHint(QPainter::Antialiasing);
  painter.setPen(Qt::NoPen);
  painter.setBrush(colour);
  switch (symbol) {
    case Symbol::play: painter.drawPolygon(QPolygonF({{14, 6}, {58, 32}, {14, 58}})); break;
    case Symbol::pause:
      painter.drawRoundedRect(QRectF(10, 8, 16, 48), 4, 4);
      painter.drawRoundedRect(QRectF(38, 8, 16, 48), 4, 4);
      break;
    case Symbol::stop: painter.drawRoundedRect(QRectF(10, 10, 44, 44), 5, 5); break;
  }
  return pixmap;
}

// %1 card, %2 line, %3 text, %4 muted, %5 accent, %6 hovered card, %7 hovered accent
constexpr const char* kStyleSheet = R"(
  QFrame#card { background: %1; border: 1px solid %2; border-radius: 10px; }
  QFrame#card QLabel { background: transparent; }
  QLabel[role="heading"] { color: %3; font-size: 21px; font-weight: 700; }
  QLabel[role="title"] { color: %3; font-size: 15px; font-weight: 600; }
  QLabel[role="section"] { color: %4; font-size: 11px; font-weight: 600; padding-top: 12px; }
  QLabel[role="muted"] { color: %4; }
  QLabel[role="figure"] { color: %3; font-size: 18px; font-weight: 600; }
  QPushButton[role="control"] {
    background: %1; color: %3; border: 1px solid %2; border-radius: 7px; padding: 8px 18px; font-weight: 600;
    min-width: 76px; outline: none;
  }
  QPushButton[role="control"]:hover { background: %6; }
  QPushButton[role="control"]:focus { border-color: %5; }
  QPushButton[role="control"]:disabled { color: %4; background: transparent; }
  QPushButton#start:enabled { background: %5; border-color: %5; color: white; }
  QPushButton#start:enabled:hover, QPushButton#start:enabled:focus { background: %7; border-color: %7; }
  QMessageBox QLabel#qt_msgbox_label { font-weight: 600; }
  QMessageBox QLabel#qt_msgbox_informativelabel { min-width: 340px; }
  QDialogButtonBox { dialogbuttonbox-buttons-have-icons: 0; }
  QProgressBar { background: %2; border: none; border-radius: 3px; max-height: 6px; min-height: 6px; }
  QProgressBar::chunk { background: %5; border-radius: 3px; }
)";

}  // namespace

QColor blend(const QColor& colour, const QColor& ground, double part) {
  const auto mix = [part](int a, int b) { return static_cast<int>(a * part + b * (1 - part)); };
  return {mix(colour.red(), ground.red()), mix(colour.green(), ground.green()), mix(colour.blue(), ground.blue())};
}

Look::Look(const QPalette& palette)
    : card(palette.color(QPalette::Base)),
      text(palette.color(QPalette::WindowText)),
      accent(palette.color(QPalette::Active, QPalette::Highlight)) {
  const bool dark = card.lightness() < 128;
  line = blend(text, card, dark ? 0.18 : 0.13);
  muted = blend(text, card, 0.62);
  right = dark ? QColor(0x4a, 0xc2, 0x6b) : QColor(0x1a, 0x7f, 0x37);
  wrong = dark ? QColor(0xff, 0x7b, 0x72) : QColor(0xcf, 0x22, 0x2e);
}

QString Look::style_sheet() const {
  return QString(kStyleSheet)
      .arg(card.name(), line.name(), text.name(), muted.name(), accent.name(), blend(text, card, 0.06).name(),
           blend(text, accent, 0.15).name());
}

QIcon icon(Symbol symbol, const QColor& colour, const QColor& disabled) {
  QIcon icon;
  icon.addPixmap(draw(symbol, colour), QIcon::Normal);
  icon.addPixmap(draw(symbol, disabled), QIcon::Disabled);
  return icon;
}
