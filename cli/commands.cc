#include "cli/commands.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>

#include "base/size.h"
#include "base/wire.h"
#include "cli/admin_client.h"
#include "cli/render.h"
#include "cli/run.h"
#include "daemon/config/config.h"

namespace foldswap::cli {
namespace {

constexpr const char* kFooter =
    "SIZE is plain bytes or a number with K, M, G or T: 512M, 2G.\n"
    "A client is named by its process number or its name; a name that fits several means all of "
    "them.\n"
    "\n"
    "Exit status: 0 done, 1 it failed, 2 bad usage. run: that of the program, 126 when it cannot "
    "be\n"
    "executed, 127 when it is not found, 125 when --require forbids to start it.\n"
    "\n"
    "Environment: FOLDSWAP_RUNTIME_DIR, and for programs that are started with run or with\n"
    "LD_PRELOAD=libfoldswap.so: FOLDSWAP_NAME, FOLDSWAP_RESIDENT_MAX, FOLDSWAP_GROUP_MAX,\n"
    "FOLDSWAP_REQUIRE=1, FOLDSWAP_QUIET=1 (no messages), FOLDSWAP_DISABLE=1 (do nothing).";

constexpr const char* kSeeHelp = " (see foldswap --help)";

[[noreturn]] void bad_usage(const std::string& message) {
  throw CLI::ParseError(message, CLI::ExitCodes::ValidationError);
}

std::uint64_t size_argument(const char* option, const std::string& text) {
  const auto bytes = parse_size(text);
  if (!bytes) bad_usage(std::string(option) + ": " + bytes.error().message);
  return *bytes;
}

void add_size(CLI::App& command, const char* option, std::optional<std::uint64_t>& bytes,
              const char* help) {
  command
      .add_option_function<std::string>(
          option,
          [option, &bytes](const std::string& text) { bytes = size_argument(option, text); }, help)
      ->type_name("SIZE");
}

int complain(const std::string& line, int exit = kFailed) {
  std::fprintf(stderr, "foldswap: %s\n", line.c_str());
  return exit;
}

// A full disk behind standard output is a failure like any other.
int print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    return complain("cannot write to standard output");
  }
  return kDone;
}

std::filesystem::path runtime_dir(const Session& session) {
  if (session.runtime_dir.empty()) return default_runtime_dir();
  return session.runtime_dir;
}

// Sends the request; shows the result, or says what went wrong.
int ask(
    const Session& session, const Json& request,
    const std::function<int(const Json&)>& show = [](const Json&) { return kDone; }) {
  const auto reply = call_daemon(runtime_dir(session), request);
  if (!reply) return complain(reply.error().text());
  if (reply->exit != kDone) return complain(printable(reply->error), reply->exit);
  return show(reply->result);
}

