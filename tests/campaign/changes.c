/* Preloaded into a process: sees every change it makes to files under one folder, and every write.

   After a change (rename, unlink, rmdir, mkdir, fsync, close of a file open for writing) it waits for an answer, so that
   somebody may copy the folder as a killed process would leave it; or it kills the process. From a given write on it
   refuses all of them, as a full or failing disk does. What other threads would change waits meanwhile. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static size_t root_length;
static long changes, writes, kill_at, fail_at;
static int fail_code, ask = -1, answer = -1;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void campaign_arm(const char *folder, long kill_after, long fail_from, int code, int ask_fd, int answer_fd) {
  snprintf(root, sizeof root, "%s", folder);
  root_length = strlen(root);
  changes = writes = 0;
  kill_at = kill_after, fail_at = fail_from, fail_code = code, ask = ask_fd, answer = answer_fd;
}

long campaign_changes(void) { return changes; }
long campaign_writes(void) { return writes; }

static int inside(const char *path) {
  return root_length && path && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
  return length > 0;
}

static int written(int fd) { /* open for writing, in the folder */
  if (!root_length) return 0;
  int before = errno, flags = fcntl(fd, F_GETFL);
  char path[PATH_MAX];
  int found = flags != -1 && (flags & O_ACCMODE) != O_RDONLY && path_of(fd, path) && inside(path);
  errno = before;
  return found;
}

static int in_folder(int fd) {
  if (!root_length) return 0;
  int before = errno;
  char path[PATH_MAX];
  int found = path_of(fd, path) && inside(path);
  errno = before;
  return found;
}

static int inside_at(int folder, const char *name) {
  if (!root_length) return 0;
  return name[0] == '/' || folder == AT_FDCWD ? inside(name) : in_folder(folder);
}

static void changed(void) {
  int before = errno;
  char byte = 0;
  changes++;
  if (kill_at && changes == kill_at) kill(getpid(), SIGKILL);
  if (ask >= 0) {
    if (NEXT(write)(ask, &byte, 1) == 1)
      while (read(answer, &byte, 1) < 0 && errno == EINTR) {}
  }
  errno = before;
}

static int refused(void) {
  writes++;
  if (!fail_at || writes < fail_at) return 0;
  errno = fail_code;
  return 1;
}

#define LOCKED pthread_mutex_lock(&one_at_a_time)
#define FREE pthread_mutex_unlock(&one_at_a_time)

#define CHANGE(type, name, parameters, arguments, ours, fallible)                                                      \
  type name parameters {                                                                                               \
    if (!(ours)) return NEXT(name) arguments;                                                                          \
    LOCKED;                                                                                                            \
    type result = (fallible) && refused() ? (type)-1 : NEXT(name) arguments;                                           \
    if (result == 0) changed();                                                                                        \
    FREE;                                                                                                              \
    return result;                                                                                                     \
  }

#define WRITE(type, name, parameters, arguments, fd)                                                                   \
  type name parameters {                                                                                               \
    if (!written(fd)) return NEXT(name) arguments;                                                                     \
    LOCKED;                                                                                                            \
    type result = refused() ? (type)-1 : NEXT(name) arguments;                                                         \
    FREE;                                                                                                              \
    return result;                                                                                                     \
  }

CHANGE(int, rename, (const char *a, const char *b), (a, b), inside(b), 0)
CHANGE(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), inside_at(e, b), 0)
CHANGE(int, unlink, (const char *a), (a), inside(a), 0)
CHANGE(int, unlinkat, (int d, const char *a, int f), (d, a, f), inside_at(d, a), 0)
CHANGE(int, rmdir, (const char *a), (a), inside(a), 0)
CHANGE(int, mkdir, (const char *a, mode_t m), (a, m), inside(a), 1)
CHANGE(int, mkdirat, (int d, const char *a, mode_t m), (d, a, m), inside_at(d, a), 1)
CHANGE(int, fsync, (int fd), (fd), in_folder(fd), fail_code == EIO)
CHANGE(int, fdatasync, (int fd), (fd), in_folder(fd), fail_code == EIO)
CHANGE(int, close, (int fd), (fd), written(fd), 0)

WRITE(ssize_t, write, (int fd, const void *p, size_t n), (fd, p, n), fd)
WRITE(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n), fd)
WRITE(ssize_t, pwrite, (int fd, const void *p, size_t n, off_t o), (fd, p, n, o), fd)
WRITE(ssize_t, pwrite64, (int fd, const void *p, size_t n, off64_t o), (fd, p, n, o), fd)
WRITE(ssize_t, sendfile, (int fd, int from, off_t *o, size_t n), (fd, from, o, n), fd)
WRITE(ssize_t, sendfile64, (int fd, int from, off64_t *o, size_t n), (fd, from, o, n), fd)
WRITE(ssize_t, copy_file_range, (int from, off64_t *o, int fd, off64_t *q, size_t n, unsigned f), (from, o, fd, q, n, f), fd)
WRITE(int, ftruncate, (int fd, off_t n), (fd, n), fd)
WRITE(int, ftruncate64, (int fd, off64_t n), (fd, n), fd)
