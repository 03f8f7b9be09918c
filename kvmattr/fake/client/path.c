/* Whether a path names /dev/kvm, which need not be there: the words count. Whether a descriptor is of that device. */
#undef _FORTIFY_SOURCE
#undef _FILE_OFFSET_BITS
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "library.h"

/* Whether path is /dev/kvm when "//" and "/./" count as "/". */
static int is_device(const char *path)
{
    static const char *const words[] = {"dev", "kvm"};
    for (size_t at = 0; at < 2; at++) {
        if (*path != '/')
            return 0;
        while (*path == '/' || (path[0] == '.' && path[1] == '/'))
            path++;
        size_t length = strlen(words[at]);
        if (strncmp(path, words[at], length) != 0)
            return 0;
        path += length;
    }
    return *path == 0;
}

int is_the_device(int descriptor)
{
    struct stat found;
    int error = errno;
    int is = kernel_fstat(descriptor, &found) == 0 && S_ISCHR(found.st_mode) && found.st_rdev == makedev(10, 232);
    errno = error;
    return is;
}

int names_the_device(int directory, const char *path)
{
    if (path == NULL)
        return 0;
    if (*path == '/')
        return is_device(path);
    size_t length = strlen(path);
    if (length < 3 || strcmp(path + length - 3, "kvm") != 0 || length > 64)
        return 0;
    /* Below a directory: where that is, is asked only of names that end so. */
    char name[64], place[4096 + 80];
    int error = errno;
    if (directory == AT_FDCWD)
        strcpy(name, "/proc/self/cwd");
    else
        snprintf(name, sizeof name, "/proc/self/fd/%d", directory);
    ssize_t got = readlink(name, place, 4096);
    errno = error;
    if (got <= 0)
        return 0;
    place[got] = '/';
    memcpy(place + got + 1, path, length + 1);
    return is_device(place);
}
