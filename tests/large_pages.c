/* Preloaded by `dev.py pages` and tests/test_store_large_pages.py: system calls on memory behave as under a kernel
 * whose pages have KVMATTR_TEST_PAGE_BYTES bytes (16384 or 65536, as arm64 has them), on one with pages of 4096.
 *
 * Such a kernel refuses an address that is no multiple of its page (EINVAL) and rounds a length up to whole pages. So
 * whoever believes in pages of 4096 bytes gives back, unmaps or protects what lies behind his range too. It
 * answers for the callers that go through the dynamic linker: the extensions, Python, numpy; the C library's own
 * calls (malloc, thread stacks) do not come by here and keep to the pages that are really there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL_PAGE 4096ul

static size_t page(void)
{
    static size_t bytes;
    if (!bytes) {
        const char *text = getenv("KVMATTR_TEST_PAGE_BYTES");
        size_t asked = text ? strtoul(text, NULL, 10) : 0;
        if (asked < REAL_PAGE || asked & (asked - 1)) {
            fprintf(stderr, "large_pages: KVMATTR_TEST_PAGE_BYTES is %s, need a power of two from 4096\n",
                    text ? text : "not set");
            abort();
        }
        bytes = asked;
    }
    return bytes;
}

static int aligned(const void *address)
{
    return ((uintptr_t)address & (page() - 1)) == 0;
}

static size_t rounded(size_t length)    /* 0 for a length that overflows, as the kernel's PAGE_ALIGN */
{
    return (length + page() - 1) & ~(page() - 1);
}

static int refuse(int error)
{
    errno = error;
    return -1;
}

/* ---- what the page's size is ---- */

long sysconf(int name)
{
    static long (*real)(int);
    if (name == _SC_PAGESIZE)       /* _SC_PAGE_SIZE is the same number */
        return (long)page();
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "sysconf");
    return real(name);
}

int getpagesize(void)
{
    return (int)page();
}

unsigned long getauxval(unsigned long type)
{
    static unsigned long (*real)(unsigned long);
    if (type == AT_PAGESZ)
        return page();
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "getauxval");
    return real(type);
}

/* ---- memory ---- */

static void *raw_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    size_t whole = rounded(length);
    size_t real = (length + REAL_PAGE - 1) & ~(REAL_PAGE - 1);
    char *start;
    void *result;
    if (!length || (offset & (off_t)(page() - 1)) || (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) && !aligned(address)))
        return errno = EINVAL, MAP_FAILED;
    if (whole < length)
        return errno = ENOMEM, MAP_FAILED;
    if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE))
        start = address;
    else {
        /* A place that begins at a multiple of the page: taken with one page more, and its ends given back. */
        char *taken = raw_mmap(NULL, whole + page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (taken == MAP_FAILED)
            return MAP_FAILED;
        start = (char *)(((uintptr_t)taken + page() - 1) & ~(uintptr_t)(page() - 1));
        if (start > taken)
            syscall(SYS_munmap, taken, start - taken);
        syscall(SYS_munmap, start + whole, taken + page() - start);
        flags |= MAP_FIXED;
    }
    /* Behind a file's last page of 4096 bytes nothing can be read; on a larger page there are zeros. */
    result = raw_mmap(start, flags & MAP_ANONYMOUS ? whole : real, protection, flags, fd, offset);
    if (result == MAP_FAILED) {
        int error = errno;
        if (start != address)
            syscall(SYS_munmap, start, whole);
        errno = error;
    } else if (!(flags & MAP_ANONYMOUS) && whole > real)
        raw_mmap(start + real, whole - real, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return result;
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

int munmap(void *address, size_t length)
{
    if (!aligned(address) || !rounded(length))
        return refuse(EINVAL);
    return (int)syscall(SYS_munmap, address, rounded(length));
}

void *mremap(void *address, size_t length, size_t wanted, int flags, ...)
{
    void *moved = NULL;
    va_list rest;
    va_start(rest, flags);
    if (flags & MREMAP_FIXED)
        moved = va_arg(rest, void *);
    va_end(rest);
    if (!aligned(address) || !aligned(moved) || !rounded(wanted))
        return errno = EINVAL, MAP_FAILED;
    if (flags & MREMAP_MAYMOVE && !(flags & MREMAP_FIXED) && rounded(wanted) > rounded(length)) {
        moved = mmap(NULL, wanted, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (moved == MAP_FAILED)
            return MAP_FAILED;
        flags |= MREMAP_FIXED;
    }
    return (void *)syscall(SYS_mremap, address, rounded(length), rounded(wanted), flags, moved);
}

int mprotect(void *address, size_t length, int protection)
{
    if (!aligned(address))
        return refuse(EINVAL);
    if (length && !rounded(length))
        return refuse(ENOMEM);
    return (int)syscall(SYS_mprotect, address, rounded(length), protection);
}

int madvise(void *address, size_t length, int advice)
{
    if (!aligned(address) || (length && !rounded(length)))
        return refuse(EINVAL);
    return (int)syscall(SYS_madvise, address, rounded(length), advice);
}

int posix_madvise(void *address, size_t length, int advice)
{
    /* As glibc: POSIX_MADV_DONTNEED does nothing, for it must not lose what was written. */
    if (advice == POSIX_MADV_DONTNEED)
        return 0;
    return madvise(address, length, advice) ? errno : 0;
}

int msync(void *address, size_t length, int flags)
{
    if (!aligned(address))
        return refuse(EINVAL);
    return (int)syscall(SYS_msync, address, rounded(length), flags);
}
