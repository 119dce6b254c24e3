// SPDX-License-Identifier: GPL-2.0-or-later
//
// The structs that others defined, against layouts read from the C compiler's debug information (tests/vectors).

#include <catch2/catch.hpp>
#include <cstddef>
#include <fstream>
#include <nlohmann/json.hpp>

#include "protocol/kvmi.h"

namespace {

nlohmann::json layouts() {
  std::ifstream file(KVMID_VECTORS_DIR "/layouts.json");
  REQUIRE(file);
  return nlohmann::json::parse(file);
}

struct Field {
  const char* name;
  std::size_t offset;
  std::size_t size;
};
#define FIELD(type, name) Field{#name, offsetof(type, name), sizeof(type::name)}

/// Every field that the layout has is ours, at the same place, and the other way round.
void require_layout(const nlohmann::json& layout, std::size_t size, const std::vector<Field>& ours) {
  REQUIRE(layout.at("size") == size);
  REQUIRE(layout.at("fields").size() == ours.size());
  for (const auto& field : ours) {
    CAPTURE(field.name);
    bool found = false;
    for (const auto& theirs : layout.at("fields")) {
      if (theirs.at("name") != field.name) continue;
      found = true;
      REQUIRE(theirs.at("offset") == field.offset);
      REQUIRE(theirs.at("size") == field.size);
    }
    REQUIRE(found);
  }
}

}  // namespace

TEST_CASE("the registers have the kernel's C layout", "[layouts]") {
  const auto all = layouts();
  const auto& kvm = all.at("kvm_uapi");
#define R(name) FIELD(kvmi_x86_regs, name)
  require_layout(kvm.at("kvm_regs"), sizeof(kvmi_x86_regs),
                 {R(rax), R(rbx), R(rcx), R(rdx), R(rsi), R(rdi), R(rsp), R(rbp), R(r8), R(r9), R(r10), R(r11), R(r12),
                  R(r13), R(r14), R(r15), R(rip), R(rflags)});
#define S(name) FIELD(kvmi_x86_segment, name)
  require_layout(kvm.at("kvm_segment"), sizeof(kvmi_x86_segment),
                 {S(base), S(limit), S(selector), S(type), S(present), S(dpl), S(db), S(s), S(l), S(g), S(avl),
                  S(unusable), S(padding)});
  require_layout(kvm.at("kvm_dtable"), sizeof(kvmi_x86_dtable),
                 {FIELD(kvmi_x86_dtable, base), FIELD(kvmi_x86_dtable, limit), FIELD(kvmi_x86_dtable, padding)});
#define Q(name) FIELD(kvmi_x86_sregs, name)
  require_layout(kvm.at("kvm_sregs"), sizeof(kvmi_x86_sregs),
                 {Q(cs), Q(ds), Q(es), Q(fs), Q(gs), Q(ss), Q(tr), Q(ldt), Q(gdt), Q(idt), Q(cr0), Q(cr2), Q(cr3),
                  Q(cr4), Q(cr8), Q(efer), Q(apic_base), Q(interrupt_bitmap)});
}

TEST_CASE("the handshake is QEMU's", "[layouts]") {
  const auto all = layouts();
  const auto& qemu = all.at("handshake");
#define H(name) FIELD(kvmi_handshake, name)
  const std::vector<Field> v7 = {H(struct_size), H(uuid), H(padding), H(start_time), H(name)};
  require_layout(qemu.at("qemu_v7").at("qemu_vmi_to_introspector"), offsetof(kvmi_handshake, max_gpa), v7);
  auto v12 = v7;
  v12.push_back(H(max_gpa));
  require_layout(qemu.at("qemu_v12").at("qemu_vmi_to_introspector"), sizeof(kvmi_handshake), v12);
  for (const char* branch : {"qemu_v7", "qemu_v7_2_11_93", "qemu_v12"}) {
    require_layout(qemu.at(branch).at("qemu_vmi_from_introspector"), sizeof(kvmi_handshake_answer),
                   {FIELD(kvmi_handshake_answer, struct_size), FIELD(kvmi_handshake_answer, cookie_hash)});
  }
}

TEST_CASE("the error numbers that KVM's introspection has mean the same in KVMI 2", "[layouts]") {
  const auto errors = layouts().at("error_codes");
  REQUIRE(errors.at("KVM_EPERM") == KVMI_EPERM);
  REQUIRE(errors.at("KVM_ENOENT") == KVMI_ENOENT);
  REQUIRE(errors.at("KVM_E2BIG") == KVMI_E2BIG);
  REQUIRE(errors.at("KVM_EAGAIN") == KVMI_EAGAIN);
  REQUIRE(errors.at("KVM_ENOMEM") == KVMI_ENOMEM);
  REQUIRE(errors.at("KVM_EFAULT") == KVMI_EFAULT);
  REQUIRE(errors.at("KVM_EBUSY") == KVMI_EBUSY);
  REQUIRE(errors.at("KVM_EINVAL") == KVMI_EINVAL);
  REQUIRE(errors.at("KVM_EOPNOTSUPP") == KVMI_EOPNOTSUPP);
  REQUIRE(errors.at("KVM_ENOSYS") == KVMI_ENOSYS);
}
