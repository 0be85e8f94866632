#pragma once

#include <QGuiApplication>
#include <QPixmap>
#include <QPoint>
#include <QProcess>
#include <QScreen>
#include <QStringList>
#include <QWidget>

// What a person does at the desktop. Mouse and keys go through the X server, to whatever is there on the screen.
namespace desktop {

/// What xdotool prints; empty also when it fails.
inline QString xdotool(const QStringList& arguments) {
  QProcess process;
  process.start("xdotool", arguments);
  process.waitForFinished();
  return QString::fromUtf8(process.readAllStandardOutput()).trimmed();
}

inline void click(const QPoint& where) {
  xdotool({"mousemove", QString::number(where.x()), QString::number(where.y()), "click", "1"});
}

inline void click(const QWidget& widget) { click(widget.mapToGlobal(widget.rect().center())); }

/// In place of what the field holds.
inline void type_into(const QWidget& field, const QString& text) {
  click(field);
  xdotool({"key", "ctrl+a"});
  xdotool({"type", text});
  xdotool({"key", "Tab"});
}

/// The button that window managers have at the right end of the title bar.
inline QPoint close_button(const QWidget& window) {
  const QRect frame = window.frameGeometry();
  const int title_height = window.geometry().top() - frame.top();
  return {frame.right() - title_height / 2, frame.top() + title_height / 2};
}

/// Of the whole screen.
inline bool save_screenshot(const QString& file) { return QGuiApplication::primaryScreen()->grabWindow(0).save(file); }

}  // namespace desktop