std::string json_text(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// ---- run
// -------------------------------------------------------------------------------------------

// CLI11 has left in `rest` what it did not know before "--".
std::vector<std::string> program_words(const Session& session, std::vector<std::string> rest) {
  if (!rest.empty() && rest.front().starts_with('-')) {
    bad_usage("unknown option " + rest.front() + " of run");
  }
  // "run CMD -- x": the dashes are CMD's own.
  if (!rest.empty() && session.had_dashes) rest.emplace_back("--");
  rest.insert(rest.end(), session.after_dashes.begin(), session.after_dashes.end());
  if (rest.empty()) bad_usage("run: which program? Put it after --");
  return rest;
}

void check_name(const std::string& name) {
  if (name.empty() || name.size() >= wire::kNameBytes || printable(name) != name) {
    bad_usage("--name: '" + printable(name) + "' is not a name of 1 to " +
              std::to_string(wire::kNameBytes - 1) + " printable characters");
  }
}

void add_run(CLI::App& app, Session& session) {
  auto* command = app.add_subcommand("run", "Run a program as a client: foldswap run -- CMD...");
  command->prefix_command();
  auto options = std::make_shared<RunOptions>();
  add_size(*command, "--resident-max", options->resident_max_bytes,
           "keep the program's resident memory below this, and that of each child");
  add_size(*command, "--group-max", options->group_max_bytes,
           "one budget for the program and all its children together");
  command->add_option_function<std::string>(
      "--name",
      [options](const std::string& name) {
        check_name(name);
        options->name = name;
      },
      "what the client is called; default: the program's own name");
  command->add_flag("--require", options->require,
                    "do not start the program (exit status 125) when it cannot become a client");
  command->footer("Everything after -- is the program and its arguments, untouched.");
  command->callback([&session, options, command] {
    options->command = program_words(session, command->remaining());
    session.action = [&session, options] {
      options->runtime_dir = runtime_dir(session);
      options->runtime_dir_given = !session.runtime_dir.empty();
      return run(*options);
    };
  });
}

// ---- looking
// ---------------------------------------------------------------------------------------

void add_view(CLI::App& app, Session& session, const char* name, const char* help,
              std::string (*render)(const Json&)) {
  auto* command = app.add_subcommand(name, help);
  auto as_json = std::make_shared<bool>(false);
  command->add_flag("--json", *as_json, "as JSON, for programs");
  command->callback([&session, name, render, as_json] {
    session.action = [&session, name, render, as_json] {
      return ask(session, {{"command", name}}, [&](const Json& result) {
        return print(*as_json ? json_text(result) : render(result));
      });
    };
  });
}

std::string value_text(const Json& value) {
  return printable(value.is_string() ? value.get<std::string>() : value.dump());
}

int show_keys(const Json& result, bool with_names) {
  std::string lines;
  for (const auto& [key, value] : result.items()) {
    lines += (with_names ? key + " = " : "") + value_text(value) + "\n";
  }
  return print(lines);
}

int show_version(const Session& session) {
  std::string lines = "foldswap " FOLDSWAP_VERSION "\n";
  // The command has its own version to tell, daemon or not.
  const auto reply = call_daemon(runtime_dir(session), {{"command", "version"}});
  if (reply && reply->result.is_object() && reply->result.contains("version")) {
    lines += "foldswapd " + value_text(reply->result["version"]) + "\n";
  }
  return print(lines);
}

int check_config(const std::string& file) {
  const auto config = load_config(file);
  if (!config) {
    std::fprintf(stderr, "%s\n", config.error().text().c_str());
    return kFailed;
  }
  return print(file + ": good\n");
}

void add_version_and_check(CLI::App& app, Session& session) {
  auto* version = app.add_subcommand("version", "Versions of this command and of the daemon");
  version->callback([&session] { session.action = [&session] { return show_version(session); }; });

  auto* check = app.add_subcommand("check-config",
                                   "Read a configuration file and its drop-ins as foldswapd would");
  auto file = std::make_shared<std::string>();
  check->add_option("FILE", *file, "for example /etc/foldswap/foldswap.toml")->required();
  check->callback([&session, file] { session.action = [file] { return check_config(*file); }; });
}

// ---- tuning
// ----------------------------------------------------------------------------------------

void add_get(CLI::App& app, Session& session) {
  auto* command = app.add_subcommand("get", "Show the daemon's settings, or one of them");
  auto key = std::make_shared<std::string>();
  command->add_option("KEY", *key, "for example pool.limit; default: all keys");
  command->callback([&session, key] {
    session.action = [&session, key] {
      Json request{{"command", "get"}};
      if (!key->empty()) request["key"] = *key;
      return ask(session, request,
                 [&](const Json& result) { return show_keys(result, key->empty()); });
    };
  });
}

void add_set(CLI::App& app, Session& session) {
  auto* command = app.add_subcommand("set", "Change a setting of the running daemon");
  auto pair = std::make_shared<std::pair<std::string, std::string>>();
  command->add_option("KEY", pair->first, "for example pool.limit")->required();
  command->add_option("VALUE", pair->second, "as in the configuration file, without quotes")
      ->required();
  command->callback([&session, pair] {
    session.action = [&session, pair] {
      return ask(session, {{"command", "set"}, {"key", pair->first}, {"value", pair->second}});
    };
  });
}

void add_limit(CLI::App& app, Session& session) {
  auto* command = app.add_subcommand("limit", "Change the budget of a running client");
  auto request = std::make_shared<Json>(Json{{"command", "limit"}});
  command
      ->add_option_function<std::string>(
          "--client", [request](const std::string& client) { (*request)["client"] = client; },
          "which client")
      ->type_name("PID|NAME")
      ->required();
  command
      ->add_option_function<std::string>(
          "SIZE",
          [request](const std::string& text) {
            (*request)["bytes"] =
                text == "none" ? Json(nullptr) : Json(size_argument("SIZE", text));
          },
          "most resident memory, or none")
      ->type_name("SIZE|none")
      ->required();
  command->callback([&session, request] {
    session.action = [&session, request] { return ask(session, *request); };
  });
}

// ---- moving pages
// ----------------------------------------------------------------------------------

// Which clients a command is for: one of --client and --all.
struct Selection {
  std::string client;
  bool all = false;

  void check(const char* command) const {
    if (client.empty() != all) bad_usage(std::string(command) + ": give one of --client and --all");
  }
  void add_to(Json& request) const {
    if (!all) request["client"] = client;
  }
};

void add_selection(CLI::App& command, Selection& selection) {
  command.add_option("--client", selection.client, "this client")->type_name("PID|NAME");
  command.add_flag("--all", selection.all, "all clients");
}

int show_reclaimed(const Json& result) {
  const bool understood = result.is_object() && result.contains("pages") &&
                          result["pages"].is_number_integer() && result.contains("complete");
  if (!understood) return complain("the daemon's answer is not understood");
  const int printed = print(result["pages"].dump() + "\n");
  if (result["complete"] == true) return printed;
  // A daemon of before says no reason.
  if (!result.contains("why") || !result["why"].is_string()) return kFailed;
  return complain("less than asked for: " + printable(result["why"].get<std::string>()));
}

void add_reclaim(CLI::App& app, Session& session) {
  auto* command = app.add_subcommand(
      "reclaim", "Take pages out now; prints how many. Exit status 1: fewer than asked for");
  struct Options {
    Selection selection;
    std::optional<std::uint64_t> bytes;
    bool everything = false;
  };
  auto options = std::make_shared<Options>();
  add_selection(*command, options->selection);
  add_size(*command, "--bytes", options->bytes, "this much");
  command->add_flag("--everything", options->everything, "all that can be taken out (the default)");
  command->callback([&session, options] {
    options->selection.check("reclaim");
    if (options->bytes && options->everything) {
      bad_usage("reclaim: give only one of --bytes and --everything");
    }
    session.action = [&session, options] {
      Json request{{"command", "reclaim"}};
      options->selection.add_to(request);
      if (options->bytes) request["bytes"] = *options->bytes;
      return ask(session, request, show_reclaimed);
    };
  });
}

void add_restore(CLI::App& app, Session& session) {
  auto* command = app.add_subcommand(
      "restore", "Bring everything back in; budgets rest until the next limit or reclaim");
  struct Options {
    Selection selection;
    std::optional<double> hold_s;
  };
  auto options = std::make_shared<Options>();
  add_selection(*command, options->selection);
  command->add_option("--hold", options->hold_s, "take nothing out for this long")
      ->type_name("SECONDS");
  command->callback([&session, options] {
    options->selection.check("restore");
    if (options->hold_s && !(*options->hold_s >= 0 && *options->hold_s <= 1e9)) {
      bad_usage("--hold: not a number of seconds");
    }
    session.action = [&session, options] {
      Json request{{"command", "restore"}};
      options->selection.add_to(request);
      if (options->hold_s) request["hold_s"] = *options->hold_s;
      return ask(session, request);
    };
  });
}

void add_plain(CLI::App& app, Session& session, const char* name, const char* help) {
  app.add_subcommand(name, help)->callback([&session, name] {
    session.action = [&session, name] { return ask(session, {{"command", name}}); };
  });
}

}  // namespace

