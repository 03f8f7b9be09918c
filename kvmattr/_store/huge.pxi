# Huge pages: memory of the arena that is in use becomes one page of the system, of 2 MiB.
#
# A look-up of a random page of a large guest waits for its leaf, and where leaves take more than a few megabytes also
# for the walk of the system's page table to it; a dense array of that size has huge pages from the beginning. To have
# them so would make memory resident that holds nothing: a new map of 1 MB would take 2. So it is done afterwards, to
# 2 MiB of which every page is resident, and nothing else becomes so. (A few of them may be free: an update that keeps
# the state before it, as C's update_changes does, always leaves some.) A system that copies them into a huge page takes
# about as long as it took to hand out the small ones (MADV_COLLAPSE, Linux 6.1; elsewhere nothing changes). That is too
# long for the mutex: the writer that filled them asks for it after giving the mutex back, and nobody needs to wait.

cdef extern from *:
    """
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    #if defined(__linux__) && !defined(MADV_COLLAPSE)
    #define MADV_COLLAPSE 25
    #endif
    static int kvmattr_line_of(const char *path, char *line, int room)
    {
        FILE *file = fopen(path, "re");
        int read = file && fgets(line, room, file);
        if (file)
            fclose(file);
        return read;
    }
    /* Whether the system has huge pages of this size and its owner lets programs use them. Asked once. */
    static int kvmattr_huge_allowed(size_t bytes)
    {
        static int allowed = -1;
        int now = __atomic_load_n(&allowed, __ATOMIC_RELAXED);
        if (now < 0) {
            char line[64];
            now = kvmattr_line_of("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line) &&
                  !strstr(line, "[never]") &&
                  kvmattr_line_of("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", line, sizeof line) &&
                  strtoull(line, NULL, 10) == bytes;
            __atomic_store_n(&allowed, now, __ATOMIC_RELAXED);
        }
        return now;
    }
    static void kvmattr_make_huge(void *memory, size_t bytes)
    {
    #ifdef MADV_COLLAPSE
        if (kvmattr_huge_allowed(bytes))
            (void)madvise(memory, bytes, MADV_COLLAPSE);
    #else
        (void)memory, (void)bytes, (void)kvmattr_huge_allowed;
    #endif
    }
    """
    void kvmattr_make_huge(void *memory, size_t bytes) nogil


cdef bint all_resident(const PageInfo *pages) noexcept nogil:
    """Whether each of so many pages as make a huge one is."""
    cdef int i
    for i in range(HUGE_PAGES):
        if pages[i].kind == PAGE_CLEAN:
            return False
    return True


cdef char *next_filled(Family *family) noexcept nogil:
    """Memory that has been filled since the last look, a huge page of it; NULL when there is no more. With the mutex.
    What has a clean page is left as it is, but for the end of a segment: its last pages are handed out later."""
    cdef Segment *segment
    cdef const PageInfo *pages
    cdef int number
    cdef bint full
    for number in range(2, family.segment_count):
        segment = &family.segments[number]
        while segment.looked_at + HUGE_PAGES <= segment.touched:
            pages = segment.pages + segment.looked_at
            full = all_resident(pages)
            if not full and segment.looked_at + HUGE_PAGES == segment.capacity and family.clean_pages:
                break
            segment.looked_at += HUGE_PAGES
            if full:
                return segment.memory + <size_t>(segment.looked_at - HUGE_PAGES) * PAGE_BYTES
    kvmattr_store_int(&family.filled, 0)
    return NULL


cdef void family_make_huge(Family *family) noexcept nogil:
    cdef char *memory
    cdef bint entered
    while True:
        entered = family_enter(family)
        memory = next_filled(family)
        family_leave(family, entered)
        if memory == NULL:
            return
        kvmattr_make_huge(memory, HUGE_BYTES)


cdef inline void family_filled(Family *family) noexcept nogil:
    """After a writer has given the mutex back, while it still has its map."""
    if kvmattr_load_int(&family.filled):
        family_make_huge(family)
