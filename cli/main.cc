// foldswap: the command line of foldswapd. See cli/commands.h.
#include <string>
#include <vector>

#include "cli/commands.h"

int main(int argc, char** argv) {
  return foldswap::cli::command_line(std::vector<std::string>(argv + 1, argv + argc));
}
