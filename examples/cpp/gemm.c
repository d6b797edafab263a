/* SPDX-License-Identifier: Apache-2.0
 * A product with a bare packed matrix: static buffers, no allocation, no onnxruntime; checked against a plain sum. */
#include <math.h>
#include <stdio.h>

#include "bcq.h"

enum { M = 2, N = 64, K = 256, GROUP = 128, BITS = 3, TILES = N / 16, CHUNKS = K / 32, GROUPS = K / GROUP };

static uint32_t codes[TILES][CHUNKS][BITS][16]; /* bit j of a word: input 32 c + j; 1 is +1, 0 is -1 */
static uint16_t alpha_1[TILES][GROUPS][16], alpha_rest[TILES][GROUPS][BITS - 1][16];
static float a[M][K], y[M][N];
static _Alignas(64) unsigned char scratch[1 << 16];

/* float16 of the powers of two that stand for alphas here: plane i has 2^-i. */
static uint16_t half_power(int exponent) { return (uint16_t)((15 - exponent) << 10); }

static void fill(void) {
  uint32_t state = 1;
  for (size_t i = 0; i < sizeof codes / sizeof(uint32_t); ++i) {
    state = state * 1664525u + 1013904223u;
    (&codes[0][0][0][0])[i] = state ^ state >> 16;
  }
  for (int t = 0; t < TILES; ++t) {
    for (int g = 0; g < GROUPS; ++g) {
      for (int r = 0; r < 16; ++r) {
        alpha_1[t][g][r] = half_power(0);
        for (int i = 1; i < BITS; ++i) alpha_rest[t][g][i - 1][r] = half_power(i);
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int k = 0; k < K; ++k) a[m][k] = (float)((m + 3 * k) % 17 - 8) / 8;
  }
}

static double plain(int m, int n) {
  double sum = 0;
  for (int k = 0; k < K; ++k) {
    for (int i = 0; i < BITS; ++i) {
      const int positive = codes[n / 16][k / 32][i][n % 16] >> k % 32 & 1;
      sum += (positive ? 1 : -1) * ldexp(1, -i) * a[m][k];
    }
  }
  return sum;
}

int main(void) {
  fill();
  const BcqMatrix matrix = {.N = N, .K = K, .group_size = GROUP, .bits = BITS, .codes = &codes[0][0][0][0],
                            .alpha_1 = &alpha_1[0][0][0], .alpha_rest = &alpha_rest[0][0][0][0]};
  const BcqGemm gemm = {.struct_bytes = sizeof gemm, .matrix = &matrix, .M = M, .a = a, .y = y,
                        .scratch = scratch, .scratch_bytes = sizeof scratch};
  const char* wrong = bcq_gemm(&gemm);
  if (wrong != NULL) return fprintf(stderr, "%s\n", wrong), 1;
  double error = 0, size = 0;
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      error = fmax(error, fabs(y[m][n] - plain(m, n)));
      size = fmax(size, fabs(plain(m, n)));
    }
  }
  printf("bcq %s, kernel %s, %zu bytes of scratch, largest error %.1e of %.1f\n", bcq_version(), bcq_gemm_kernel(&gemm),
         bcq_gemm_scratch_bytes(&gemm), error, size);
  return error < 1e-3 * size ? 0 : 1;
}
