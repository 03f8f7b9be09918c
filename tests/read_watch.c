/* Another thread's hand between two loads, at any of them: every load of a piece of memory faults and is let through
 * alone, and just before the one that is asked for, all of the memory is written anew.
 *
 * For x86-64 Linux: the processor's trap flag ends each load that was let through.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { TRAP = 0x100, WRITES = 2 };

static char *begin, *end;
static const void *written;
static size_t loads, moment;
static struct sigaction before[2];

static void on_fault(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    char *at = info->si_addr;
    if (at < begin || at >= end) {
        sigaction(number, &before[0], NULL); /* somebody else's: it faults once more */
        return;
    }
    mprotect(begin, (size_t)(end - begin), PROT_READ | PROT_WRITE);
    if (!(registers[REG_ERR] & WRITES) && loads++ == moment)
        memcpy(begin, written, (size_t)(end - begin));
    registers[REG_EFL] |= TRAP;
}

static void on_step(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    mprotect(begin, (size_t)(end - begin), PROT_NONE);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)TRAP;
}

/* Whole pages of memory; NULL where there are none. */
void *watch_memory(size_t bytes)
{
    void *made = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return made == MAP_FAILED ? NULL : made;
}

/* From now on, and before the load of this number (from 0 on) what is given is written over it. */
int watch_begin(void *memory, size_t bytes, const void *over, size_t number)
{
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    struct sigaction step = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};
    begin = memory;
    end = begin + bytes;
    written = over;
    loads = 0;
    moment = number;
    if (sigaction(SIGSEGV, &fault, &before[0]) != 0 || sigaction(SIGTRAP, &step, &before[1]) != 0)
        return -1;
    return mprotect(memory, bytes, PROT_NONE);
}

/* How many loads there were. */
size_t watch_end(void)
{
    mprotect(begin, (size_t)(end - begin), PROT_READ | PROT_WRITE);
    sigaction(SIGSEGV, &before[0], NULL);
    sigaction(SIGTRAP, &before[1], NULL);
    begin = end = NULL;
    return loads;
}
