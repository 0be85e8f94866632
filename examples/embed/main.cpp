#include <QApplication>

#include "window.h"

// Usage: embed [FOLDER WITH MNIST]
int main(int argc, char** argv) {
  const QApplication application(argc, argv);
  QApplication::setStyle("Fusion");
  Settings settings;
  if (argc > 1) settings.data_folder = argv[1];
  Window window(settings);
  window.show();
  return QApplication::exec();
}
