// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_dialects/dialect_play.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <memory>

#include "tests/support/kvmi1_tool.h"

namespace kvmid::test {
namespace {

using client::ReceivedEvent;
using client::ReceivedNotice;
using kvmi1::DialectId;

constexpr int kExitCrashAction = 3;  // kvmi-emu --help: an agent answered CRASH
constexpr Millis kLook{5};
constexpr std::uint32_t kLstar = 0xc0000082;

constexpr ActionSet kNothing{};
constexpr ActionSet kNoRetry = actions({Action::Allow, Action::Skip, Action::Crash});
constexpr ActionSet kNoSkip = actions({Action::Allow, Action::Retry, Action::Crash});

/// What docs/decisions/0008 says that each kind of event takes.
ActionSet taken(EventKind kind, DialectId dialect) {
  if (dialect == DialectId::Rfc2017) {
    switch (kind) {
      case EventKind::Cr:
      case EventKind::Msr: return kNoRetry;
      case EventKind::PageFault: return kNoSkip;
      case EventKind::Breakpoint:
      case EventKind::Xsetbv:
      case EventKind::Hypercall: return kGoOnOrCrash;
      default: return kNothing;
    }
  }
  const bool translates = dialect == DialectId::V7 || dialect == DialectId::V12;
  switch (kind) {
    case EventKind::Cr:
    case EventKind::Msr: return kNoRetry;
    case EventKind::Breakpoint: return kAllActions;
    case EventKind::PageFault:
    case EventKind::Descriptor: return translates ? kAllActions : kNoSkip;
    case EventKind::Xsetbv:
    case EventKind::Hypercall:
    case EventKind::Pause: return kGoOnOrCrash;
    case EventKind::Singlestep: return translates ? kGoOnOrCrash : kNothing;
    case EventKind::Cpuid: return dialect == DialectId::V7 ? kGoOnOrCrash : kNothing;
    default: return kNothing;
  }
}

/// The rights that the row's watch() leaves.
kvmi1::PageAccessEntry entry_of(const EventRow& row) {
  kvmi1::PageAccessEntry entry;
  entry.gpa = (row.name.back() == 'x' ? emulated::kExecPage : emulated::kProtectedPage).value;
  entry.access = row.name.back() == 'r'   ? 0
                 : row.name.back() == 'w' ? KVMI_PAGE_ACCESS_R
                                          : KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W;
  return entry;
}

/// The tool asks for what the row's watch() asks for.
void watch(Kvmi1Tool& tool, const EventRow& row) {
  const auto need = [&](const kvmi1::Command& command) {
    const auto reply = tool.call(command);
    INFO(kvmi1::name_of(kvmi1::kind_of_command(command)));
    REQUIRE(reply.reply.error == 0);
  };
  const VcpuId vcpu{0};
  if (tool.codec().dialect() == DialectId::Rfc2017) {
    need(kvmi1::SetEvents{vcpu, tool.codec().number_of(row.kind).value()});
    if (row.kind == EventKind::Cr) need(kvmi1::ControlGuestCr{true, static_cast<std::uint32_t>(row.name.back() - '0')});
    if (row.kind == EventKind::Msr) need(kvmi1::ControlGuestMsr{true, kLstar});
    if (row.kind == EventKind::PageFault) {
      const auto entry = entry_of(row);
      need(kvmi1::SetVcpuPageAccess{vcpu, Gpa{entry.gpa}, entry.access});
    }
    return;
  }
  if (row.kind == EventKind::Singlestep && tool.codec().dialect() == DialectId::V12)
    return need(kvmi1::ControlSinglestep{vcpu, true});
  need(kvmi1::ControlEvents{vcpu, tool.codec().number_of(row.kind).value(), true});
  switch (row.kind) {
    case EventKind::Cr: return need(kvmi1::ControlCr{vcpu, true, static_cast<std::uint32_t>(row.name.back() - '0')});
    case EventKind::Msr: return need(kvmi1::ControlMsr{vcpu, true, kLstar});
    case EventKind::Singlestep: return need(kvmi1::ControlSinglestep{vcpu, true});
    case EventKind::PageFault: {
      const auto entry = entry_of(row);
      return need(kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(&entry, 1)});
    }
    default: return;
  }
}

class Play {
 public:
  Play(const EventRow& row, Action action, bool value, ToolDaemon& daemon)
      : row_(row),
        action_(action),
        value_(value),
        tool_(daemon.tool_path(), daemon.dialect()),
        stage_(daemon.events(), StageOptions{.outcomes = true, .arguments = row.arguments}) {
    stage_.agent.on_notice([this](const ReceivedNotice& notice) { notices_.push_back(notice); });
    tool_.accept();
  }

