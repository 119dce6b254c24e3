// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/shm/fault_guard.h"

#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>

namespace kvmid::shm {

namespace {

struct Guard {
  sigjmp_buf back;
  std::uintptr_t begin;
  std::uintptr_t end;
};

// initial-exec: a signal handler may not run into the allocation of a thread-local on its first use.
[[gnu::tls_model("initial-exec")]] constinit thread_local Guard* volatile current_guard = nullptr;

struct sigaction before_us;  // written once, before the handler is installed

void on_sigbus(int signal, siginfo_t* info, void* context) {
  Guard* const guard = current_guard;
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  const bool fault = info->si_code > 0;  // raised by the kernel, not by kill()
  if (fault && guard != nullptr && address >= guard->begin && address < guard->end) {
    // The mask of what was interrupted: else what is blocked in here would stay so, and the next fault end the process.
    ::pthread_sigmask(SIG_SETMASK, &static_cast<ucontext_t*>(context)->uc_sigmask, nullptr);
    siglongjmp(guard->back, 1);
  }
  if ((before_us.sa_flags & SA_SIGINFO) != 0) return before_us.sa_sigaction(signal, info, context);
  if (before_us.sa_handler == SIG_IGN && !fault) return;
  if (before_us.sa_handler != SIG_DFL && before_us.sa_handler != SIG_IGN) return before_us.sa_handler(signal);
  // As if we had never been here: the instruction faults again, or the signal is sent again, and ends the process.
  struct sigaction standard = {};
  standard.sa_handler = SIG_DFL;
  ::sigaction(signal, &standard, nullptr);
  if (!fault) ::raise(signal);  // blocked until the handler returns
}

int install() {
  if (::sigaction(SIGBUS, nullptr, &before_us) != 0) return errno;
  struct sigaction ours = {};
  ours.sa_sigaction = on_sigbus;
  // sigsetjmp() does not save the signal mask, which would be a system call for each copy: the handler restores it.
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&ours.sa_mask);
  return ::sigaction(SIGBUS, &ours, nullptr) == 0 ? 0 : errno;
}

}  // namespace

Result<void, Error> install_fault_guard() {
  static const int failed = install();
  if (failed != 0) return system_error("installing the SIGBUS handler", failed);
  return {};
}

/// Nothing in here has a destructor that a jump would skip. Not inlined: locals of a caller would be in doubt after it.
[[gnu::noinline]] bool guarded_copy(std::span<std::byte> to, const std::byte* from,
                                    std::span<const std::byte> mapping) {
  Guard guard;
  guard.begin = reinterpret_cast<std::uintptr_t>(mapping.data());
  guard.end = guard.begin + mapping.size();
  if (sigsetjmp(guard.back, 0) != 0) {
    current_guard = nullptr;
    return false;
  }
  current_guard = &guard;
  // Orders the copy and the record in this thread alone: the handler runs in it.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  std::memcpy(to.data(), from, to.size());
  std::atomic_signal_fence(std::memory_order_seq_cst);
  current_guard = nullptr;
  return true;
}

}  // namespace kvmid::shm
