/* A thread's connection to the server.
 *
 * Nothing here may surprise the program: its descriptors are its own (a connection that the program closed, by
 * closing every number, is noticed by its inode and made anew), its errno changes only with a result, its
 * signals interrupt nothing (a call on KVM that a handler makes has a connection of its own), and its pointers are
 * followed by the kernel, which answers EFAULT where there is no memory.
 */
#undef _FORTIFY_SOURCE
#undef _FILE_OFFSET_BITS
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "library.h"

struct channel {
    int descriptor; /* -1: none yet */
    pid_t pid;      /* whose it is: a forked child makes its own */
    ino_t inode;
    int busy;       /* a signal handler that comes now must not use it */
};

static _Thread_local struct channel of_thread __attribute__((tls_model("initial-exec"))) = {-1, 0, 0, 0};
/* A shadow's threads share one, so that the server hears of their calls in order; shadow.c gives them turns. */
static struct channel of_shadow = {-1, 0, 0, 0};
static struct sockaddr_un server;
static pthread_key_t at_thread_end;
static uint64_t nonce; /* of this address space: a fork and an exec make another */
static atomic_int told;

void tell(const char *text)
{
    static const char before[] = "kvmattr: ", after[] = "\n";
    int error = errno;
    /* The program may be out of memory, or in a signal handler: three writes, and what fails, fails. */
    ssize_t ignored = write(2, before, sizeof before - 1);
    ignored = write(2, text, strlen(text));
    ignored = write(2, after, sizeof after - 1);
    (void)ignored;
    errno = error;
}

static struct channel *mine(void) { return library_mode == SHADOW ? &of_shadow : &of_thread; }

static int is_whole(const struct channel *channel)
{
    struct stat seen;
    return kernel_fstat(channel->descriptor, &seen) == 0 && seen.st_ino == channel->inode;
}

