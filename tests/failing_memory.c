/* Preloaded by test_store_memory.py: lets a chosen request for memory fail, counting only those of one library.
 *
 * failing_arm(name, n, all): from now on the n-th request (n >= 1) whose caller lies in a file with `name` in its
 * path fails; with `all`, so does each later one. failing_disarm() ends that and tells how many were counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static char wanted[4096];
static long fail_at, counted;
static int fail_all, armed;
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);

__attribute__((constructor)) static void find_real(void)
{
    *(void **)&real_mmap = dlsym(RTLD_NEXT, "mmap");
}

void failing_arm(const char *name, long n, int all)
{
    strncpy(wanted, name, sizeof wanted - 1);
    fail_at = n;
    fail_all = all;
    counted = 0;
    armed = 1;
}

long failing_disarm(void)
{
    armed = 0;
    return counted;
}

static int refuses(void *caller)
{
    Dl_info where;
    if (!armed || !dladdr(caller, &where) || !where.dli_fname || !strstr(where.dli_fname, wanted))
        return 0;
    counted++;
    if (counted == fail_at || (fail_all && counted > fail_at)) {
        errno = ENOMEM;
        return 1;
    }
    return 0;
}

void *malloc(size_t size)
{
    return refuses(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return refuses(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    return refuses(__builtin_return_address(0)) ? NULL : __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return refuses(__builtin_return_address(0)) ? NULL : __libc_memalign(alignment, size);
}

int posix_memalign(void **result, size_t alignment, size_t size)
{
    if (refuses(__builtin_return_address(0)))
        return ENOMEM;
    *result = __libc_memalign(alignment, size);
    return *result ? 0 : ENOMEM;
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    if (refuses(__builtin_return_address(0)))
        return MAP_FAILED;
    if (!real_mmap)
        find_real();
    return real_mmap(address, length, protection, flags, fd, offset);
}

/* What a file that was compiled for large files calls by that name. */
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));
