// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// The codecs of each dialect; kvmi1_codec.h's codec() is what others use. Included by the .cpp files of this folder only.

#include "protocol/kvmi1_codec.h"

namespace kvmid::kvmi1 {

const Codec& codec_rfc2017();
const Codec& codec_v6();
const Codec& codec_v7();
const Codec& codec_v12();

}  // namespace kvmid::kvmi1
