// SPDX-License-Identifier: GPL-2.0-or-later
//
// Secrets that hypervisors and tools share with kvmid, peers that may not bring a guest, guests that are there already;
// and that doctor names the step at which each of them failed.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "tests/integration_dialects/tool_scene.h"

namespace kvmid::test {
namespace {

const std::string kSecret = "correct horse battery staple";
// printf %s "correct horse battery staple" | sha1sum
constexpr std::string_view kHash = "abf7aad6438836dbe526aa231abde2d0eef74d42";

Kvmi1Tool::CookieHash hash_bytes() {
  Kvmi1Tool::CookieHash hash{};
  for (std::size_t i = 0; i < hash.size(); ++i)
    hash[i] = static_cast<std::uint8_t>(std::stoul(std::string(kHash.substr(2 * i, 2)), nullptr, 16));
  return hash;
}

std::string secret_file(const RuntimeFolder& folder, const std::string& name, const std::string& text) {
  const std::string path = folder.write(name, text);
  REQUIRE(::chmod(path.c_str(), 0600) == 0);
  return path;
}

/// A kvmid alone; guests are the test's.
struct Scene {
  explicit Scene(const Json& overrides) : daemon(folder, {.config = with_rule(overrides).dump(2), .arguments = {}}) {}
  static Json with_rule(const Json& overrides) {
    Json config{{"log", {{"level", "trace"}}}, {"policy", {rule()}}};
    config.update(overrides);
    return config;
  }
  [[nodiscard]] Json wait_failure(const std::string& step) const {
    Json found;
    const bool came = wait_until([&] {
      const Json shown = http(folder.file("admin.sock"), "GET", "/v1/failures").json();
      for (const auto& failure : shown.at("failures"))
        if (failure.at("step") == step) found = failure;
      return !found.is_null();
    });
    if (!came) throw TestError("no failure of step " + step + "\n" + log_of(daemon.process()));
    return found;
  }
  [[nodiscard]] std::string doctor() const {
    return run("kvmictl",
               {"--admin-socket", folder.file("admin.sock"), "--agent-socket", folder.file("agent.sock"), "doctor"})
        .text();
  }

