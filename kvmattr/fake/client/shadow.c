/* Calls on the real /dev/kvm that the server hears of: those that make VMs and files, and those on their memory.
 *
 * The kernel's descriptors carry no name that the server could know them by, so a table holds which number is
 * which file; whatever copies or closes a number keeps it true. A call and what the server is told of it are one step:
 * two threads' calls reach the model in the order in which the kernel had them. KVM_RUN and all else pass by.
 */
#undef _FORTIFY_SOURCE
#undef _FILE_OFFSET_BITS
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "library.h"

enum { DESCRIPTORS = 1 << 16, STRUCTURE = 256 };

/* What the server is told of a call, behind struct call; then the structure as it went in, and as it came out. */
struct seen {
    int64_t result;
    int32_t error;
    uint32_t bytes;       /* of one structure; 0: there is none, or it could not be read */
    uint64_t made;        /* the number of a file that came out */
    uint64_t bound;       /* the number of the file that guest_memfd names, 0 if it is none of ours */
    uint64_t time;        /* nanoseconds since 1970 */
    uint64_t nanoseconds; /* that the kernel took */
    uint64_t noting;      /* that telling of the call before this one took */
};

static uint64_t files[DESCRIPTORS]; /* by descriptor: the file's number, 0 for what is none */
static unsigned highest;
static uint64_t last_number;
static uint64_t last_noting;
static pthread_mutex_t turn; /* a thread that has it already (a signal handler) is told so, and goes on */
static int untracked_told;

static void before_fork(void) { pthread_mutex_lock(&turn); }

static void after_fork(void)
{
    int error = pthread_mutex_unlock(&turn);
    (void)error;
}

static void new_turn(void)
{
    pthread_mutexattr_t checking;
    pthread_mutexattr_init(&checking);
    pthread_mutexattr_settype(&checking, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&turn, &checking);
    pthread_mutexattr_destroy(&checking);
}

void shadow_begin(void)
{
    new_turn();
    pthread_atfork(before_fork, after_fork, new_turn);
}

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t file_of(int descriptor)
{
    return descriptor >= 0 && descriptor < DESCRIPTORS ? files[descriptor] : 0;
}

static uint64_t new_file(int descriptor)
{
    if (descriptor >= DESCRIPTORS) {
        if (!untracked_told)
            tell("a descriptor of KVM above 65535: its calls are not compared");
        untracked_told = 1;
        return 0;
    }
    files[descriptor] = (uint64_t)getpid() << 32 | ++last_number;
    if ((unsigned)descriptor >= highest)
        highest = (unsigned)descriptor + 1;
    return files[descriptor];
}

static void note(uint64_t file, unsigned long request, unsigned long argument, int descriptor, struct seen *seen,
                 const void *structures)
{
    struct call call = {SEEN, 0, file, {request, argument, (uint64_t)(unsigned)descriptor}};
    seen->noting = last_noting;
    if (send_only(&call, seen, sizeof *seen, structures, 2 * (size_t)seen->bytes) < 0)
        library_mode = OFF;
}

void shadow_opened(int descriptor)
{
    int error = errno, held = pthread_mutex_lock(&turn) == 0;
    struct seen seen = {.result = descriptor, .time = nanoseconds(CLOCK_REALTIME), .made = new_file(descriptor)};
    if (seen.made)
        note(0, 0, 0, descriptor, &seen, NULL);
    if (held)
        pthread_mutex_unlock(&turn);
    errno = error;
}

/* Whether the server is told of a request, and how many bytes its structure has. */
static int told_of(unsigned long request)
{
    switch (request) {
    case _IO(KVMIO, 0x01):              /* KVM_CREATE_VM */
    case _IO(KVMIO, 0x03):              /* KVM_CHECK_EXTENSION */
    case _IO(KVMIO, 0x41):              /* KVM_CREATE_VCPU */
    case _IO(KVMIO, 0x60):              /* KVM_CREATE_IRQCHIP */
    case _IOC(_IOC_WRITE, KVMIO, 0x46, 32):             /* KVM_SET_USER_MEMORY_REGION */
    case _IOC(_IOC_WRITE, KVMIO, 0x49, 160):            /* KVM_SET_USER_MEMORY_REGION2 */
    case _IOC(_IOC_WRITE, KVMIO, 0xd2, 32):             /* KVM_SET_MEMORY_ATTRIBUTES */
    case _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd2, 128): /* KVM_SET_MEMORY_ATTRIBUTES2 */
    case _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd4, 64):  /* KVM_CREATE_GUEST_MEMFD */
    case _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd5, 64):  /* KVM_PRE_FAULT_MEMORY */
        return 1;
    default:
        return 0;
    }
}