static void new_nonce(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    nonce = ((uint64_t)getpid() << 40) ^ ((uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec) ^ nonce << 7;
}

static void thread_ends(void *channel)
{
    struct channel *ended = channel;
    if (ended->descriptor >= 0 && ended->pid == getpid() && is_whole(ended))
        syscall(SYS_close, ended->descriptor);
    ended->descriptor = -1;
}

void channel_begin(const char *path)
{
    server.sun_family = AF_UNIX;
    strncpy(server.sun_path, path, sizeof server.sun_path - 1);
    new_nonce();
    pthread_key_create(&at_thread_end, thread_ends);
    pthread_atfork(NULL, NULL, new_nonce);
}

static int no_server(void)
{
    if (!atomic_exchange(&told, 1))
        tell(library_mode == SHADOW ? "the server has gone: calls are no longer compared"
                                    : "the server has gone: every call on KVM fails with EIO");
    errno = EIO;
    return -1;
}

/* Connect, out of the way of the small numbers that programs count on. */
static int connected(void)
{
    int low = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (low < 0)
        return -1;
    struct ucred peer;
    socklen_t size = sizeof peer;
    int result;
    do
        result = connect(low, (struct sockaddr *)&server, sizeof server);
    while (result < 0 && errno == EINTR);
    if (result < 0 || getsockopt(low, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != geteuid()) {
        syscall(SYS_close, low);
        return no_server();
    }
    struct call hello = {HELLO, 0, 0, {PROTOCOL_VERSION, (uint64_t)getpid(), nonce, library_mode == SHADOW, 0, 0}};
    if (send(low, &hello, sizeof hello, MSG_NOSIGNAL) < 0) {
        syscall(SYS_close, low);
        return no_server();
    }
    int high = (int)syscall(SYS_fcntl, low, F_DUPFD_CLOEXEC, 900);
    if (high < 0)
        return low;
    syscall(SYS_close, low);
    return high;
}

/* A channel's descriptor, made where there is none; -1 with errno. */
static int made(struct channel *channel)
{
    if (channel->descriptor >= 0) {
        if (is_whole(channel)) {
            if (channel->pid == getpid())
                return channel->descriptor;
            syscall(SYS_close, channel->descriptor); /* the parent's, which came with the fork */
        }
        channel->descriptor = -1;
    }
    struct stat seen;
    int descriptor = connected();
    if (descriptor < 0)
        return -1;
    kernel_fstat(descriptor, &seen);
    channel->inode = seen.st_ino;
    channel->pid = getpid();
    channel->descriptor = descriptor;
    if (channel == &of_thread)
        pthread_setspecific(at_thread_end, channel);
    return descriptor;
}

/* A connection for one call: the thread's, or, inside a signal handler that came into a call, one of its own. */
static int take_channel(int *own)
{
    struct channel *channel = mine();
    *own = channel->busy;
    if (channel->busy)
        return connected();
    channel->busy = 1;
    int descriptor = made(channel);
    if (descriptor < 0)
        channel->busy = 0;
    return descriptor;
}

static void give_channel(int descriptor, int own)
{
    int error = errno;
    if (own)
        syscall(SYS_close, descriptor);
    else
        mine()->busy = 0;
    errno = error;
}

static int send_all(int descriptor, struct call *call, const void *given, size_t bytes, const void *more,
                    size_t more_bytes)
{
    struct iovec parts[3] = {{call, sizeof *call}, {(void *)(uintptr_t)given, bytes},
                             {(void *)(uintptr_t)more, more_bytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = more_bytes ? 3 : bytes ? 2 : 1};
    ssize_t sent;
    do
        sent = sendmsg(descriptor, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return errno == EFAULT ? -1 : no_server();
    return 0;
}

/* So long a thread looks for its answer before it sleeps. A processor that comes back later than LATE_NS after it was
   yielded is wanted by others: who sleeps is woken sooner than that, so the next SLEEPY_CALLS do. */
enum { WAKEFUL_NS = 100 * 1000, LATE_NS = 50 * 1000, SLEEPY_CALLS = 64 };
static _Atomic int sleepy;

static uint64_t nanoseconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static int receive(int descriptor, struct exchange *each)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec parts[2] = {{&each->reply, sizeof each->reply}, {each->taken, each->room}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = each->room ? 2 : 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    int flags = each->keep_on_exec ? 0 : MSG_CMSG_CLOEXEC;
    int wakeful = atomic_load_explicit(&sleepy, memory_order_relaxed) <= 0;
    if (!wakeful)
        atomic_fetch_sub_explicit(&sleepy, 1, memory_order_relaxed);
    uint64_t begun = wakeful ? nanoseconds() : 0, before = begun;
    ssize_t got;
    /* The answer comes within microseconds: to sleep until then, and be woken, takes longer on an idle processor. */
    do {
        message.msg_controllen = sizeof control;
        got = recvmsg(descriptor, &message, wakeful ? flags | MSG_DONTWAIT : flags);
        if (got < 0 && wakeful && errno == EAGAIN) {
            sched_yield();
            uint64_t after = nanoseconds();
            if (after - before > LATE_NS)
                atomic_store_explicit(&sleepy, SLEEPY_CALLS, memory_order_relaxed);
            wakeful = after - before <= LATE_NS && after - begun < WAKEFUL_NS;
            before = after;
            errno = EINTR; /* try again */
        }
    } while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EFAULT)
        return -1; /* as KVM, which could not copy its answer out */
    if (got < (ssize_t)sizeof each->reply)
        return no_server();
    each->descriptor = -1;
    struct cmsghdr *came = CMSG_FIRSTHDR(&message);
    if (came != NULL && came->cmsg_level == SOL_SOCKET && came->cmsg_type == SCM_RIGHTS)
        memcpy(&each->descriptor, CMSG_DATA(came), sizeof(int));
    else if (message.msg_flags & MSG_CTRUNC) {
        each->reply.result = -1;
        each->reply.error = EMFILE; /* the program has no number left for it */
    }
    return 0;
}

/* Answer what the server asks in the middle of a call. */
static int answer(int descriptor, struct exchange *each)
{
    struct call call = {ANSWER, 0, 0, {0}};
    const void *given = NULL;
    size_t bytes = 0;
    struct stat seen;
    if (each->reply.question == WHICH) {
        if (kernel_fstat((int)each->reply.address, &seen) < 0)
            call.words[0] = (uint64_t)errno;
        else if (S_ISFIFO(seen.st_mode))
            call.file = seen.st_ino;
    } else {
        given = (const void *)(uintptr_t)each->reply.address;
        bytes = each->reply.length;
    }
    if (send_all(descriptor, &call, given, bytes, NULL, 0) == 0)
        return 0;
    if (errno != EFAULT)
        return -1;
    call.flags = UNREADABLE;
    return send_all(descriptor, &call, NULL, 0, NULL, 0);
}

static int converse(int descriptor, struct exchange *each)
{
    if (send_all(descriptor, &each->call, each->given, each->given_bytes, NULL, 0) < 0) {
        if (errno != EFAULT)
            return -1;
        /* The server says which error comes first. */
        each->call.flags |= UNREADABLE;
        each->room = 0;
        if (send_all(descriptor, &each->call, NULL, 0, NULL, 0) < 0)
            return -1;
    }
    for (;;) {
        if (receive(descriptor, each) < 0)
            return -1;
        switch (each->reply.question) {
        case NONE:
        case NOT_OURS:
            return 0;
        case ROOM:
            each->room = each->reply.length;
            break;
        default:
            if (answer(descriptor, each) < 0)
                return -1;
        }
    }
}

int exchange(struct exchange *each)
{
    int own, descriptor = take_channel(&own);
    each->descriptor = -1;
    if (descriptor < 0)
        return -1;
    int result = converse(descriptor, each);
    if (result < 0 && !own && errno == EFAULT) {
        /* The reply is gone with its address, or still to come if the address could not even be asked for: whoever calls
         * next must not take it for his. */
        syscall(SYS_close, descriptor);
        mine()->descriptor = -1;
        errno = EFAULT;
    }
    give_channel(descriptor, own);
    return result;
}

int send_only(struct call *call, const void *given, size_t bytes, const void *more, size_t more_bytes)
{
    int own, descriptor = take_channel(&own);
    if (descriptor < 0)
        return -1;
    int result = send_all(descriptor, call, given, bytes, more, more_bytes);
    give_channel(descriptor, own);
    return result;
}
