/* The preloaded library: the C library's functions that make, use and copy descriptors, by their own names.
 *
 * In a program that `kvmattr fake` started, /dev/kvm is the server's and what comes from it too; under `kvmattr
 * shadow` the kernel answers and the server hears of it. Every other call goes to the C library as it came.
 */
#undef _FORTIFY_SOURCE
#undef _FILE_OFFSET_BITS
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "library.h"

#define OURS __attribute__((visibility("default")))

enum mode library_mode = OFF;

const struct real *real(void)
{
    static struct real found;
    static int looked;
    if (!__atomic_load_n(&looked, __ATOMIC_ACQUIRE)) {
        struct real now;
        /* ISO C has no way from an object pointer to a function's; POSIX promises that they are alike. */
        *(void **)&now.open = dlsym(RTLD_NEXT, "open");
        *(void **)&now.openat = dlsym(RTLD_NEXT, "openat");
        *(void **)&now.ioctl = dlsym(RTLD_NEXT, "ioctl");
        *(void **)&now.fallocate = dlsym(RTLD_NEXT, "fallocate");
        *(void **)&now.close = dlsym(RTLD_NEXT, "close");
        *(void **)&now.dup = dlsym(RTLD_NEXT, "dup");
        *(void **)&now.dup2 = dlsym(RTLD_NEXT, "dup2");
        *(void **)&now.dup3 = dlsym(RTLD_NEXT, "dup3");
        *(void **)&now.fcntl = dlsym(RTLD_NEXT, "fcntl64");
        if (now.fcntl == NULL)
            *(void **)&now.fcntl = dlsym(RTLD_NEXT, "fcntl");
        *(void **)&now.close_range = dlsym(RTLD_NEXT, "close_range");
        *(void **)&now.closefrom = dlsym(RTLD_NEXT, "closefrom");
        found = now;
        __atomic_store_n(&looked, 1, __ATOMIC_RELEASE);
    }
    return &found;
}

/* Straight to the kernel, as the C library does: a program's own allocator may map memory before anything else. */
void *real_mmap(void *address, size_t size, int prot, int flags, int descriptor, off_t offset)
{
    return (void *)syscall(SYS_mmap, address, size, prot, flags, descriptor, offset);
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("KVMATTR_FAKE_SOCKET"), *mode = getenv("KVMATTR_FAKE_MODE");
    real();
    if (path == NULL || mode == NULL)
        return;
    channel_begin(path);
    shadow_begin();
    library_mode = strcmp(mode, "shadow") == 0 ? SHADOW : FAKE;
}

static int opened(int directory, const char *path, int flags, mode_t mode)
{
    int ours = library_mode != OFF && !(flags & O_PATH), named = ours && names_the_device(directory, path);
    if (named && library_mode == FAKE)
        return fake_open(flags);
    int descriptor = real()->openat(directory, path, flags, mode);
    if (!ours || descriptor < 0 || !(named || is_the_device(descriptor)))
        return descriptor;
    if (library_mode == SHADOW) {
        shadow_opened(descriptor);
        return descriptor;
    }
    /* By a link, or "..": the kernel's own must not answer for the model. */
    real()->close(descriptor);
    return fake_open(flags);
}

#define MODE_OF(flags)                                                                                     \
    mode_t mode = 0;                                                                                       \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                                         \
        va_list rest;                                                                                      \
        va_start(rest, flags);                                                                             \
        mode = va_arg(rest, mode_t);                                                                       \
        va_end(rest);                                                                                      \
    }

/* An O_LARGEFILE that the 64 in a name stands for is 0 on the machines that we run on. */
OURS int open(const char *path, int flags, ...)
{
    MODE_OF(flags)
    return opened(AT_FDCWD, path, flags, mode);
}

#ifdef __GLIBC__
OURS int open64(const char *path, int flags, ...)
{
    MODE_OF(flags)
    return opened(AT_FDCWD, path, flags, mode);
}
#endif

OURS int openat(int directory, const char *path, int flags, ...)
{
    MODE_OF(flags)
    return opened(directory, path, flags, mode);
}

#ifdef __GLIBC__
OURS int openat64(int directory, const char *path, int flags, ...)
{
    MODE_OF(flags)
    return opened(directory, path, flags, mode);
}

/* What a program that was built with _FORTIFY_SOURCE calls. */
OURS int __open_2(const char *path, int flags);
OURS int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
OURS int __open64_2(const char *path, int flags);
OURS int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
OURS int __openat_2(int directory, const char *path, int flags);
OURS int __openat_2(int directory, const char *path, int flags) { return opened(directory, path, flags, 0); }
OURS int __openat64_2(int directory, const char *path, int flags);
OURS int __openat64_2(int directory, const char *path, int flags) { return opened(directory, path, flags, 0); }
#endif

