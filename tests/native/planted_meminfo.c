/* SPDX-License-Identifier: Apache-2.0
   Preloaded into a program: it reads the file that PLANTED_MEMINFO names where it asks for /proc/meminfo. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef FILE* Open(const char*, const char*);

static FILE* planted(const char* function, const char* path, const char* mode) {
  const char* instead = getenv("PLANTED_MEMINFO");
  if (instead != NULL && strcmp(path, "/proc/meminfo") == 0) path = instead;
  Open* open = (Open*)dlsym(RTLD_NEXT, function);
  return open(path, mode);
}

FILE* fopen(const char* path, const char* mode) { return planted("fopen", path, mode); }
FILE* fopen64(const char* path, const char* mode) { return planted("fopen64", path, mode); }