void add_commands(CLI::App& app, Session& session) {
  app.description("foldswap: compressed swap in user space");
  app.footer(kFooter);
  app.require_subcommand(1);
  app.add_option("--runtime-dir", session.runtime_dir,
                 "where the daemon's sockets are; default: $FOLDSWAP_RUNTIME_DIR or /run/foldswap")
      ->type_name("DIR");
  add_run(app, session);
  add_view(app, session, "stats", "The whole picture", render_stats);
  add_view(app, session, "clients", "A row for each client", render_clients);
  add_get(app, session);
  add_set(app, session);
  add_limit(app, session);
  add_reclaim(app, session);
  add_restore(app, session);
  add_plain(app, session, "drain",
            "Bring everything back in and release all clients; new ones are refused until resume");
  add_plain(app, session, "resume", "Take clients again after drain");
  add_version_and_check(app, session);
}

int command_line(std::vector<std::string> arguments) {
  Session session;
  // CLI11 would take "--" itself and go on parsing what follows: only `run` may have it, and
  // untouched.
  const auto dashes = std::ranges::find(arguments, "--");
  session.had_dashes = dashes != arguments.end();
  if (session.had_dashes) session.after_dashes.assign(dashes + 1, arguments.end());
  arguments.erase(dashes, arguments.end());

  CLI::App app;
  app.name("foldswap");
  add_commands(app, session);
  try {
    std::ranges::reverse(arguments);  // as CLI11 wants them
    app.parse(arguments);
    if (session.had_dashes && !app.got_subcommand("run")) bad_usage("-- goes with run only");
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::RequiredError& error) {
    // What is missing matters less than a word that was not understood: it may have been meant.
    const auto unknown = app.remaining(/*recurse=*/true);
    if (!unknown.empty()) {
      return complain("unknown command or option " + unknown.front() + kSeeHelp, kUsage);
    }
    return complain(error.what() + std::string(kSeeHelp), kUsage);
  } catch (const CLI::ParseError& error) {
    return complain(error.what() + std::string(kSeeHelp), kUsage);
  }
  return session.action();
}

}  // namespace foldswap::cli
