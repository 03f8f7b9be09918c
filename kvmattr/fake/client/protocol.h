/* What the preloaded library and the server say to each other, over a SOCK_SEQPACKET socket of this machine.
 *
 * One connection a thread. The library sends a call and waits for its reply; in between the server may ask for
 * something (see enum question). kvmattr/fake/wire.py has the same numbers for the server.
 */
#ifndef KVMATTR_FAKE_PROTOCOL_H
#define KVMATTR_FAKE_PROTOCOL_H

#include <stdint.h>

enum { PROTOCOL_VERSION = 1 };

enum kind {
    HELLO = 1,     /* words: version, pid, nonce, whether it is a shadow; no reply */
    OPEN = 2,      /* a new descriptor of /dev/kvm comes with the reply */
    IOCTL = 3,     /* words: request, argument, descriptor, bytes of the structure; then the structure */
    FALLOCATE = 4, /* words: mode, offset, size */
    MMAP = 5,      /* words: offset, size, prot, flags; a file to map comes with the reply */
    ANSWER = 6,    /* to a question; words: errno; then what was asked for */
    SEEN = 7,      /* a call that the kernel has answered (struct seen); no reply */
    CLOSED = 8,    /* the last descriptor of a file in this process was closed; no reply */
    STAT = 9,      /* the file's size comes as the result; NOT_OURS where the kernel's answer will do */
};

enum question {
    NONE = 0,
    WHICH = 1,    /* which of the server's files is descriptor `address`? */
    READ = 2,     /* `length` bytes at `address` */
    ROOM = 3,     /* the reply, which follows, has `length` bytes for the argument; no answer */
    NOT_OURS = 4, /* no file of the server's: the C library is to do the call */
};

enum { UNREADABLE = 1 /* flags of a call: its structure could not be read, and is missing */ };

struct call {
    uint32_t kind;
    uint32_t flags;
    uint64_t file; /* inode of the descriptor's pipe; of a shadow: the number that the library gave to the file */
    uint64_t words[6];
};

struct reply {
    int64_t result;
    int32_t error;
    uint32_t question;
    uint64_t address;
    uint64_t length;
};

#endif
