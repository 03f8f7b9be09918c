/* WRITE, OR and AND of the bits within a mask, as one form: new = (old & k) ^ x. This is the only place that says so. */
#ifndef KVMATTR_OPERATION_H
#define KVMATTR_OPERATION_H

#include <stdint.h>

enum { KVMATTR_OPERATION_WRITE = 0, KVMATTR_OPERATION_OR = 1, KVMATTR_OPERATION_AND = 2 };

typedef struct kvmattr_update_form {
    uint8_t k, x;
} kvmattr_update_form;

static inline kvmattr_update_form kvmattr_update_form_of(uint8_t attributes, int operation, uint8_t mask)
{
    uint8_t within = attributes & mask;
    kvmattr_update_form form = {(uint8_t)~mask, within};
    if (operation == KVMATTR_OPERATION_OR) {
        form.k = (uint8_t)~within;
    } else if (operation == KVMATTR_OPERATION_AND) {
        form.k = attributes | (uint8_t)~mask;
        form.x = 0;
    }
    return form;
}

#endif /* KVMATTR_OPERATION_H */
