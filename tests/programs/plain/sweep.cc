// Sweeps over its memory again and again and verifies every page it meets.
// --mb, --passes, --kind=heap|random|mixed, --order=sequential|random, --write_every=N (0: reads
// only),
// --until_eof=1: go on until the test closes our input, --pace_pages=N: a pause of 1 ms after each
// N pages of the first fill, --seed. Says "populated" after the first fill and "done PAGES" at the
// end.
#include "tests/programs/lib/common.h"

using namespace testprog;

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const std::size_t pages = options.number("mb", 64) * 256;
  const std::uint64_t passes = options.number("passes", 3);
  const bool until_eof = options.number("until_eof", 0) != 0;
  const bool random_order = options.text("order", "sequential") == "random";
  const std::uint64_t write_every = options.number("write_every", 8);
  const std::uint64_t pace = options.number("pace_pages", 0);
  const std::uint64_t seed = options.number("seed", 1);

  Region region(map_bytes(pages * kPage), pages, seed, parse_kind(options.text("kind", "heap")));
  for (std::size_t i = 0; i < pages; ++i) {
    region.write(i);
    if (pace != 0 && i % pace == pace - 1) sleep_ms(1);
  }
  say("populated");

  Random random(seed);
  std::uint64_t touched = 0;
  for (std::uint64_t pass = 0; until_eof ? !stdin_closed() : pass < passes; ++pass) {
    for (std::size_t n = 0; n < pages; ++n) {
      const std::size_t i = random_order ? random.below(pages) : n;
      region.check(i);
      ++touched;
      if (write_every != 0 && touched % write_every == 0) region.write(i);
      if (until_eof && n % 1024 == 0 && stdin_closed()) break;
    }
  }
  region.check_all();
  say(until_eof ? "done" : "done " + std::to_string(touched));
  return 0;
}
