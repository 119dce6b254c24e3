// SPDX-License-Identifier: GPL-2.0-or-later
//
// translate() against the kernel's own page walk: random tables, that share pages, point at each other, at themselves
// and outside memory, and KVM_TRANSLATE on a vCPU that never runs. Skipped, by name, where /dev/kvm refuses.
//
// Where KVM is no oracle, tables are made so that it does not matter: it looks at no canonical form, knows no more than
// 36 bits of a 4 MiB page (the manual has 40), takes bit 8 of upper tables for reserved on some processors, and keeps
// the four PDPTEs of PAE paging in registers, which are loaded with valid ones only.

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>

#include "tests/unit/arch_x86/page_tables.h"

namespace kvmid::x86::test {
namespace {

constexpr std::uint64_t kRam = 16ull << 20;
constexpr std::uint64_t kPool = 0x100000;  ///< where tables are
constexpr std::uint64_t kPoolPages = 24;
constexpr int kAddresses = 6000;  ///< per set of tables
constexpr int kTables = 3;        ///< sets per paging mode, with and without NXE

/// struct kvm_cpuid2: in C++ the kernel's own has another size, and so have the numbers made of it.
struct CpuidHead {
  std::uint32_t nent = 256;
  std::uint32_t padding = 0;
};
struct CpuidTable {
  CpuidHead head;
  kvm_cpuid_entry2 entries[256]{};
};
static_assert(offsetof(CpuidTable, entries) == 8);
constexpr unsigned long kGetSupportedCpuid = _IOWR(KVMIO, 0x05, CpuidHead);
constexpr unsigned long kSetCpuid2 = _IOW(KVMIO, 0x90, CpuidHead);

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  void reset(int fd) { fd_ = fd; }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

/// A vCPU with 16 MiB of memory that only translates.
class KvmVcpu {
 public:
  /// What was refused; empty: it is there.
  std::string open() {
    const auto failed = [](const char* what) { return std::string(what) + ": " + std::strerror(errno); };
    kvm_.reset(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (kvm_.get() < 0) return failed("/dev/kvm");
    if (::ioctl(kvm_.get(), KVM_GET_API_VERSION, 0) != KVM_API_VERSION) return "another KVM API";
    vm_.reset(::ioctl(kvm_.get(), KVM_CREATE_VM, 0));
    if (vm_.get() < 0) return failed("KVM_CREATE_VM");
    void* ram = ::mmap(nullptr, kRam, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ram == MAP_FAILED) return failed("mmap");
    ram_ = static_cast<std::byte*>(ram);
    kvm_userspace_memory_region region{};
    region.memory_size = kRam;
    region.userspace_addr = reinterpret_cast<std::uint64_t>(ram_);
    if (::ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) return failed("KVM_SET_USER_MEMORY_REGION");
    vcpu_.reset(::ioctl(vm_.get(), KVM_CREATE_VCPU, 0));
    if (vcpu_.get() < 0) return failed("KVM_CREATE_VCPU");
    const auto cpuid = std::make_unique<CpuidTable>();
    if (::ioctl(kvm_.get(), kGetSupportedCpuid, cpuid.get()) != 0) return failed("KVM_GET_SUPPORTED_CPUID");
    for (std::uint32_t i = 0; i < cpuid->head.nent; ++i) {
      const auto& leaf = cpuid->entries[i];
      if (leaf.function == 0x80000008) cpu.physical_address_bits = static_cast<std::uint8_t>(leaf.eax & 0xff);
      if (leaf.function == 0x80000001) cpu.pages_1g = (leaf.edx >> 26 & 1) != 0;
      if (leaf.function == 7 && leaf.index == 0) la57 = (leaf.ecx >> 16 & 1) != 0;
    }
    if (::ioctl(vcpu_.get(), kSetCpuid2, cpuid.get()) != 0) return failed("KVM_SET_CPUID2");
    return {};
  }
  ~KvmVcpu() {
    if (ram_ != nullptr) ::munmap(ram_, kRam);
  }

  /// Takes the registers over, and the tables as they are now. False: this KVM does not have that paging mode; some
  /// take the registers and leave CR0.PG out.
  bool load(const PagingState& state) {
    kvm_sregs sregs{};
    REQUIRE(::ioctl(vcpu_.get(), KVM_GET_SREGS, &sregs) == 0);
    const bool wide = (state.efer & efer::kLma) != 0;
    sregs.cr0 = state.cr0;
    sregs.cr3 = state.cr3;
    sregs.cr4 = state.cr4;
    sregs.efer = state.efer;
    sregs.cs.l = wide ? 1 : 0;
    sregs.cs.db = wide ? 0 : 1;
    if (::ioctl(vcpu_.get(), KVM_SET_SREGS, &sregs) != 0) return false;
    kvm_sregs taken{};
    REQUIRE(::ioctl(vcpu_.get(), KVM_GET_SREGS, &taken) == 0);
    return taken.cr0 == state.cr0 && taken.cr3 == state.cr3 && taken.cr4 == state.cr4 && taken.efer == state.efer;
  }
  std::optional<std::uint64_t> translate(std::uint64_t gva) {
    kvm_translation query{};
    query.linear_address = gva;
    REQUIRE(::ioctl(vcpu_.get(), KVM_TRANSLATE, &query) == 0);
    if (query.valid == 0) return std::nullopt;
    return query.physical_address;
  }
  bool operator()(Gpa gpa, void* out, std::size_t bytes) const {
    if (gpa.value > kRam || bytes > kRam - gpa.value) return false;
    std::memcpy(out, ram_ + gpa.value, bytes);
    return true;
  }
  template <class T>
  void set(std::uint64_t gpa, T value) {
    std::memcpy(ram_ + gpa, &value, sizeof value);
  }

  CpuFeatures cpu;
  bool la57 = false;

 private:
  Fd kvm_, vm_, vcpu_;
  std::byte* ram_ = nullptr;
};

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t below(std::uint64_t end) { return engine_() % end; }
  bool percent(unsigned n) { return below(100) < n; }
  std::uint64_t bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

/// An entry of 8 bytes: mostly one that leads on, sometimes each thing that stops a walk.
std::uint64_t wide_entry(Random& random, const CpuFeatures& cpu) {
  const std::uint64_t address_mask = ((std::uint64_t{1} << cpu.physical_address_bits) - 1) & ~std::uint64_t{0xfff};
  std::uint64_t entry = random.bits() & (kW | kU | kA | kD | 0x18 | 0xe00);
  if (random.percent(92)) entry |= kP;
  if (random.percent(12)) entry |= kXd;
  if (random.percent(15)) entry |= random.bits() & (std::uint64_t{0x7ff} << 52);  // ignored; reserved in PAE
  if (random.percent(4))
    entry |= std::uint64_t{1} << (cpu.physical_address_bits + random.below(52u - cpu.physical_address_bits));
  if (random.percent(25)) {
    entry |= kPs;
    const std::uint64_t align = random.percent(45) ? 30 : random.percent(85) ? 21 : 12;
    return entry | (random.bits() & address_mask & ~((std::uint64_t{1} << align) - 1));
  }
  if (random.percent(4)) return entry | (random.bits() & address_mask);  // a table that is most likely outside memory
  return entry | (kPool + random.below(kPoolPages) * kPageSize);
}

std::uint32_t narrow_entry(Random& random) {
  auto entry = static_cast<std::uint32_t>(random.bits() & (kW | kU | kA | kD | 0x18 | 0xe00));
  if (random.percent(92)) entry |= kP;
  if (random.percent(35)) {
    // A page of 4 MiB, or a page number where the bit is the PAT's. 17 to 20: where KVM and the manual differ.
    entry |= static_cast<std::uint32_t>(kPs | (random.bits() & 0xffc00000));
    if (random.percent(50)) entry |= static_cast<std::uint32_t>(random.bits() & 0x1e000);
    if (random.percent(10)) entry |= 1u << 21;
    return entry;
  }
  if (random.percent(4)) return entry | static_cast<std::uint32_t>(random.bits() & 0xfffff000);
  return entry | static_cast<std::uint32_t>(kPool + random.below(kPoolPages) * kPageSize);
}

void fill_tables(KvmVcpu& vcpu, Random& random, PagingMode mode) {
  for (std::uint64_t page = 0; page < kPoolPages; ++page) {
    const std::uint64_t base = kPool + page * kPageSize;
    for (std::uint64_t at = 0; at < kPageSize; at += mode == PagingMode::Bits32 ? 4 : 8) {
      if (mode == PagingMode::Bits32)
        vcpu.set(base + at, narrow_entry(random));
      else
        vcpu.set(base + at, wide_entry(random, vcpu.cpu));
    }
  }
  if (mode != PagingMode::Pae) return;
  for (std::uint64_t i = 0; i < 4; ++i) {  // PDPTEs that a load of CR3 takes
    const std::uint64_t present = i == 2 && random.percent(50) ? 0 : kP;
    vcpu.set(kPool + 8 * i, present | (kPool + (1 + random.below(kPoolPages - 1)) * kPageSize));
  }
}

std::uint64_t address(Random& random, PagingMode mode) {
  if (mode == PagingMode::Bits32 || mode == PagingMode::Pae) return random.bits() & 0xffffffff;
  const unsigned bits = mode == PagingMode::Level5 ? 57 : 48;
  const auto low = static_cast<std::int64_t>(random.bits() << (64 - bits));
  return static_cast<std::uint64_t>(low >> (64 - bits));
}

PagingState state_of(PagingMode mode, bool nxe, bool pse) {
  PagingState state = strict(mode);
  state.cr0 |= cr0::kEt | cr0::kNe;
  state.cr4 &= ~(cr4::kSmap | cr4::kSmep);
  if (!pse) state.cr4 &= ~cr4::kPse;
  state.cr3 = kPool;
  state.efer = nxe ? state.efer | efer::kNxe : state.efer & ~efer::kNxe;
  return state;
}

void compare(PagingMode mode, const char* name) {
  KvmVcpu vcpu;
  if (const auto refused = vcpu.open(); !refused.empty()) {
    WARN("skipped: KVM_TRANSLATE as an oracle of " << name << ": " << refused);
    return;
  }
  if (mode == PagingMode::Level5 && !vcpu.la57) {
    WARN("skipped: KVM_TRANSLATE as an oracle of " << name << ": the processor has none");
    return;
  }
  const auto* reader = &vcpu;
  const auto read = [reader](Gpa gpa, void* out, std::size_t bytes) { return (*reader)(gpa, out, bytes); };
  std::uint64_t mapped = 0, large = 0, reserved = 0, outside = 0, absent = 0;
  for (int set = 0; set < 2 * kTables; ++set) {
    Random random(static_cast<std::uint64_t>(set) * 16 + static_cast<std::uint64_t>(mode));
    fill_tables(vcpu, random, mode);
    const auto state = state_of(mode, set % 2 == 0, set % 3 != 2);
    REQUIRE(paging_mode(state) == mode);
    if (!vcpu.load(state)) {
      REQUIRE(set == 0);  // once taken, always taken
      WARN("skipped: KVM_TRANSLATE as an oracle of " << name << ": this KVM does not take such registers");
      return;
    }
    for (int i = 0; i < kAddresses; ++i) {
      const std::uint64_t gva = address(random, mode);
      const auto ours = translate(state, Gva{gva}, read, vcpu.cpu);
      const auto theirs = vcpu.translate(gva);
      if (ours.has_value() != theirs.has_value() || (ours && ours->gpa.value != *theirs)) {
        FAIL("set " << set << " GVA 0x" << std::hex << gva << ": KVM 0x" << theirs.value_or(~0ull) << ", ours 0x"
                    << (ours ? ours->gpa.value : ~0ull) << " "
                    << (ours ? std::string_view("mapped") : text_of(ours.error().cause)));
      }
      if (ours) {
        ++mapped;
        if (ours->page_bytes != kPageSize) ++large;
      } else if (ours.error().cause == WalkFaultCause::ReservedBits) {
        ++reserved;
      } else if (ours.error().cause == WalkFaultCause::TableOutsideRam) {
        ++outside;
      } else if (ours.error().cause == WalkFaultCause::NotPresent) {
        ++absent;
      }
    }
  }
  CAPTURE(mapped, large, reserved, outside, absent);
  // The tables have been worth it.
  CHECK(mapped > 1000);
  CHECK(large > 300);
  CHECK(outside > 20);
  CHECK(absent > 300);
  CHECK(reserved > 20);
}

}  // namespace

TEST_CASE("32-bit walks are KVM's", "[walk][kvm]") { compare(PagingMode::Bits32, "32-bit paging"); }
TEST_CASE("PAE walks are KVM's", "[walk][kvm]") { compare(PagingMode::Pae, "PAE paging"); }
TEST_CASE("4-level walks are KVM's", "[walk][kvm]") { compare(PagingMode::Level4, "4-level paging"); }
TEST_CASE("5-level walks are KVM's", "[walk][kvm]") { compare(PagingMode::Level5, "5-level paging"); }

}  // namespace kvmid::x86::test
