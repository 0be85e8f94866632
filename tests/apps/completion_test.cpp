// What is made from the definitions of the command lines: completions and pages of the manual.
#include <sstream>

#include "support/catch.h"
#include "support/run_program.h"
#include "support/temp_dir.h"

using namespace tandem::test;

namespace {

ProgramResult tool(const std::string& arguments) { return run_program(std::string(TANDEM_TOOL) + " " + arguments); }

std::string script_for(const TempDir& dir, const std::string& shell) {
  const std::string path = dir / shell;
  REQUIRE(tool("completion " + shell + " >" + path).exit_code == 0);
  return path;
}

bool has(const std::string& program) { return run_program("command -v " + program).exit_code == 0; }

// What bash offers after these words, one a line.
std::string offered(const std::string& script, const std::string& words) {
  std::istringstream parts(words);
  std::string array;
  int count = 0;
  for (std::string part; parts >> part; ++count) {
    if (part == "_") part.clear();  // an empty word
    array.append("'").append(part).append("' ");
  }
  const std::string first = words.substr(0, words.find(' '));
  return run_program("bash -c \"source " + script + "; complete -p " + first.substr(first.rfind('/') + 1) +
                     " >/dev/null || exit 9; COMP_WORDS=(" + array + "); COMP_CWORD=" + std::to_string(count - 1) +
                     "; _tandem_programs 2>&1; printf '%s\\n' \\\"\\${COMPREPLY[@]}\\\"\"")
      .output;
}

}  // namespace

TEST_CASE("bash completes subcommands, flags, choices and files of both programs") {
  const TempDir dir;
  const std::string script = script_for(dir, "bash");
  CHECK(run_program("bash -n " + script).exit_code == 0);
  CHECK(offered(script, "tandem ben") == "bench\n");
  CHECK(offered(script, "tandem bench opt") == "optimizer\n");
  CHECK(offered(script, "tandem plan --batch-") == "--batch-size\n");
  CHECK(offered(script, "tandem checkpoint convert --type b") == "bf16\n");
  CHECK(offered(script, "build/apps/train --model g") == "gpt\ngpt2\n");
  CHECK(offered(script, "train --model = c") == "cnn\n");
  CHECK(offered(script, "train --model =") == "cnn\ngpt\ngpt2\nmlp\nresnet18\nresnet34\nresnet50\nvit_b_16\n");
  CHECK(offered(script, "train --scheduler cosine") == "cosine\ncosine-restarts\n");
  CHECK(offered(script, "train --lr _") == "\n");
  CHECK(offered(script, "tandem checkpoint show " + script.substr(0, script.size() - 1)) == script + "\n");
  CHECK(offered(script, "tandem completion z") == "zsh\n");
  CHECK_THAT(offered(script, "tandem _"), ContainsSubstring("env\n") && ContainsSubstring("completion\n"));
}

TEST_CASE("zsh and fish take their scripts, where they are installed") {
  const TempDir dir;
  for (const std::string shell : {"zsh", "fish"}) {
    const std::string script = script_for(dir, shell);
    if (!has(shell)) continue;
    CAPTURE(shell);
    CHECK(run_program(shell + " -n " + script).exit_code == 0);
  }
}

TEST_CASE("fish offers what bash does, where it is installed") {
  if (!has("fish")) return;
  const TempDir dir;
  const std::string script = script_for(dir, "fish");
  const auto offered = [&](const std::string& words) {
    return run_program("fish --no-config -c \"source " + script + "; complete -C '" + words + "'\"").output;
  };
  CHECK_THAT(offered("tandem bench opt"), ContainsSubstring("optimizer\t"));
  CHECK_THAT(offered("train --model g"), ContainsSubstring("gpt"));
  CHECK_THAT(offered("tandem plan --batch-s"), ContainsSubstring("--batch-size\t"));
}

TEST_CASE("the manual has every subcommand and flag") {
  const auto page = tool("man tandem");
  CHECK(page.exit_code == 0);
  CHECK_THAT(page.output, ContainsSubstring(".TH TANDEM 1") && ContainsSubstring(".SH tandem bench allreduce") &&
                              ContainsSubstring("\\-\\-seedable\\-sampler") && ContainsSubstring("130 interrupted"));
  CHECK_THAT(tool("man train").output,
             ContainsSubstring("\\-\\-model \\fIcnn|gpt|gpt2|mlp|resnet18|resnet34|resnet50|vit_b_16\\fR"));
  CHECK(tool("man other").exit_code == 2);
  if (!has("man")) return;
  const auto shown =
      run_program(std::string(TANDEM_TOOL) + " man train | MANWIDTH=80 man --warnings -l - 2>&1 >/dev/null");
  CHECK(shown.output.empty());
}