/* Copy from memory that may not be there: 0, or -1. */
static int copy_safely(void *to, unsigned long from, size_t bytes)
{
    struct iovec here = {to, bytes}, there = {(void *)from, bytes};
    ssize_t got = syscall(SYS_process_vm_readv, getpid(), &here, 1, &there, 1, 0);
    if (got == (ssize_t)bytes)
        return 0;
    if (got >= 0 || errno == EFAULT)
        return -1;
    /* Not allowed here (a sandbox): a pipe's write looks at the memory in our place. */
    int ends[2], result = -1;
    if (syscall(SYS_pipe2, ends, O_CLOEXEC) < 0)
        return -1;
    if (syscall(SYS_write, ends[1], from, bytes) == (ssize_t)bytes)
        result = syscall(SYS_read, ends[0], to, bytes) == (ssize_t)bytes ? 0 : -1;
    syscall(SYS_close, ends[0]);
    syscall(SYS_close, ends[1]);
    return result;
}

int shadow_ioctl(int descriptor, unsigned long request, unsigned long argument, int *result)
{
    if (!told_of(request))
        return 0;
    int before = errno, held = pthread_mutex_lock(&turn) == 0;
    uint64_t began = nanoseconds(CLOCK_MONOTONIC), file = file_of(descriptor);
    struct seen seen = {.time = nanoseconds(CLOCK_REALTIME)};
    unsigned char structures[2 * STRUCTURE];
    size_t bytes = _IOC_SIZE(request);
    unsigned long given = argument;
    if (bytes && copy_safely(structures, argument, bytes) == 0) {
        seen.bytes = (uint32_t)bytes;
        if (_IOC_DIR(request) == _IOC_WRITE)
            given = (unsigned long)structures; /* what is compared is what the kernel reads */
        memcpy(structures + bytes, structures, bytes);
        if (_IOC_NR(request) == 0x49) {
            int32_t named;
            memcpy(&named, structures + 40, sizeof named);
            seen.bound = file_of(named);
        }
    }
    uint64_t asked = nanoseconds(CLOCK_MONOTONIC);
    errno = before;
    *result = real()->ioctl(descriptor, request, given);
    int error = errno;
    uint64_t answered = nanoseconds(CLOCK_MONOTONIC);
    seen.nanoseconds = answered - asked;
    seen.result = *result;
    seen.error = *result < 0 ? error : 0;
    if (seen.bytes && _IOC_DIR(request) != _IOC_WRITE && copy_safely(structures + bytes, argument, bytes) < 0)
        seen.bytes = 0;
    unsigned number = _IOC_NR(request);
    if (*result >= 0 && (number == 0x01 || number == 0x41 || number == 0xd4))
        seen.made = new_file(*result);
    /* A descriptor that is none of KVM's: the program was wrong, and the kernel has said so. */
    if (file || *result >= 0 || (error != ENOTTY && error != EBADF))
        note(file, request, argument, descriptor, &seen, structures);
    last_noting = asked - began + (nanoseconds(CLOCK_MONOTONIC) - answered);
    if (held)
        pthread_mutex_unlock(&turn);
    errno = error;
    return 1;
}

int shadow_fallocate(int descriptor, int mode, off_t offset, off_t size, int *result)
{
    uint64_t file = file_of(descriptor);
    if (!file)
        return 0;
    int before = errno, held = pthread_mutex_lock(&turn) == 0;
    uint64_t asked = nanoseconds(CLOCK_MONOTONIC);
    struct seen seen = {.time = nanoseconds(CLOCK_REALTIME), .bytes = 12};
    errno = before;
    *result = real()->fallocate(descriptor, mode, offset, size);
    int error = errno;
    seen.nanoseconds = nanoseconds(CLOCK_MONOTONIC) - asked;
    seen.result = *result;
    seen.error = *result < 0 ? error : 0;
    uint64_t words[3] = {(uint64_t)mode, (uint64_t)offset, (uint64_t)size};
    note(file, FALLOCATE, 0, descriptor, &seen, words);
    if (held)
        pthread_mutex_unlock(&turn);
    errno = error;
    return 1;
}

static void forget(unsigned descriptor)
{
    uint64_t file = files[descriptor];
    files[descriptor] = 0;
    for (unsigned other = 0; other < highest; other++)
        if (files[other] == file)
            return;
    struct call call = {CLOSED, 0, file, {descriptor}};
    if (send_only(&call, NULL, 0, NULL, 0) < 0)
        library_mode = OFF;
}

void shadow_closed_range(unsigned first, unsigned last)
{
    int error = errno, held = pthread_mutex_lock(&turn) == 0;
    for (unsigned each = first; each < highest && each <= last; each++)
        if (files[each])
            forget(each);
    if (held)
        pthread_mutex_unlock(&turn);
    errno = error;
}

void shadow_closed(int descriptor)
{
    if (file_of(descriptor))
        shadow_closed_range((unsigned)descriptor, (unsigned)descriptor);
}

void shadow_duplicated(int from, int to)
{
    uint64_t file = file_of(from);
    if (!file && !file_of(to))
        return;
    shadow_closed(to);
    int error = errno, held = pthread_mutex_lock(&turn) == 0;
    if (file && to < DESCRIPTORS) {
        files[to] = file;
        if ((unsigned)to >= highest)
            highest = (unsigned)to + 1;
    }
    if (held)
        pthread_mutex_unlock(&turn);
    errno = error;
}
