/* The entry: one 64-bit word for a subtree of any size, handle:32 | k:8 | x:8 | V:8 | F:8 from the low end up (the store's
 * essay says what they are). Only here stands where its parts begin, and how many bits of a gfn a level takes. */
#ifndef KVMATTR_KERNELS_ENTRY_H
#define KVMATTR_KERNELS_ENTRY_H

enum { KVMATTR_K = 32, KVMATTR_X = 40, KVMATTR_V = 48, KVMATTR_F = 56 };

/* An entry of level 1 would be one page, of level 2 it covers a block of 512 pages, of level 3 a node of 512 blocks. */
enum { KVMATTR_LEVEL_BITS = 9 };
#define KVMATTR_LEVEL_SHIFT(level) (KVMATTR_LEVEL_BITS * ((level) - 1))

#endif /* KVMATTR_KERNELS_ENTRY_H */
