// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/listener.h"

#include <spdlog/logger.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

using namespace kvmid::io;
namespace fs = std::filesystem;

namespace {

class TempDir {
 public:
  TempDir() {
    std::string name = (fs::temp_directory_path() / "kvmid-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TempDir() { fs::remove_all(path_); }
  [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

UniqueFd connect_to(const std::string& path) {
  UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return {};
  return fd;
}

spdlog::logger& quiet() {
  static spdlog::logger log("test");
  return log;
}

}  // namespace

TEST_CASE("a socket file has the mode that was asked for, whatever the umask", "[listener]") {
  const TempDir dir;
  const mode_t old = ::umask(0177);
  const auto socket = listen_unix(dir.file("a.sock"), 0660, "");
  ::umask(old);
  REQUIRE(socket.has_value());
  struct stat info{};
  REQUIRE(::stat(socket->path.c_str(), &info) == 0);
  REQUIRE((info.st_mode & 07777U) == 0660U);
}

TEST_CASE("the socket file of a daemon that died is replaced", "[listener]") {
  const TempDir dir;
  const std::string path = dir.file("a.sock");
  {
    auto dead = listen_unix(path, 0660, "");
    REQUIRE(dead.has_value());  // its descriptor closes here and its file stays, as after a kill
  }
  REQUIRE(fs::exists(path));
  REQUIRE_FALSE(connect_to(path).valid());

  const auto socket = listen_unix(path, 0660, "");

  REQUIRE(socket.has_value());
  REQUIRE(connect_to(path).valid());
}

TEST_CASE("a socket that somebody listens on is left alone", "[listener]") {
  const TempDir dir;
  const std::string path = dir.file("a.sock");
  const auto first = listen_unix(path, 0660, "");
  REQUIRE(first.has_value());

  const auto second = listen_unix(path, 0660, "");

  REQUIRE(second.error().text == "cannot listen on " + path + ": another daemon listens there");
  REQUIRE(connect_to(path).valid());
}

TEST_CASE("a file that is no socket is not removed", "[listener]") {
  const TempDir dir;
  const std::string path = dir.file("precious");
  std::ofstream(path) << "data";
  REQUIRE(listen_unix(path, 0660, "").error().text.find("not a socket") != std::string::npos);
  REQUIRE(fs::file_size(path) == 4);
}

TEST_CASE("a path is refused only beyond the system's 107 bytes", "[listener]") {
  const TempDir dir;
  const std::string base = dir.file("");
  const std::string fits = base + std::string(107 - base.size(), 'x');
  REQUIRE(listen_unix(fits, 0660, "").has_value());
  const auto text = listen_unix(fits + "x", 0660, "").error().text;
  REQUIRE(text.find("108 bytes") != std::string::npos);
  REQUIRE(text.find("limit is 107 bytes") != std::string::npos);
}

TEST_CASE("errors name the group or the directory that is missing, and leave no file", "[listener]") {
  const TempDir dir;
  const auto path = dir.file("a.sock");
  REQUIRE(listen_unix(path, 0660, "no-such-group-here").error().text.find("\"no-such-group-here\"") != std::string::npos);
  REQUIRE_FALSE(fs::exists(path));
  const auto nowhere = dir.file("none/a.sock");
  REQUIRE(listen_unix(nowhere, 0660, "").error().text == "cannot listen on " + nowhere + ": No such file or directory");
}

TEST_CASE("a listener hands over connections, and removes its own file only", "[listener]") {
  const TempDir dir;
  const std::string path = dir.file("a.sock");
  boost::asio::io_context context;
  IoCounters counters;
  int accepted = 0;
  auto socket = listen_unix(path, 0660, "");
  REQUIRE(socket.has_value());
  Listener listener(context, std::move(*socket), path, counters, quiet(), [&](UniqueFd) { ++accepted; });
  listener.start();
  const auto one = connect_to(path);
  const auto two = connect_to(path);
  while (accepted < 2) context.run_one();
  REQUIRE(counters.connections_accepted.load() == 2);

  SECTION("its own file goes with it") {
    listener.stop();
    REQUIRE_FALSE(fs::exists(path));
  }
  SECTION("a file that another daemon put in its place stays") {
    fs::remove(path);
    std::ofstream(path) << "other";
    listener.stop();
    REQUIRE(fs::exists(path));
  }
}
