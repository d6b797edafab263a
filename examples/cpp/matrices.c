/* SPDX-License-Identifier: Apache-2.0
 * Lists the packed matrices of an exported model, mapped from its files: matrices FOLDER */
#include <inttypes.h>
#include <stdio.h>

#include "bcq.h"

int main(int count, char** arguments) {
  char why[256] = "use: matrices FOLDER";
  BcqModel* model = count == 2 ? bcq_model_open(arguments[1], why, sizeof why) : NULL;
  if (model == NULL) return fprintf(stderr, "%s\n", why), 1;
  for (size_t i = 0; i < bcq_model_count(model); ++i) {
    const BcqMatrix* w = bcq_model_matrix(model, i);
    printf("%s: %" PRId64 " x %" PRId64 ", %d bits, groups of %" PRId64 "%s\n", bcq_model_name(model, i), w->N, w->K,
           w->bits, w->group_size, w->offset == NULL ? "" : ", offsets");
  }
  bcq_model_close(model);
  return 0;
}
