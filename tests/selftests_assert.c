/* What the kernel's selftests call for each assertion, in place of their own: says of each place in the sources
 * whether it held, and goes on after one that did not, where the test can. */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PLACES = 4096, FAILURES = 12 };

static struct place {
    const char *file, *text;
    unsigned line;
    int held, failed;
} places[PLACES];
static int known, failures;

static void report(void)
{
    FILE *out = fopen(getenv("KVMATTR_ASSERTIONS"), "w");
    if (out == NULL)
        return;
    for (int each = 0; each < known; each++)
        fprintf(out, "%s\t%u\t%d\t%d\t%s\n", places[each].file, places[each].line, places[each].held,
                places[each].failed, places[each].text);
    fclose(out);
}

static struct place *place_of(const char *file, unsigned line, const char *text)
{
    for (int each = 0; each < known; each++)
        if (places[each].line == line && strcmp(places[each].file, file) == 0)
            return &places[each];
    if (known == PLACES)
        return &places[PLACES - 1];
    if (known == 0)
        atexit(report);
    places[known] = (struct place){file, text, line, 0, 0};
    return &places[known++];
}

void test_assert(bool holds, const char *text, const char *file, unsigned line, const char *format, ...);
void test_assert(bool holds, const char *text, const char *file, unsigned line, const char *format, ...)
{
    int error = errno;
    struct place *place = place_of(file, line, text);
    if (holds) {
        place->held++;
        errno = error;
        return;
    }
    place->failed++;
    fprintf(stderr, "%s:%u: %s (%s): ", file, line, text, strerror(error));
    va_list rest;
    va_start(rest, format);
    if (format != NULL)
        vfprintf(stderr, format, rest);
    va_end(rest);
    fputc('\n', stderr);
    /* What fails in the library, or says that it cannot go on, cannot. */
    if (strcmp(text, "false") == 0 || strstr(file, "/lib/") != NULL || strstr(file, "/include/") != NULL
        || ++failures == FAILURES)
        exit(254);
    errno = error;
}
