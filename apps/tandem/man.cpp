// tandem man: the programs' pages of the manual, made from the definitions of their command lines.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <sstream>
#include <string>

#include "command.h"
#include "flag.h"
#include "tandem/version.h"
#include "train/options.h"

namespace tandem_tool {
namespace {

// For roff: no line begins with a request, and dashes can be copied.
std::string escaped(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    if ((c == '.' || c == '\'') && (safe.empty() || safe.back() == '\n')) safe += "\\&";
    if (c == '\\')
      safe += "\\e";
    else if (c == '-')
      safe += "\\-";
    else
      safe += c;
  }
  return safe;
}

std::string described(const CLI::Option& option) {
  std::string names;
  for (const auto& name : names_of(option)) names += (names.empty() ? "" : ", ") + name;
  if (names.empty()) names = option.get_name(true);
  std::string value = what_takes(option) == Takes::nothing ? "" : option.get_type_name();
  if (const std::size_t colon = value.find(':'); colon != std::string::npos) value.resize(colon);
  if (const auto choices = choices_of(option); !choices.empty()) {
    value.clear();
    for (const auto& choice : choices) value += (value.empty() ? "" : "|") + choice;
  }
  const std::string standard = option.get_default_str();
  return ".TP\n.B " + escaped(names) + (value.empty() ? "" : " \\fI" + escaped(value) + "\\fR") + "\n" +
         escaped(option.get_description()) + (standard.empty() ? "" : " (default: " + escaped(standard) + ")") + "\n";
}

// The footer's lines after "Examples:".
std::string examples(const CLI::App& app) {
  std::istringstream lines(app.get_footer());
  std::string text, line;
  std::getline(lines, line);
  while (std::getline(lines, line)) text += escaped(line) + "\n";
  return text.empty() ? "" : ".PP\nExamples:\n.PP\n.nf\n" + text + ".fi\n";
}

std::string page(const std::string& name, const CLI::App& app) {
  std::string upper = name;
  std::transform(upper.begin(), upper.end(), upper.begin(), [](unsigned char c) { return std::toupper(c); });
  std::string text = ".TH " + upper + " 1 \"\" \"Tandem " TANDEM_VERSION "\"\n.SH NAME\n" + name + " \\- " +
                     escaped(app.get_description()) + "\n.SH SYNOPSIS\n.B " + name + "\n" +
                     (app.get_subcommands([](const CLI::App*) { return true; }).empty() ? "" : "COMMAND ") +
                     "[OPTIONS]\n";
  for (const auto& [path, program] : all_within(name, app)) {
    const bool whole = program == &app;
    text += whole ? ".SH OPTIONS\n" : ".SH " + escaped(path) + "\n" + escaped(program->get_description()) + "\n";
    for (const CLI::Option* option : program->get_options([](const CLI::Option*) { return true; }))
      if (whole || option != program->get_help_ptr()) text += described(*option);
    text += examples(*program);
  }
  return text + ".SH EXIT STATUS\n0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.\n";
}

int print_page(const CLI::App& tandem, const std::string& name) {
  const auto train = train::describe_command_line();
  std::fputs(page(name, name == "train" ? *train : tandem).c_str(), stdout);
  return apps::kDone;
}

}  // namespace

void add_man(CLI::App& tandem, Commands& commands) {
  const auto name = std::make_shared<std::string>("tandem");
  auto* man = tandem.add_subcommand("man", "Prints a page of the manual.");
  man->add_option("program", *name, "of which program")
      ->check(CLI::IsMember({"tandem", "train"}))
      ->capture_default_str();
  man->footer("Examples:\n  tandem man train | man -l -\n  tandem man tandem >tandem.1");
  commands.push_back({man, [&tandem, name] { return print_page(tandem, *name); }});
}

}  // namespace tandem_tool
