/* A client of /dev/kvm in C: what Python cannot do from one thread. Each scenario prints one line. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SET = 0x4020aed2, PAGES = 2000 };

struct attributes {
    unsigned long long address, size, attributes, flags;
};

static int vm;

/* In place of the C library's: a processor that is wanted by others comes back late. */
static volatile int late, yields;
int sched_yield(void)
{
    yields++;
    if (late)
        usleep(1000);
    return (int)syscall(SYS_sched_yield);
}

static int crowded(void)
{
    late = 1;
    yields = 0;
    for (int each = 0; each < 130; each++)
        ioctl(vm, KVM_CHECK_EXTENSION, 0);
    printf("crowded: %d\n", yields);
    return 0;
}

static void *convert(void *argument)
{
    unsigned long long thread = (unsigned long long)(size_t)argument;
    for (unsigned long long page = 0; page < PAGES; page++) {
        struct attributes each = {(thread * PAGES + page) * 8192, 4096, 8, 0};
        if (ioctl(vm, SET, &each) != 0)
            return "failed";
    }
    return NULL;
}

static int threads(void)
{
    pthread_t started[8];
    void *result;
    int failed = 0;
    for (size_t each = 0; each < 8; each++)
        pthread_create(&started[each], NULL, convert, (void *)each);
    for (size_t each = 0; each < 8; each++) {
        pthread_join(started[each], &result);
        failed += result != NULL;
    }
    printf("threads: %d failed\n", failed);
    return failed;
}

/* Threads that make and delete the same memslots: what each call returns hangs on the order of all of them. */
static void *race(void *argument)
{
    struct kvm_userspace_memory_region each = {.userspace_addr = 1ull << 32};
    unsigned state = (unsigned)(size_t)argument * 2654435761u + 1;
    for (int turn = 0; turn < 400; turn++) {
        state = state * 1664525u + 1013904223u;
        each.slot = state >> 30;
        each.memory_size = state >> 29 & 1 ? 4096 : 0;
        each.guest_phys_addr = (state >> 26 & 1) * 4096;
        ioctl(vm, KVM_SET_USER_MEMORY_REGION, &each);
    }
    return NULL;
}

static int racing(void)
{
    pthread_t started[4];
    for (size_t each = 0; each < 4; each++)
        pthread_create(&started[each], NULL, race, (void *)each);
    for (size_t each = 0; each < 4; each++)
        pthread_join(started[each], NULL);
    puts("racing: done");
    return 0;
}

static volatile unsigned long long handled;

static void on_alarm(int number)
{
    (void)number;
    int before = errno;
    /* Answered otherwise than what it came into, so that the two cannot be taken for each other. */
    if (ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS) == 32764)
        handled++;
    errno = before;
}

/* A handler that calls KVM, in the middle of a call on KVM. */
static int signals(void)
{
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval every = {{0, 500}, {0, 500}};
    setitimer(ITIMER_REAL, &every, NULL);
    void *result = convert(0);
    while (handled < 20)
        result = result ? result : convert(0);
    memset(&every, 0, sizeof every);
    setitimer(ITIMER_REAL, &every, NULL);
    printf("signals: %s\n", result ? "failed" : "done");
    return result != NULL;
}

/* Every number closed, as daemons do; then KVM again, through a new descriptor. */
static int closing(void)
{
    for (int each = 3; each < 2048; each++)
        close(each);
    int files[64];
    for (int each = 0; each < 64; each++)
        files[each] = open("/dev/null", O_RDWR);
    int device = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    printf("closing: %d %d\n", ioctl(device, KVM_GET_API_VERSION, 0), files[0] >= 0);
    return device < 0;
}

/* No number left for the VM. */
static int numbers(void)
{
    int device = open("/dev/kvm", O_RDWR), last = 0;
    for (int each; (each = dup(device)) >= 0;)
        last = each;
    errno = 0;
    int made = ioctl(device, KVM_CREATE_VM, 0), error = errno;
    close(last);
    printf("numbers: %d %s, then %d\n", made, strerror(error), ioctl(device, KVM_CREATE_VM, 0) >= 0);
    return 0;
}

int main(int count, char **words)
{
    const char *name = count > 1 ? words[1] : "threads";
    int device = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    vm = ioctl(device, KVM_CREATE_VM, strcmp(name, "racing") != 0);
    if (device < 0 || vm < 0) {
        perror("/dev/kvm");
        return 3;
    }
    if (strcmp(name, "threads") == 0)
        return threads();
    if (strcmp(name, "racing") == 0)
        return racing();
    if (strcmp(name, "crowded") == 0)
        return crowded();
    if (strcmp(name, "signals") == 0)
        return signals();
    if (strcmp(name, "closing") == 0)
        return closing();
    return numbers();
}