  void run() {
    if (row_.prepare) row_.prepare(stage_);
    row_.watch(stage_.agent);
    // Steps come at once: the tool asks for them while the vCPU stands still in one of the agent's.
    const bool steps = row_.kind == EventKind::Singlestep;
    if (!steps) watch(tool_, row_);
    if (row_.start) row_.start(stage_);
    if (steps) {
      const ReceivedEvent first = stage_.provoke(row_.mode);
      watch(tool_, row_);
      check(stage_.agent.reply(first, Action::Allow));
      take(stage_.next_event());
    } else {
      take(stage_.provoke(row_.mode));
    }
    while (row_.is_it && !row_.is_it(*event_)) {
      let_row_lead();
      take(stage_.next_event());
    }
    CHECK(event_->event.actions == row_.takes);
    row_.told(stage_, *event_);
    told_alike();

    check(stage_.agent.reply(event_->seq, client::make_reply(event_->event, Action::Allow)));
    answer(action_, value_);
    // The old value as the new one is how these dialects say SKIP.
    const bool keeps = value_ && std::get<NewValue>(row_.value(*event_)).value == register_values().value().first;
    CHECK(outcome() == (keeps ? Action::Skip : action_));
    look();
  }

 private:
  /// The event as the agent got it; the tool is told of the same.
  void take(ReceivedEvent event) {
    event_ = std::move(event);
    told_ = tool_.next_event();
  }

  void told_alike() {
    CHECK(told_->event.kind() == row_.kind);
    CHECK(told_->event.vcpu == VcpuId{0});
    CHECK(told_->event.mode == 8);
    CHECK(told_->event.regs.rip == event_->event.regs.rip);
    CHECK(told_->event.sregs.cr3 == event_->event.sregs.cr3);
    CHECK(told_->event.msrs.lstar == event_->event.msrs.lstar);
    if (!is_2017()) CHECK(told_->event.msrs.pat == event_->event.msrs.pat);  // it has fewer MSRs
    if (row_.kind == EventKind::PageFault) {
      const auto& tools = std::get<PageFaultData>(told_->event.data);
      const auto& agents = std::get<PageFaultData>(event_->event.data);
      CHECK(tools.gpa == agents.gpa);
      CHECK(tools.gva == agents.gva);
      CHECK(tools.access == agents.access);
    }
  }

  [[nodiscard]] bool is_2017() const { return tool_.codec().dialect() == DialectId::Rfc2017; }

  void let_row_lead() {
    let_lead(row_, stage_.agent, *event_);
    tool_.go_on(*told_);
  }

  /// In the dialect's own way: SKIP of a register is its old value.
  void answer(Action action, bool value) {
    switch (action) {
      case Action::Allow:
        if (value) {
          const auto given = std::get<NewValue>(row_.value(*event_)).value;
          return tool_.reply_value(*told_, is_2017() ? kvmi1::kAllow2017 : kvmi1::kContinue, given);
        }
        return tool_.go_on(*told_);
      case Action::Skip:
        return tool_.reply_value(*told_, is_2017() ? 0 : kvmi1::kContinue, register_values().value().first);
      case Action::Retry:
        return tool_.reply(*told_, is_2017() ? kvmi1::kAllow2017 | kvmi1::kNoEmulation2017 : kvmi1::kRetry);
      case Action::Crash: return tool_.reply(*told_, kvmi1::kCrash);
    }
  }

  /// Old and new, of a CR or MSR event.
  [[nodiscard]] std::optional<std::pair<std::uint64_t, std::uint64_t>> register_values() const {
    if (const auto* cr = std::get_if<CrData>(&told_->event.data)) return std::pair(cr->old_value, cr->new_value);
    if (const auto* msr = std::get_if<MsrData>(&told_->event.data)) return std::pair(msr->old_value, msr->new_value);
    return std::nullopt;
  }

  Action outcome() {
    std::optional<Action> merged;
    const bool came = wait_until([&] {
      static_cast<void>(check(stage_.agent.call(GetVersion{})));  // what kvmid had to say until now has been read
      for (const auto& notice : notices_)
        if (notice.kind == NoticeKind::Outcome && notice.event_seq == event_->seq) merged = notice.action;
      return merged.has_value();
    });
    if (!came) throw TestError("kvmid does not say how the event ended");
    return *merged;
  }

  void look() {
    switch (action_) {
      case Action::Allow:
        finish();
        return value_ ? row_.replaced(stage_, *event_) : row_.allowed(stage_, *event_);
      case Action::Skip:
        finish();
        return row_.skipped(stage_, *event_);
      case Action::Retry:
        take(stage_.next_event());
        CHECK(event_->event.kind() == row_.kind);
        row_.undone(stage_, *event_);
        check(stage_.agent.reply(event_->seq, client::make_reply(event_->event, Action::Allow)));
        answer(Action::Allow, false);
        finish();
        return row_.allowed(stage_, *event_);
      case Action::Crash:
        CHECK(stage_.guest.process().wait_exit() == Exit{kExitCrashAction, 0});
        row_.undone(stage_, *event_);
        CHECK(tool_.wait_closed());
    }
  }