OURS int ioctl(int descriptor, request_t request, ...)
{
    va_list rest;
    va_start(rest, request);
    unsigned long argument = va_arg(rest, unsigned long);
    va_end(rest);
    if (_IOC_TYPE(request) == KVMIO && library_mode != OFF) {
        int result;
        /* KVM looks at 32 bits of it; a program may have widened them with their sign. */
        unsigned long number = (unsigned)request;
        if (library_mode == FAKE ? fake_ioctl(descriptor, number, argument, &result)
                                 : shadow_ioctl(descriptor, number, argument, &result))
            return result;
    }
    return real()->ioctl(descriptor, request, argument);
}

OURS void *mmap(void *address, size_t size, int prot, int flags, int descriptor, off_t offset)
{
    void *result;
    if (library_mode == FAKE && fake_mmap(address, size, prot, flags, descriptor, offset, &result))
        return result;
    return real_mmap(address, size, prot, flags, descriptor, offset);
}

#ifdef __GLIBC__
OURS void *mmap64(void *address, size_t size, int prot, int flags, int descriptor, off64_t offset)
{
    return mmap(address, size, prot, flags, descriptor, offset);
}
#endif

OURS int fallocate(int descriptor, int mode, off_t offset, off_t size)
{
    int result;
    if (library_mode == FAKE && fake_fallocate(descriptor, mode, offset, size, &result))
        return result;
    if (library_mode == SHADOW && shadow_fallocate(descriptor, mode, offset, size, &result))
        return result;
    return real()->fallocate(descriptor, mode, offset, size);
}

#ifdef __GLIBC__
OURS int fallocate64(int descriptor, int mode, off64_t offset, off64_t size)
{
    return fallocate(descriptor, mode, offset, size);
}
#endif

/* A guest_memfd has a size. Programs of before glibc 2.33 call the two with a version. */

static int told_of(int descriptor, struct stat *seen)
{
    int result = kernel_fstat(descriptor, seen);
    if (result == 0 && library_mode == FAKE)
        fake_fstat(seen);
    return result;
}

OURS int fstat(int descriptor, struct stat *seen) { return told_of(descriptor, seen); }
#ifdef __GLIBC__
OURS int fstat64(int descriptor, struct stat64 *seen) { return told_of(descriptor, (struct stat *)seen); }
OURS int __fxstat(int version, int descriptor, struct stat *seen);
OURS int __fxstat(int version, int descriptor, struct stat *seen) { return (void)version, told_of(descriptor, seen); }
OURS int __fxstat64(int version, int descriptor, struct stat64 *seen);
OURS int __fxstat64(int version, int descriptor, struct stat64 *seen)
{
    return (void)version, told_of(descriptor, (struct stat *)seen);
}
#endif

/* A shadow has the kernel's descriptors, and must be told what becomes of their numbers. */

OURS int close(int descriptor)
{
    if (library_mode == SHADOW)
        shadow_closed(descriptor); /* before: another thread may get the number at once */
    return real()->close(descriptor);
}

OURS int close_range(unsigned first, unsigned last, int flags)
{
    if (library_mode == SHADOW && !(flags & 4 /* CLOSE_RANGE_CLOEXEC */))
        shadow_closed_range(first, last);
    if (real()->close_range == NULL) {
        errno = ENOSYS;
        return -1;
    }
    return real()->close_range(first, last, flags);
}

OURS void closefrom(int first)
{
    if (library_mode == SHADOW)
        shadow_closed_range(first < 0 ? 0 : (unsigned)first, ~0u);
    if (real()->closefrom != NULL)
        real()->closefrom(first);
}

OURS int dup(int descriptor)
{
    int copy = real()->dup(descriptor);
    if (library_mode == SHADOW && copy >= 0)
        shadow_duplicated(descriptor, copy);
    return copy;
}

OURS int dup2(int descriptor, int wanted)
{
    int copy = real()->dup2(descriptor, wanted);
    if (library_mode == SHADOW && copy >= 0 && copy != descriptor)
        shadow_duplicated(descriptor, copy);
    return copy;
}

OURS int dup3(int descriptor, int wanted, int flags)
{
    int copy = real()->dup3(descriptor, wanted, flags);
    if (library_mode == SHADOW && copy >= 0)
        shadow_duplicated(descriptor, copy);
    return copy;
}

static int controlled(int descriptor, int command, void *argument)
{
    int result = real()->fcntl(descriptor, command, argument);
    if (library_mode == SHADOW && result >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC))
        shadow_duplicated(descriptor, result);
    return result;
}

OURS int fcntl(int descriptor, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return controlled(descriptor, command, argument);
}

#ifdef __GLIBC__
OURS int fcntl64(int descriptor, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return controlled(descriptor, command, argument);
}
#endif
