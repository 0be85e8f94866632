// tandem completion: completions of both programs for shells, made from the definitions of their command lines.
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "command.h"
#include "flag.h"
#include "train/options.h"

namespace tandem_tool {
namespace {

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

std::vector<const CLI::Option*> options_of(const CLI::App& app) {
  return app.get_options([](const CLI::Option*) { return true; });
}

// What a shell is told of a value: FILE, DIR, TEXT, or the words themselves; empty for a flag that has none.
std::string value_of(const CLI::Option& option) {
  switch (what_takes(option)) {
    case Takes::nothing: return "";
    case Takes::choice: return joined(choices_of(option));
    case Takes::file: return "FILE";
    case Takes::directory: return "DIR";
    case Takes::text: return "TEXT";
  }
  return "";
}

// Subcommands and flags.
std::string words_of(const CLI::App& app) {
  std::vector<std::string> words;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    words.push_back(sub->get_name());
  for (const CLI::Option* option : options_of(app))
    for (const auto& name : names_of(*option)) words.push_back(name);
  return joined(words);
}

// The value of the first argument that is no flag; all of ours are of one kind.
std::string argument_of(const CLI::App& app) {
  for (const CLI::Option* option : options_of(app))
    if (names_of(*option).empty()) return value_of(*option);
  return "";
}

// Three tables, which bash and zsh write in the same way, by program ("tandem plan") or by that and a flag.
std::string tables(const std::vector<Program>& programs) {
  std::string words = "  local -A offered=(\n", values = "  local -A values=(\n",
              arguments = "  local -A arguments=(\n";
  const auto entry = [](const std::string& key, const std::string& text) {
    return "    [\"" + key + "\"]=\"" + text + "\"\n";
  };
  for (const auto& [path, app] : programs) {
    words += entry(path, words_of(*app));
    if (const auto argument = argument_of(*app); !argument.empty()) arguments += entry(path, argument);
    for (const CLI::Option* option : options_of(*app))
      for (const auto& name : names_of(*option))
        if (const auto value = value_of(*option); !value.empty()) values += entry(path + " " + name, value);
  }
  return words + "  )\n" + values + "  )\n" + arguments + "  )\n";
}

std::string for_bash(const std::vector<Program>& programs) {
  return "# Completion for bash, made by: tandem completion bash\n_tandem_programs() {\n" + tables(programs) +
         R"(  local at=${COMP_WORDS[0]##*/} current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} word value
  [[ $current == "=" ]] && current=
  [[ $previous == "=" ]] && previous=${COMP_WORDS[COMP_CWORD-2]}
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    [[ -n ${offered["$at $word"]:-} ]] && at+=" $word"
  done
  value=${values["$at $previous"]:-}
  [[ -z $value && $current != -* ]] && value=${arguments["$at"]:-}
  case $value in
    FILE) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    DIR) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    TEXT) COMPREPLY=() ;;
    "") mapfile -t COMPREPLY < <(compgen -W "${offered["$at"]:-}" -- "$current") ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$value" -- "$current") ;;
  esac
}
complete -F _tandem_programs tandem train
)";
}

std::string for_zsh(const std::vector<Program>& programs) {
  return "#compdef tandem train\n# Completion for zsh, made by: tandem completion zsh\n_tandem_programs() {\n" +
         tables(programs) +
         R"(  local at=${words[1]:t} current=${words[CURRENT]} previous=${words[CURRENT-1]} word value
  for word in ${words[2,CURRENT-1]}; do
    [[ -n ${offered[$at $word]} ]] && at="$at $word"
  done
  value=${values[$at $previous]}
  [[ -z $value && $current != -* ]] && value=${arguments[$at]}
  case $value in
    FILE) _files ;;
    DIR) _files -/ ;;
    TEXT) _message 'a value' ;;
    "") compadd -- ${=offered[$at]} ;;
    *) compadd -- ${=value} ;;
  esac
}
compdef _tandem_programs tandem train
)";
}

std::string quoted_for_fish(const std::string& text) {
  std::string quoted;
  for (const char c : text) quoted += c == '\'' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  return "'" + quoted + "'";
}

std::string fish_value(const CLI::Option& option) {
  switch (what_takes(option)) {
    case Takes::nothing: return "";
    case Takes::choice: return " -x -a " + quoted_for_fish(joined(choices_of(option)));
    case Takes::file: return " -r -F";
    case Takes::directory: return " -x -a '(__fish_complete_directories)'";
    case Takes::text: return " -x";
  }
  return "";
}

std::string fish_line(const Program& program, const std::string& rest, const std::string& description) {
  const std::string name = program.path.substr(0, program.path.find(' '));
  return "complete -c " + name + " -n " + quoted_for_fish("__tandem_programs_at '" + program.path + "'") + rest +
         " -d " + quoted_for_fish(description) + "\n";
}

std::string for_fish(const std::vector<Program>& programs) {
  std::string paths, lines;
  for (const Program& program : programs) {
    paths += " " + quoted_for_fish(program.path);
    if (argument_of(*program.app).empty())
      lines += "complete -c " + program.path.substr(0, program.path.find(' ')) + " -f -n " +
               quoted_for_fish("__tandem_programs_at '" + program.path + "'") + "\n";
    for (const CLI::App* sub : program.app->get_subcommands([](const CLI::App*) { return true; }))
      lines += fish_line(program, " -a " + sub->get_name(), sub->get_description());
    for (const CLI::Option* option : options_of(*program.app)) {
      std::string names;
      for (const auto& name : option->get_lnames()) names += " -l " + name;
      for (const auto& name : option->get_snames()) names += " -s " + name;
      if (!names.empty()) lines += fish_line(program, names + fish_value(*option), option->get_description());
    }
  }
  return "# Completion for fish, made by: tandem completion fish\nset -g __tandem_programs" + paths +
         R"(
function __tandem_programs_at
  set -l words (commandline -opc)
  set -l at (basename $words[1])
  for word in $words[2..-1]
    contains -- "$at $word" $__tandem_programs; and set at "$at $word"
  end
  test "$at" = "$argv[1]"
end
)" + lines;
}

int print_completion(const CLI::App& tandem, const std::string& shell) {
  const auto train = train::describe_command_line();
  auto programs = all_within("tandem", tandem);
  for (const auto& program : all_within("train", *train)) programs.push_back(program);
  const std::string text = shell == "bash"  ? for_bash(programs)
                           : shell == "zsh" ? for_zsh(programs)
                                            : for_fish(programs);
  std::fputs(text.c_str(), stdout);
  return apps::kDone;
}

}  // namespace

void add_completion(CLI::App& tandem, Commands& commands) {
  const auto shell = std::make_shared<std::string>();
  auto* completion = tandem.add_subcommand("completion", "Prints a shell's completion of tandem and train.");
  completion->add_option("shell", *shell, "for which shell")->check(CLI::IsMember({"bash", "zsh", "fish"}))->required();
  completion->footer(
      "Examples:\n  source <(tandem completion bash)\n  tandem completion zsh >~/.zfunc/_tandem\n"
      "  tandem completion fish >~/.config/fish/completions/tandem.fish");
  commands.push_back({completion, [&tandem, shell] { return print_completion(tandem, *shell); }});
}

}  // namespace tandem_tool