  /// Both allow what still comes until the guest got through.
  void finish() {
    if (!row_.ends) return;
    const bool finished = wait_until([&] {
      if (const auto event = check(stage_.agent.wait_event(kLook))) check(stage_.agent.reply(*event, Action::Allow));
      if (const auto message = tool_.try_next(kLook)) {
        if (const auto* event = std::get_if<kvmi1::EventMessage>(&message->message))
          tool_.go_on(Kvmi1Event{message->bytes, message->frame.seq, event->view, event->event});
      }
      return stage_.done(row_.mode) > stage_.done_before(row_.mode);
    });
    if (!finished) throw TestError("the guest does not get through\n" + stage_.guest.process().tail());
  }

  const EventRow& row_;
  const Action action_;
  const bool value_;
  std::vector<ReceivedNotice> notices_;
  Kvmi1Tool tool_;
  Stage stage_;
  std::optional<ReceivedEvent> event_;
  std::optional<Kvmi1Event> told_;
};

}  // namespace

std::string name_of_dialect(Speaks dialect) { return dialect ? std::string(kvmi1::name_of(*dialect)) : "kvmi2"; }

EventRow row_of(const EventRow& row, Speaks hypervisor) {
  EventRow changed = row;
  if (!hypervisor) return changed;
  changed.takes.bits &= taken(row.kind, *hypervisor).bits;
  changed.arguments.insert(changed.arguments.end(), {"--dialect", name_of_dialect(hypervisor)});
  if (row.kind == EventKind::Xsetbv) {
    changed.has_value = false;
    // v6 and v7 say that it happened, rfc2017 what is written.
    if (*hypervisor != DialectId::V12) {
      changed.told = [](Stage&, const ReceivedEvent&) {};
      changed.allowed = [](Stage& stage, const ReceivedEvent&) { CHECK(stage.now().xcr0 != stage.before().xcr0); };
    }
  }
  if (changed.takes.bits == 0) changed.has_value = false;
  return changed;
}

ActionSet answers_of(const EventRow& row, DialectId tool) {
  ActionSet can;
  if (tool == DialectId::Rfc2017) {
    const bool registers = row.kind == EventKind::Cr || row.kind == EventKind::Msr;
    if (taken(row.kind, tool).bits != 0) can = actions({Action::Allow});
    if (registers) can = actions({Action::Allow, Action::Skip});
    if (row.kind == EventKind::PageFault) can = actions({Action::Allow, Action::Retry});
    can.bits &= row.takes.bits;
    return can;
  }
  switch (row.kind) {
    case EventKind::Cr:
    case EventKind::Msr: can = kNoRetry; break;
    case EventKind::Breakpoint:
    case EventKind::PageFault:
    case EventKind::Descriptor: can = kNoSkip; break;
    case EventKind::Xsetbv:
    case EventKind::Hypercall:
    case EventKind::Pause: can = kGoOnOrCrash; break;
    case EventKind::Singlestep: can = tool == DialectId::V7 || tool == DialectId::V12 ? kGoOnOrCrash : kNothing; break;
    case EventKind::Cpuid: can = tool == DialectId::V7 ? kGoOnOrCrash : kNothing; break;
    default: break;
  }
  can.bits &= row.takes.bits;
  return can;
}

bool gives_value(const EventRow& row, DialectId tool) {
  return row.has_value && answers_of(row, tool).bits != 0 && (row.kind == EventKind::Cr || row.kind == EventKind::Msr);
}

bool crashes(Speaks hypervisor) { return hypervisor != DialectId::Rfc2017; }

namespace {
std::string guests_of(Speaks hypervisor) {
  return hypervisor == DialectId::Rfc2017 ? R"("guests": [{"guests": ["*"], "dialect": "rfc2017"}])" : "";
}
}  // namespace

EventDaemon daemon_for(Speaks hypervisor) { return EventDaemon("", "", guests_of(hypervisor)); }

ToolDaemon::ToolDaemon(DialectId dialect, Speaks hypervisor) : dialect_(dialect), path_(folder_.file("tool.sock")) {
  daemon_.emplace("",
                  R"("dial": [{"name": "tool", "unix": ")" + path_ + R"(", "dialect": ")" +
                          name_of_dialect(dialect) + R"(", "guests": ["*"], "redial_ms": 100}])",
                  guests_of(hypervisor));
}

void play_with_tool(const EventRow& row, Action action, bool value, ToolDaemon& daemon) {
  Play(row, action, value, daemon).run();
}

}  // namespace kvmid::test
