/* The sets of kernels (contract.h says what each does) and the choice among them, made once at import. */
#ifndef KVMATTR_KERNELS_CHOOSE_H
#define KVMATTR_KERNELS_CHOOSE_H

#include "plain.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define KVMATTR_X86 1
#include "avx2.h"
#include "avx512.h"
#endif

/* The set called `name`, or the best one of this machine for NULL. NULL if the machine lacks it or there is
 * none of that name. */
static const kvmattr_kernels *kvmattr_choose(const char *name)
{
    kvmattr_fill_spread();
    kvmattr_fill_folded();
#ifdef KVMATTR_X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") &&
               __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512vpopcntdq");
    if (avx512 && (!name || !strcmp(name, "avx512")))
        return &kvmattr_avx512;
    if (avx2 && (!name || !strcmp(name, "avx2")))
        return &kvmattr_avx2;
#endif
    return !name || !strcmp(name, "portable") ? &kvmattr_portable : NULL;
}

#endif /* KVMATTR_KERNELS_CHOOSE_H */
