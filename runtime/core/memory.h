// SPDX-License-Identifier: Apache-2.0
// Memory for private copies of weights, in huge pages where the system has them; and letting go of what was copied.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace bcq {

// Bytes that stay in place as long as somebody holds them; 64-byte aligned; null when the system gives no more addresses;
// under the usual overcommit it gives them whatever memory there is, and writing may then end the process.
// Blocks lie side by side in large anonymous mappings, so that many small matrices share huge pages instead of wasting
// most of one each. Pages go back to the system with their block, a mapping with its last block. Any thread may call.
std::shared_ptr<void> allocate_block(size_t bytes);

// Bytes of all blocks that somebody holds.
size_t blocks_bytes();

// Bytes that this process may still take: the smallest of MemAvailable and what its control group and each one around
// it leave, versions 1 and 2. What files have in memory counts as taken in a control group, so its figure is careful.
// SIZE_MAX where the system says nothing. `root` stands in front of /proc and /sys.
size_t available_bytes(const std::string& root = "");

// Whether `bytes` more, with the `held` ones, stay within half of what there was before anything was held.
bool fits(size_t bytes, size_t held, size_t available);

// Takes the whole pages inside [begin, begin + bytes) out of this process's resident memory where they are unchanged
// pages of a file: the next access reads them again, from the page cache. Written and anonymous pages stay, and where
// the system does not tell one from the other nothing happens.
void release_file_pages(const void* begin, size_t bytes);

}  // namespace bcq
