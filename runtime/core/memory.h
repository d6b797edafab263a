// SPDX-License-Identifier: Apache-2.0
// Memory for private copies of weights, in huge pages where the system has them; and letting go of what was copied.
#pragma once

#include <cstddef>
#include <memory>

namespace bcq {

// Bytes that stay in place as long as somebody holds them; 64-byte aligned; null when the system has no more.
// Blocks lie side by side in large anonymous mappings, so that many small matrices share huge pages instead of wasting
// most of one each. Pages go back to the system with their block, a mapping with its last block. Any thread may call.
std::shared_ptr<void> allocate_block(size_t bytes);

// Takes the whole pages inside [begin, begin + bytes) out of this process's resident memory where they are unchanged
// pages of a file: the next access reads them again, from the page cache. Written and anonymous pages stay, and where
// the system does not tell one from the other nothing happens.
void release_file_pages(const void* begin, size_t bytes);

}  // namespace bcq
