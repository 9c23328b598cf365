// density: how much memory the pool takes for pages of real heaps, against what the codec allows.
//
//   density FILE.pages...        (bench/density.sh takes the pages, runs zram, and then this)
//
// For each file, over the life that density_churn.h describes: the codec's ratio; original bytes to
// frame bytes in the default geometry, in 4K/3 (z3fold) and 4K/2 (zbud), and their share of the
// codec's ratio; with all metadata; and what zram with lz4 took for the same pages (FILE.zram, from
// zram_peer.py; its share is that of zram's own codec ratio). The last lines hold each goal against
// the worst of the files. Same-filled pages count on neither side, but where it says so. Exit
// status: 1 when a pool failed or lied; a goal that is not reached is no failure.
#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "bench/density_churn.h"
#include "bench/density_neighbours.h"
#include "bench/density_pages.h"

namespace foldswap::bench {
namespace {

constexpr CodecSpec kZstd{Codec::zstd, 1};  // the daemon's default
constexpr CodecSpec kLz4{Codec::lz4, 1};    // zram's
constexpr double kFramesGoal = 0.95, kWholeGoal = 0.90, kMetadataGoal = 0.6;
constexpr std::size_t kFilesGoal = 5;
constexpr PoolGeometry kZ3fold{4096, 3}, kZbud{4096, 2};

// mm_stat of zram at each phase, or why there is none.
struct Zram {
  struct Stat {
    double original = 0, compressed = 0, used = 0;
  };
  std::string missing = "not measured";
  std::array<Stat, kPhases> stats;
};

struct Verdict {
  PageSet set;
  double lz4_ratio = 0;
  Outputs outputs;
  Life ours, z3fold, zbud, lz4;
  Zram zram;
  Neighbours neighbours;
};

Zram read_zram(const std::string& pages_path) {
  Zram zram;
  std::ifstream file(std::filesystem::path(pages_path).replace_extension(".zram"));
  std::string word;
  for (std::size_t p = 0; file >> word; ++p) {
    if (word == "none") {
      std::getline(file >> std::ws, zram.missing);
      return zram;
    }
    if (p >= kPhases || word != kPhaseNames[p]) return zram;
    Zram::Stat& stat = zram.stats[p];
    if (!(file >> stat.original >> stat.compressed >> stat.used)) return zram;
    if (p + 1 == kPhases) zram.missing.clear();
  }
  return zram;
}

Result<Verdict> examine(const std::string& path) {
  auto set = read_pages(path);
  if (!set) return std::unexpected(set.error());
  auto zstd = compress_all(*set, kZstd);
  if (!zstd) return std::unexpected(zstd.error());
  auto lz4 = compress_all(*set, kLz4);
  if (!lz4) return std::unexpected(lz4.error());
  Verdict result{.set = std::move(*set),
                 .lz4_ratio = lz4->ratio(),
                 .outputs = std::move(*zstd),
                 .ours = {},
                 .z3fold = {},
                 .zbud = {},
                 .lz4 = {},
                 .zram = read_zram(path),
                 .neighbours = {}};
  auto neighbours = measure_neighbours(result.set);
  if (!neighbours) return std::unexpected(neighbours.error());
  result.neighbours = *neighbours;
  const auto run = [&](PoolGeometry geometry, const Outputs& outputs, Life& life) -> Status {
    auto lived = live(geometry, result.set, outputs);
    if (!lived) return std::unexpected(lived.error());
    life = *lived;
    return {};
  };
  if (auto s = run(PoolGeometry{}, result.outputs, result.ours); !s) {
    return std::unexpected(s.error());
  }
  if (auto s = run(kZ3fold, result.outputs, result.z3fold); !s) return std::unexpected(s.error());
  if (auto s = run(kZbud, result.outputs, result.zbud); !s) return std::unexpected(s.error());
  if (auto s = run(PoolGeometry{}, *lz4, result.lz4); !s) return std::unexpected(s.error());
  return result;
}

// -- one program's table

double metadata_percent(const Moment& m) {
  return 100 * m.all_metadata() / m.original();
}

// The same over all evicted pages: same-filled ones have a page-map entry too.
double metadata_percent_evicted(const Moment& m, const Verdict& r) {
  const double same = static_cast<double>(r.set.same_filled) * static_cast<double>(m.objects) /
                      static_cast<double>(r.set.pages());
  return 100 * (m.all_metadata() + same * kPageMapBytes) /
         (m.original() + same * static_cast<double>(kPageBytes));
}

using Cell = std::function<std::string(std::size_t phase)>;

std::string number(const char* format, double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

// "5.81 (0.953)": a ratio, and its share of the codec's.
std::string ratio(double value, double codec) {
  return number("%.2f", value) + number(" (%.3f)", value / codec);
}

void row(const std::string& title, const Cell& cell) {
  std::printf("  %-34s", title.c_str());
  for (std::size_t p = 0; p < kPhases; ++p) std::printf(" %13s", cell(p).c_str());
  std::printf("\n");
}

std::string geometry_name(PoolGeometry geometry) {
  return std::to_string(geometry.frame_bytes / kKiB) + "K/" + std::to_string(geometry.buddies);
}

void frame_row(const std::string& title, const Life& life) {
  row(title, [&](std::size_t p) {
    return ratio(life.moments[p].frame_ratio(), life.moments[p].codec_ratio());
  });
}

void zram_rows(const Zram& zram) {
  if (!zram.missing.empty()) {
    std::printf("  zram, lz4: none: %s\n", zram.missing.c_str());
    return;
  }
  row("zram, lz4: mem_used_total", [&](std::size_t p) {
    const auto& stat = zram.stats[p];
    return ratio(stat.original / stat.used, stat.original / stat.compressed);
  });
}

void table(const Verdict& r) {
  const std::size_t all = r.set.pages() + r.set.same_filled;
  std::printf(
      "%s: %zu pages, %.1f %% same-filled; of the other %zu zstd makes %.2f : 1, lz4 %.2f "
      ": 1; %.1f %% do not shrink\n",
      r.set.name.c_str(), all,
      100 * static_cast<double>(r.set.same_filled) / static_cast<double>(all), r.set.pages(),
      r.outputs.ratio(), r.lz4_ratio,
      100 * static_cast<double>(r.outputs.incompressible) / static_cast<double>(r.set.pages()));
  std::printf("  %-34s", "ratio (share of the codec's)");
  for (const char* name : kPhaseNames) std::printf(" %13s", name);
  std::printf("\n");
  row("codec (zstd), pages in the pool",
      [&](std::size_t p) { return number("%.2f        ", r.ours.moments[p].codec_ratio()); });
  const std::string ours = "pool " + geometry_name({});
  frame_row(ours + ": frames", r.ours);
  row(ours + ": with all metadata", [&](std::size_t p) {
    return ratio(r.ours.moments[p].whole_ratio(), r.ours.moments[p].codec_ratio());
  });
  frame_row("pool 4K/3: frames", r.z3fold);
  frame_row("pool 4K/2: frames", r.zbud);
  frame_row(ours + ", lz4: frames", r.lz4);
  zram_rows(r.zram);
  row("empty frames kept, KiB",
      [&](std::size_t p) { return std::to_string(r.ours.moments[p].empty_frame_bytes / kKiB); });
  row("metadata, % of the pages' bytes",
      [&](std::size_t p) { return number("%.3f", metadata_percent(r.ours.moments[p])); });
  row("  with same-filled pages, %", [&](std::size_t p) {
    return number("%.3f", metadata_percent_evicted(r.ours.moments[p], r));
  });
  std::printf(
      "  fixed metadata %llu KiB; %llu objects stored, %llu verified; moved %llu KiB in the churn, "
      "%llu KiB tidying\n\n",
      static_cast<unsigned long long>(r.ours.fixed_metadata_bytes / kKiB),
      static_cast<unsigned long long>(r.ours.stored),
      static_cast<unsigned long long>(r.ours.verified),
      static_cast<unsigned long long>(r.ours.churn_moved_bytes / kKiB),
      static_cast<unsigned long long>(r.ours.tidied_bytes / kKiB));
}

// -- all of them

using Results = std::vector<Verdict>;

void overview(const Results& results) {
  std::printf("%-12s %6s | %7s %7s %7s %7s | %7s %7s %7s %7s\n", "original to", "zstd", "frames",
              "4K/3", "4K/2", "zram", "frames", "4K/3", "4K/2", "zram");
  std::printf("%-12s %6s | %-31s | %-31s\n", "", "", "fresh", "churned");
  for (const auto& r : results) {
    std::printf("%-12s %6.2f", r.set.name.c_str(), r.outputs.ratio());
    for (const Phase phase : {Phase::fresh, Phase::churned}) {
      std::printf(" | %7.2f %7.2f %7.2f", r.ours.at(phase).frame_ratio(),
                  r.z3fold.at(phase).frame_ratio(), r.zbud.at(phase).frame_ratio());
      const auto& zram = r.zram.stats[static_cast<std::size_t>(phase)];
      std::printf(" %7s",
                  r.zram.missing.empty() ? number("%.2f", zram.original / zram.used).c_str() : "-");
    }
    std::printf("\n");
  }
  std::printf("\n");
}

// Four pages as one object: what it gains, and what one page of it costs.
void neighbours(const Results& results) {
  std::printf("%-12s %31s | %31s\n", "zstd of", "ratio: alone, four, gain",
              "us to get one: alone, four, x");
  for (const auto& r : results) {
    const Neighbours& n = r.neighbours;
    std::printf("%-12s %10.2f %10.2f %8.1f %% | %10.2f %10.2f %9.2f\n", r.set.name.c_str(),
                n.ratio_alone, n.ratio_together, 100 * (n.ratio_together / n.ratio_alone - 1),
                n.us_alone, n.us_together, n.us_together / n.us_alone);
  }
  std::printf("\n");
}

// One line: how many files reach the goal, and the worst. `sign` -1: less is better.
void goal(const std::string& what, const Results& results, double least, int sign,
          const std::function<double(const Verdict&)>& value) {
  const auto good = [&](const Verdict& r) { return sign * value(r) >= sign * least; };
  const auto reached = std::ranges::count_if(results, good);
  const auto worst =
      std::ranges::min_element(results, {}, [&](const Verdict& r) { return sign * value(r); });
  const bool pass = reached == static_cast<std::ptrdiff_t>(results.size());
  std::printf("%-10s %-52s %td of %zu, worst %.3f (%s)\n", pass ? "PASS" : "below-goal",
              what.c_str(), reached, results.size(), value(*worst), worst->set.name.c_str());
}

void goals(const Results& results) {
  std::printf("%-10s at least %zu programs: %zu\n",
              results.size() >= kFilesGoal ? "PASS" : "below-goal", kFilesGoal, results.size());
  for (std::size_t p = 0; p < kPhases; ++p) {
    const auto phase = static_cast<Phase>(p);
    if (phase == Phase::halved) continue;
    const std::string name = std::string(kPhaseNames[p]) + ": ";
    goal(name + "frames alone >= 0.95 x the codec's ratio", results, kFramesGoal, 1,
         [phase](const Verdict& r) {
           return r.ours.at(phase).frame_ratio() / r.ours.at(phase).codec_ratio();
         });
    goal(name + "with all metadata >= 0.90 x", results, kWholeGoal, 1, [phase](const Verdict& r) {
      return r.ours.at(phase).whole_ratio() / r.ours.at(phase).codec_ratio();
    });
    goal(name + "metadata <= 0.6 % of the pages' bytes", results, kMetadataGoal, -1,
         [phase](const Verdict& r) { return metadata_percent(r.ours.at(phase)); });
  }
}

int run(std::span<char* const> paths) {
  std::printf("pool %s, %s; phases: bench/density_churn.h\n\n", geometry_name({}).c_str(),
              to_string(kZstd).c_str());
  Results results;
  for (const char* path : paths) {
    auto result = examine(path);
    if (!result) {
      std::fprintf(stderr, "density: %s\n", result.error().text().c_str());
      return 1;
    }
    table(*result);
    results.push_back(std::move(*result));
  }
  overview(results);
  neighbours(results);
  goals(results);
  return 0;
}

}  // namespace
}  // namespace foldswap::bench

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: density FILE.pages...\n");
    return 2;
  }
  return foldswap::bench::run(std::span(argv, static_cast<std::size_t>(argc)).subspan(1));
}
