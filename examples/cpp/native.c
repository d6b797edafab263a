/* SPDX-License-Identifier: Apache-2.0
 * Continues token ids with a decoder that `bcq export` wrote, greedily and without onnxruntime:
 * native FOLDER COUNT ID... [--threads N] [--memory] */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bcq_decoder.h"

/* What the process has had in memory at most, as Linux tells it. */
static void print_peak(void) {
  char line[256];
  FILE* status = fopen("/proc/self/status", "r");
  while (status != NULL && fgets(line, sizeof line, status) != NULL) {
    if (strncmp(line, "VmHWM:", 6) == 0) fprintf(stderr, "peak resident %s", line + 6);
  }
  if (status != NULL) fclose(status);
}

int main(int words, char** word) {
  int shows_memory = 0, threads = 1, ids = 0;
  int64_t* id = calloc((size_t)words, sizeof *id);
  for (int i = 3; id != NULL && i < words; ++i) {
    if (strcmp(word[i], "--memory") == 0) shows_memory = 1;
    else if (strcmp(word[i], "--threads") == 0) threads = ++i < words ? atoi(word[i]) : -1;
    else id[ids++] = strtoll(word[i], NULL, 10);
  }
  if (ids == 0) return fprintf(stderr, "use: native FOLDER COUNT ID... [--threads N] [--memory]\n"), 1;
  const int64_t count = strtoll(word[2], NULL, 10);
  char why[512] = "";
  const BcqDecoderOptions options = {.struct_bytes = sizeof options, .room = ids + count, .threads = threads};
  BcqDecoder* decoder = bcq_decoder_open(word[1], &options, why, sizeof why);
  if (decoder == NULL) return fprintf(stderr, "%s\n", why), 1;
  const int64_t vocabulary = bcq_decoder_vocabulary(decoder);
  const float* logits = NULL;
  for (int64_t made = 0, next = 0; made < count; ++made) {
    const char* wrong = bcq_decoder_step(decoder, made == 0 ? id : &next, made == 0 ? ids : 1, &logits);
    if (wrong != NULL) return fprintf(stderr, "%s\n", wrong), 1;
    next = 0;
    for (int64_t i = 1; i < vocabulary; ++i) next = logits[i] > logits[next] ? i : next;
    printf("%" PRId64 " ", next);
    fflush(stdout);
  }
  puts("");
  if (shows_memory) {
    BcqDecoderBytes bytes = {.struct_bytes = sizeof bytes};
    bcq_decoder_bytes(decoder, &bytes);
    fprintf(stderr, "arena %zu, cache %zu, scratch %zu, mapped %zu bytes\n", bytes.arena, bytes.cache, bytes.scratch,
            bytes.mapped);
    print_peak();
  }
  bcq_decoder_close(decoder);
  free(id);
  return 0;
}
