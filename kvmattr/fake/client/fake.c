/* Calls on descriptors that the server made. Each is the reading end of a pipe: the kernel counts who holds it (dup,
 * fork, SCM_RIGHTS, exec), and the server, who has the other end, sees when the last holder has closed it. Its inode is
 * its name. Reading it fails and never waits, writing and mapping it fail, as with KVM's own. */
#undef _FORTIFY_SOURCE
#undef _FILE_OFFSET_BITS
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "library.h"

/* The inode of a descriptor that may be the server's, 0 of any other. */
static uint64_t pipe_of(int descriptor)
{
    struct stat seen;
    int error = errno;
    uint64_t inode = 0;
    if (kernel_fstat(descriptor, &seen) == 0 && S_ISFIFO(seen.st_mode))
        inode = seen.st_ino;
    errno = error;
    return inode;
}

/* The result of a call, with its errno. */
static int result_of(struct exchange *each)
{
    if (each->reply.error) {
        errno = each->reply.error;
        return -1;
    }
    return each->descriptor >= 0 ? each->descriptor : (int)each->reply.result;
}

int fake_open(int flags)
{
    struct exchange each = {.call = {OPEN, 0, 0, {(uint64_t)flags}}, .keep_on_exec = !(flags & O_CLOEXEC)};
    return exchange(&each) < 0 ? -1 : result_of(&each);
}

int fake_ioctl(int descriptor, unsigned long request, unsigned long argument, int *result)
{
    uint64_t inode = pipe_of(descriptor);
    if (!inode)
        return 0;
    size_t size = _IOC_SIZE(request);
    void *structure = (void *)(uintptr_t)argument;
    struct exchange each = {
        .call = {IOCTL, 0, inode, {request, argument, (uint64_t)(unsigned)descriptor, size}},
        .given = structure, .given_bytes = size, .taken = structure, .room = size,
    };
    int error = errno;
    *result = exchange(&each) < 0 ? -1 : result_of(&each);
    if (each.reply.question == NOT_OURS) {
        errno = error;
        return 0;
    }
    if (*result >= 0)
        errno = error;
    return 1;
}

int fake_fallocate(int descriptor, int mode, off_t offset, off_t size, int *result)
{
    uint64_t inode = pipe_of(descriptor);
    if (!inode)
        return 0;
    struct exchange each = {.call = {FALLOCATE, 0, inode, {(uint64_t)mode, (uint64_t)offset, (uint64_t)size}}};
    *result = exchange(&each) < 0 ? -1 : result_of(&each);
    return each.reply.question != NOT_OURS;
}

int fake_mmap(void *address, size_t size, int prot, int flags, int descriptor, off_t offset, void **result)
{
    uint64_t inode = descriptor >= 0 && !(flags & MAP_ANONYMOUS) ? pipe_of(descriptor) : 0;
    if (!inode)
        return 0;
    struct exchange each = {
        .call = {MMAP, 0, inode, {(uint64_t)offset, size, (uint64_t)prot, (uint64_t)flags}}};
    *result = MAP_FAILED;
    if (exchange(&each) < 0)
        return 1;
    if (each.reply.question == NOT_OURS)
        return 0;
    int file = result_of(&each);
    if (file < 0)
        return 1;
    *result = real_mmap(address, size, prot, flags, file, offset);
    int error = errno;
    syscall(SYS_close, file);
    errno = error;
    return 1;
}

void fake_fstat(struct stat *seen)
{
    if (!S_ISFIFO(seen->st_mode))
        return;
    struct exchange each = {.call = {STAT, 0, seen->st_ino, {0}}};
    int error = errno;
    if (exchange(&each) == 0 && each.reply.question == NONE) {
        seen->st_mode = S_IFREG;
        seen->st_size = each.reply.result;
        seen->st_blksize = (blksize_t)each.reply.length;
    }
    errno = error;
}
