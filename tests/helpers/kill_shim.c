/* Preloaded into a writer: kills it at a chosen system call on files whose path holds a chosen text.

   arm(target, call, half): from now on count calls on such files; at number `call` (from 0), kill -9 the process
   before it, or, with half = 1, half-way through a write and directly after any other call.
   disarm() returns how many were counted. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char target[4096];
static int armed, counted, chosen, halfway;

void arm(const char *text, int call, int half) {
    snprintf(target, sizeof target, "%s", text);
    armed = 1, counted = 0, chosen = call, halfway = half;
}

int disarm(void) {
    armed = 0;
    return counted;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    pause();
}

static int of_interest(int fd) {
    char link[64], path[4096];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, target) != NULL;
}

/* 0 = go on, 1 = die half-way or after. */
static int now(int interesting) {
    if (!interesting || counted++ != chosen) return 0;
    if (!halfway) die();
    return 1;
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = REAL("pwrite64", ssize_t(*)(int, const void *, size_t, off64_t));
    int last = now(of_interest(fd));
    ssize_t done = real(fd, data, last ? size / 2 : size, offset);
    if (last) die();
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = REAL("write", ssize_t(*)(int, const void *, size_t));
    int last = now(of_interest(fd));
    ssize_t done = real(fd, data, last ? size / 2 : size);
    if (last) die();
    return done;
}

int ftruncate64(int fd, off64_t size) {
    int (*real)(int, off64_t) = REAL("ftruncate64", int (*)(int, off64_t));
    int last = now(of_interest(fd));
    int done = real(fd, size);
    if (last) die();
    return done;
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int fsync(int fd) {
    int (*real)(int) = REAL("fsync", int (*)(int));
    int last = now(of_interest(fd));
    int done = real(fd);
    if (last) die();
    return done;
}

int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = REAL("rename", int (*)(const char *, const char *));
    int last = now(armed && strstr(to, target) != NULL);
    int done = real(from, to);
    if (last) die();
    return done;
}
