/* The parts of the preloaded library, and what they use of each other. */
#ifndef KVMATTR_FAKE_LIBRARY_H
#define KVMATTR_FAKE_LIBRARY_H

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "protocol.h"

enum mode { OFF, FAKE, SHADOW };

enum { KVMIO = 0xAE };

/* Other C libraries than glibc have one name for each function, and a narrower request. */
#ifdef __GLIBC__
typedef unsigned long request_t;
#else
typedef int request_t;
#endif

/* library.c: set once, before main. */
extern enum mode library_mode;

/* The functions of the C library that stand behind ours. */
struct real {
    int (*open)(const char *, int, ...);
    int (*openat)(int, const char *, int, ...);
    int (*ioctl)(int, request_t, ...);
    int (*fallocate)(int, int, off_t, off_t);
    int (*close)(int);
    int (*dup)(int);
    int (*dup2)(int, int);
    int (*dup3)(int, int, int);
    int (*fcntl)(int, int, ...);
    int (*close_range)(unsigned, unsigned, int);
    void (*closefrom)(int);
};
const struct real *real(void);
/* Not the C library's, which is ours. */
static inline int kernel_fstat(int descriptor, struct stat *seen) { return (int)syscall(SYS_fstat, descriptor, seen); }
void *real_mmap(void *, size_t, int, int, int, off_t);

/* path.c: whether this names the device, whatever is there; whether this is the kernel's own. */
int names_the_device(int directory, const char *path);
int is_the_device(int descriptor);

/* channel.c: a thread's connection. */

struct exchange {
    struct call call;
    const void *given;   /* what is sent behind the call, and its bytes; read once */
    size_t given_bytes;
    void *taken;         /* where the reply's bytes go, and how many fit */
    size_t room;
    int descriptor;      /* out: what came with the reply, or -1 */
    int keep_on_exec;    /* without FD_CLOEXEC */
    struct reply reply;  /* out */
};

/* Send a call and wait for its reply: 0, or -1 with errno (EFAULT, or EIO without a server, told once). */
int exchange(struct exchange *);
/* Send a call that has no reply: 0 or -1. The two parts behind it may be empty. */
int send_only(struct call *, const void *given, size_t bytes, const void *more, size_t more_bytes);
void channel_begin(const char *path);
void tell(const char *text);

/* fake.c: calls on the server's files. 1 if the descriptor is one, and *result is the call's (with errno). */
int fake_open(int flags);
int fake_ioctl(int descriptor, unsigned long request, unsigned long argument, int *result);
int fake_fallocate(int descriptor, int mode, off_t offset, off_t size, int *result);
int fake_mmap(void *address, size_t size, int prot, int flags, int descriptor, off_t offset, void **result);

/* What fstat is to say of a descriptor of the server's, over what the kernel said of its pipe. */
void fake_fstat(struct stat *seen);

/* shadow.c: calls that the kernel answers and the server hears of. */
void shadow_begin(void);
void shadow_opened(int descriptor);
int shadow_ioctl(int descriptor, unsigned long request, unsigned long argument, int *result);
int shadow_fallocate(int descriptor, int mode, off_t offset, off_t size, int *result);
void shadow_closed(int descriptor);
void shadow_duplicated(int from, int to);
void shadow_closed_range(unsigned first, unsigned last);

#endif
