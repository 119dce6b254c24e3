// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <string>

#include "daemon/core/policy.h"
#include "protocol/result.h"

namespace kvmid::io {

/// Who is at the other end of a connected unix or vsock socket, as the kernel says: it cannot be forged by the peer.
///
/// Shapes:   unix: pid, uid, gids (primary first); vsock: cid.
/// Errors:   a sentence with the failed call, for the log; then the connection must be refused.
/// Source:   unix(7), SO_PEERCRED, SO_PEERGROUPS; vsock(7).
Result<core::Peer, std::string> peer_of(int fd);

/// "pid=10 uid=0 gid=0" or "cid=3", for logs and texts.
std::string to_string(const core::Peer& peer);

}  // namespace kvmid::io
