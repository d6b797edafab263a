// SPDX-License-Identifier: Apache-2.0
// Preloaded before libc: the n-th call that changes a disk kills the process, or finds the disk full.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, FULL_ONCE, FULL_FOR_GOOD };

static int mode = OFF;
static int calls = 0;
static int fatal = 0;

// Starts counting; the call with the given number is the one that fails.
void fault_arm(int how, int at) {
  calls = 0;
  fatal = at;
  mode = how;
}

int fault_calls(void) { return calls; }

// Whether this call is to fail. Removing names never needs space, so that fails only in the mode "once".
static int fails(int needs_space) {
  if (mode == OFF) return 0;
  int now = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
  if (mode == KILL && now == fatal) {
    kill(getpid(), SIGKILL);
    pause();
  }
  int full = (mode == FULL_ONCE && now == fatal) || (mode == FULL_FOR_GOOD && needs_space && now >= fatal);
  if (full) errno = ENOSPC;
  return full;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(needs, name, type, parameters, arguments) \
  type name parameters {                               \
    if (fails(needs)) return -1;                       \
    return REAL(name) arguments;                       \
  }

static int writes(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0; }

#define OPEN(name, parameters, arguments)                \
  int name parameters {                                  \
    va_list list;                                        \
    va_start(list, flags);                               \
    mode_t rights = (mode_t)(flags & O_CREAT ? va_arg(list, int) : 0); \
    va_end(list);                                        \
    if (writes(flags) && fails(1)) return -1;            \
    return REAL(name) arguments;                         \
  }

OPEN(open, (const char* path, int flags, ...), (path, flags, rights))
OPEN(open64, (const char* path, int flags, ...), (path, flags, rights))
OPEN(openat, (int at, const char* path, int flags, ...), (at, path, flags, rights))
OPEN(openat64, (int at, const char* path, int flags, ...), (at, path, flags, rights))

ssize_t write(int file, const void* data, size_t size) {
  if (file > 2 && fails(1)) return -1;
  return REAL(write)(file, data, size);
}

CALL(1, pwrite64, ssize_t, (int file, const void* data, size_t size, off64_t at), (file, data, size, at))
CALL(1, sendfile64, ssize_t, (int to, int from, off64_t* at, size_t size), (to, from, at, size))
CALL(1, copy_file_range, ssize_t,
     (int from, off64_t* at, int to, off64_t* there, size_t size, unsigned flags),
     (from, at, to, there, size, flags))
CALL(1, ftruncate64, int, (int file, off64_t size), (file, size))
CALL(1, fsync, int, (int file), (file))
CALL(1, mkdir, int, (const char* path, mode_t rights), (path, rights))
CALL(1, mkdirat, int, (int at, const char* path, mode_t rights), (at, path, rights))
CALL(1, rename, int, (const char* from, const char* to), (from, to))
CALL(1, renameat, int, (int from_at, const char* from, int to_at, const char* to), (from_at, from, to_at, to))
CALL(1, renameat2, int, (int from_at, const char* from, int to_at, const char* to, unsigned flags),
     (from_at, from, to_at, to, flags))
CALL(0, chmod, int, (const char* path, mode_t rights), (path, rights))
CALL(0, unlink, int, (const char* path), (path))
CALL(0, unlinkat, int, (int at, const char* path, int flags), (at, path, flags))
CALL(0, rmdir, int, (const char* path), (path))
