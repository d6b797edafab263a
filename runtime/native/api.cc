// SPDX-License-Identifier: Apache-2.0
// The functions of bcq_decoder.h: no exception leaves them.
#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <system_error>

#include "capi/bcq_decoder.h"
#include "capi/told.h"
#include "native/decoder.h"

struct BcqDecoder {
  BcqDecoder(const char* path, const BcqDecoderOptions& options) : decoder(path, options) {}
  bcq::native::Decoder decoder;
  char told[512] = "";
};

extern "C" {

BcqDecoder* bcq_decoder_open(const char* path, const BcqDecoderOptions* options, char* why, size_t why_bytes) {
  try {
    if (path == nullptr) throw bcq::capi::FileError("path: got NULL");
    if (options == nullptr || options->struct_bytes != sizeof(BcqDecoderOptions)) {
      throw bcq::capi::FileError("options, struct_bytes: expected sizeof(BcqDecoderOptions)");
    }
    return new BcqDecoder(path, *options);
  } catch (const std::bad_alloc&) {
    bcq::capi::tell("out of memory", why, why_bytes);
  } catch (const std::system_error& error) {
    bcq::capi::tell((std::string("threads: the system starts no more: ") + error.what()).c_str(), why, why_bytes);
  } catch (const std::exception& error) {
    bcq::capi::tell(error.what(), why, why_bytes);
  }
  return nullptr;
}

const char* bcq_decoder_step(BcqDecoder* decoder, const int64_t* ids, int64_t count, const float** logits) {
  if (decoder == nullptr || ids == nullptr || logits == nullptr) return "decoder, ids, logits: expected them, got NULL";
  try {
    *logits = decoder->decoder.step(ids, count);
    return nullptr;
  } catch (const std::exception& error) {
    bcq::capi::tell(error.what(), decoder->told, sizeof decoder->told);
  }
  return decoder->told;
}

void bcq_decoder_keep(BcqDecoder* decoder, int64_t tokens) {
  if (decoder != nullptr) decoder->decoder.keep(tokens);
}

int64_t bcq_decoder_seen(const BcqDecoder* decoder) { return decoder == nullptr ? 0 : decoder->decoder.seen(); }

int64_t bcq_decoder_vocabulary(const BcqDecoder* decoder) {
  return decoder == nullptr ? 0 : decoder->decoder.vocabulary();
}

void bcq_decoder_bytes(const BcqDecoder* decoder, BcqDecoderBytes* bytes) {
  if (bytes == nullptr) return;
  const size_t size = std::min(bytes->struct_bytes, sizeof *bytes);
  BcqDecoderBytes found = decoder == nullptr ? BcqDecoderBytes{} : decoder->decoder.bytes();
  found.struct_bytes = bytes->struct_bytes;
  std::memcpy(bytes, &found, size);
}

void bcq_decoder_close(BcqDecoder* decoder) { delete decoder; }

}  // extern "C"
