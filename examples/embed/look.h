#pragma once

#include <QColor>
#include <QIcon>
#include <QPalette>
#include <QString>

/// The window's colours. All come from the desktop's palette, so that they suit light and dark ones.
struct Look {
  explicit Look(const QPalette& palette);

  QString style_sheet() const;

  QColor card;  ///< ground of the panels
  QColor line;  ///< around them, and of grids
  QColor text;
  QColor muted;  ///< text that explains
  QColor accent;
  QColor right;
  QColor wrong;
};

/// `part` of `colour` over `ground`, 0 to 1.
QColor blend(const QColor& colour, const QColor& ground, double part);

enum class Symbol { play, pause, stop };
QIcon icon(Symbol symbol, const QColor& colour, const QColor& disabled);