  RuntimeFolder folder;
  mutable Daemon daemon;
};

/// "hypervisors" with one rule for web1. v6 has no name in its handshake: its UUID is matched.
Json with_guest_rule(const std::string& key, Json value) {
  Json one{{"guests", Json::array({"web1", to_string(uuid_of(1))})}};
  one[key] = std::move(value);
  Json hypervisors = Json::object();
  hypervisors["guests"] = Json::array({one});
  Json config = Json::object();
  config["hypervisors"] = std::move(hypervisors);
  return config;
}

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// Neither the secret nor its hash is in what anybody printed, nor in the failures.
void check_untold(const std::string& text) {
  CHECK_FALSE(has(text, kSecret));
  CHECK_FALSE(has(text, kHash));
  CHECK_FALSE(has(text, kHash.substr(0, 8)));
  std::string upper(kHash.substr(0, 8));
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  CHECK_FALSE(has(text, upper));
}

std::vector<std::string> speaks(SpokenBy dialect, std::vector<std::string> more = {}) {
  if (dialect) more.insert(more.end(), {"--dialect", spoken_name(dialect)});
  return more;
}

/// A handshake as QEMU of that dialect, or a KVMI 2 hypervisor, sends it.
ByteBuffer hello_of(SpokenBy dialect, const Uuid& uuid) {
  HypervisorHello hello;
  hello.uuid = uuid;
  if (dialect != DialectId::V6) {
    hello.name = "raw";
    hello.start_time = 1000;
  }
  if (!dialect || dialect == DialectId::V12) hello.max_gpa = 0x1000000;
  hello.kvmi2 = !dialect;
  ByteBuffer bytes;
  encode(hello, bytes);
  return bytes;
}

/// Sends it, and waits for the end of the connection; what came before that.
ByteBuffer answer_to(const Scene& scene, Bytes hello) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = scene.folder.file("hypervisor.sock");
  REQUIRE(path.size() < sizeof address.sun_path);
  std::memcpy(address.sun_path, path.data(), path.size());
  const client::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  const timeval limit{30, 0};
  REQUIRE(::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
  REQUIRE(::send(fd.get(), hello.data(), hello.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(hello.size()));
  ByteBuffer got;
  std::array<std::byte, 512> part;
  for (;;) {
    const ssize_t n = ::recv(fd.get(), part.data(), part.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) throw TestError("the connection stays open");
    if (n <= 0) return got;
    got.insert(got.end(), part.begin(), part.begin() + n);
  }
}

constexpr std::array<DialectId, 3> kOlder{DialectId::V6, DialectId::V7, DialectId::V12};

}  // namespace

TEST_CASE("a hypervisor with a key is served by a kvmid that knows it", "[integration][dialects]") {
  RuntimeFolder secrets;
  const std::string file = secret_file(secrets, "key", kSecret + "\n");
  Scene scene(with_guest_rule("cookie_file", file));
  for (const DialectId dialect : kOlder) {
    INFO(kvmi1::name_of(dialect));
    Guest guest(scene.folder, {.arguments = speaks(dialect, {"--cookie-file", file})});
    guest.wait_online();
    AgentClient agent = attach(scene.daemon.agent_socket(), guest.uuid());
    CHECK(read_mailbox(agent, 0, offsetof(Mailbox, magic)) == emulated::kMailboxMagic);
    check_untold(log_of(guest.process()));
    guest.process().kill();
    agent.close();
    REQUIRE(wait_until([&] { return !is_online(scene.daemon.agent_socket(), uuid_of(1)); }));
  }
  // One without a key takes any answer.
  Guest keyless(scene.folder, {.arguments = speaks(DialectId::V12)});
  keyless.wait_online();
  check_untold(log_of(scene.daemon.process()));
}

TEST_CASE("a hypervisor with a key leaves a kvmid that does not know it, and doctor says so",
          "[integration][dialects]") {
  RuntimeFolder secrets;
  const std::string right = secret_file(secrets, "right", kSecret);
  const std::string wrong = secret_file(secrets, "wrong", "something else");
  const bool configured = GENERATE(true, false);
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  INFO(kvmi1::name_of(dialect) << (configured ? ", wrong" : ", none"));
  Scene scene(configured ? with_guest_rule("cookie_file", wrong) : Json::object());
  Guest guest(scene.folder, {.arguments = speaks(dialect, {"--cookie-file", right})});
  guest.process().wait_errors("does not know the cookie");
  const Json failure = scene.wait_failure("start");
  CHECK(failure.at("side") == "hypervisor");
  CHECK(failure.at("guest") == "web1");
  CHECK_FALSE(is_online(scene.daemon.agent_socket(), guest.uuid()));
  const std::string advice = scene.doctor();
  CHECK(has(advice, "cookie_file"));
  check_untold(advice + failure.dump() + log_of(scene.daemon.process()) + log_of(guest.process()));
  guest.wait_rounds(2);  // it runs on, unwatched
}

TEST_CASE("a tool must prove to know the secret of its entry", "[integration][dialects]") {
  RuntimeFolder secrets;
  const std::string file = secret_file(secrets, "key", kSecret);
  const DialectId dialect = GENERATE(DialectId::V6, DialectId::V7, DialectId::V12);
  INFO(kvmi1::name_of(dialect));
  ToolScene scene({.tools = {dialect}, .dial_overrides = {{"cookie_file", file}}});
  Kvmi1Tool& tool = scene.tool();
  tool.accept();  // says none
  CHECK_THROWS_WITH(tool.next(), Catch::Contains("closed"));  // not a byte more
  CHECK(scene.wait_failure("cookie", "did not say").at("side") == "dial");
  CHECK(has(scene.doctor(), "the tool does not know the secret"));

  auto wrong = hash_bytes();
  wrong[0] ^= 1;
  tool.set_cookie(wrong);
  tool.accept();
  CHECK_THROWS_WITH(tool.next(), Catch::Contains("closed"));
  static_cast<void>(scene.wait_failure("cookie", "is not the one"));
  CHECK(scene.agent_json("tool0").is_null());

  tool.set_cookie(hash_bytes());
  tool.accept();
  CHECK(tool.call(kvmi1::GetVersion{}).ok());
  scene.wait_agents(1);
  check_untold(log_of(scene.daemon.process()) + scene.get("/v1/failures").dump() + scene.get("/v1/agents").dump() +
               scene.doctor());
}

TEST_CASE("a tool's answer of another size is refused, one with more behind the hash is not",
          "[integration][dialects]") {
  // As a tool that answers by hand: Kvmi1Tool always answers well.
  const std::uint32_t size = GENERATE(0U, 4U, 23U, 24U, 104U, 4096U, 4097U, 0xffffffffU);
  INFO("size " << size);
  ToolScene scene({.tools = {}});
  const std::string path = scene.folder.file("odd");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(path.size() < sizeof address.sun_path);
  std::memcpy(address.sun_path, path.data(), path.size());
  const client::UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(listener.get(), 4) == 0);
  scene.config["dial"].push_back({{"name", "odd"}, {"unix", path}, {"dialect", "v7"}, {"redial_ms", 10000}});
  scene.reload();
  const client::UniqueFd tool(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  REQUIRE(tool);
  ByteBuffer answer(std::min<std::size_t>(size, 8192));
  answer.resize(std::max<std::size_t>(answer.size(), sizeof size));
  std::memcpy(answer.data(), &size, sizeof size);
  REQUIRE(::send(tool.get(), answer.data(), answer.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(answer.size()));
  if (size >= 24 && size <= 4096) {
    scene.wait_agents(1);
    return;
  }
  const Json failure = scene.wait_failure("answer");
  CHECK(failure.at("side") == "dial");
  CHECK(has(scene.doctor(), "no answer of a tool"));
}

TEST_CASE("a guest that is bound to other peers is refused in every dialect", "[integration][dialects]") {
  const SpokenBy dialect =
      GENERATE(SpokenBy{}, SpokenBy{DialectId::V6}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12});
  INFO(spoken_name(dialect));
  const auto bound_to = [](unsigned uid) {
    Json peers = Json::object();
    peers["uid"] = Json::array({uid});
    return with_guest_rule("bound_to", peers);
  };
  Scene scene(bound_to(::getuid() + 1));
  Guest guest(scene.folder, {.arguments = speaks(dialect)});
  const Json failure = scene.wait_failure("peer not allowed");
  CHECK(failure.at("side") == "hypervisor");
  CHECK(has(failure.at("peer"), "uid=" + std::to_string(::getuid())));
  CHECK(has(scene.doctor(), "bound_to"));
  CHECK_FALSE(is_online(scene.daemon.agent_socket(), guest.uuid()));
  // Another guest of the same peer is not meant.
  Guest other(scene.folder, {.name = "db1", .uuid = uuid_of(2), .arguments = speaks(dialect)});
  other.wait_online();

  (void)scene.folder.write("kvmid.json", Scene::with_rule(bound_to(::getuid())).dump(2));
  scene.daemon.process().signal(SIGHUP);
  guest.wait_online();
}

TEST_CASE("a second hypervisor of a guest that is connected is refused in every dialect", "[integration][dialects]") {
  Scene scene(Json::object());
  const SpokenBy first = GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12});
  INFO("connected: " << spoken_name(first));
  Guest guest(scene.folder, {.arguments = speaks(first)});
  guest.wait_online();
  AgentClient agent = attach(scene.daemon.agent_socket(), guest.uuid());
  for (const SpokenBy second :
       {SpokenBy{}, SpokenBy{DialectId::V6}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12}}) {
    INFO("second: " << spoken_name(second));
    const auto answer = answer_to(scene, hello_of(second, guest.uuid()));
    // Only KVMI 2 has words for it.
    CHECK(answer.empty() == second.has_value());
  }
  CHECK(scene.wait_failure("guest").at("side") == "hypervisor");
  CHECK(has(scene.doctor(), "uuid is connected already"));
  CHECK(read_mailbox(agent, 0, offsetof(Mailbox, magic)) == emulated::kMailboxMagic);
}

TEST_CASE("a guest without a uuid is refused in every dialect", "[integration][dialects]") {
  Scene scene(Json::object());
  for (const SpokenBy dialect :
       {SpokenBy{}, SpokenBy{DialectId::V6}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12}}) {
    INFO(spoken_name(dialect));
    const auto answer = answer_to(scene, hello_of(dialect, Uuid{}));
    CHECK(answer.empty() == dialect.has_value());
  }
  CHECK(scene.wait_failure("handshake").at("side") == "hypervisor");
  CHECK(has(scene.doctor(), "with a uuid that is not zero"));
}

}  // namespace kvmid::test
