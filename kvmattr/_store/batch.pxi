# Many pages and many ranges at a time: look-ups and updates without the GIL.

cdef enum:
    # Pages and ranges for each hold of the mutex, by what they may take: a flip 5 ns, a page in an open run list 40 ns,
    # one by itself 140 ns, one that goes the way of a range 1.5 us. At most about 50 us.
    HELD_MOST = 1 << 14
    HELD_FLIP = 4
    HELD_LISTED = 16
    HELD_PAGE = 48
    HELD_SET = 4                # what a machine does beside an update of a series, and
    HELD_QUESTION = 16          # what it asks of the map between two
    HELD_RANGE = 512
    BATCH_SLICE = 1 << 16       # operations between two looks at signals
    SHORT_BATCH = HELD_MOST // HELD_RANGE   # operations that fit one hold whatever they are
    LOOKS = 512                 # looks at what another node may have before all below the node is looked at
    LONGEST_STRETCH = 1 << 12   # pages that go one by one before they are located in groups again
    NEAR_BYTES = 256 << 10      # what a map holds in so many has no part that must be asked for
    FLIPS_FOR_AGAIN = 4         # pages in their place, for each block whose pages are located again, make up for that
    FEW_AGAIN = 4               # so many of a group are no sign yet
    LISTED_PAGES = 64           # more must be left for run lists to be opened; as long at least it is not asked again


# Open run lists pay while at least half of the pages lie in one, after the first of them: `balance` is how many did,
# less those that did not. What did not pay is not tried for a while, the longer the more often it was so. Batches and
# series (series.pxi) go by these two.
cdef inline bint lists_pay(int64_t balance) noexcept nogil:
    return balance >= -2 * LISTED_PAGES

cdef inline size_t longer(size_t stretch) noexcept nogil:
    return 2 * stretch if stretch < LONGEST_STRETCH else LONGEST_STRETCH


# Memory order: a walk reads without the mutex what hangs from a root that it pinned under it. All of that was written
# before some thread gave the mutex back, and is never written again while it is pinned, so the mutex orders it. What is
# read beside it are bias and segment_count: an entry of bias is written once, before segment_count is stored with
# release order; a handle below the pinned root lies in a segment that was there at the pin, and of entries past
# segment_count no kernel reads anything.
cdef inline kvmattr_walk walk_of(const Map *map) noexcept nogil:
    cdef kvmattr_walk walk
    walk.bias = map.family.bias
    walk.root = map.root
    walk.span = level_span(map.level)
    walk.level = map.level
    walk.nsegments = kvmattr_load_int(&map.family.segment_count)
    walk.ahead = 0
    walk.rest = map.rest
    return walk


# ---- batches: groups under the mutex, without the GIL ----

cdef inline uint64_t gfns_copy(uint64_t *copy, const uint64_t *gfns, size_t count) noexcept nogil:
    """A private copy of gfns, and the largest of them. The caller's array is read here and nowhere else: another thread
    may write to it, so what was checked before may be another gfn now."""
    kvmattr_read_once(copy, gfns, count * sizeof(uint64_t))
    return kernels.largest(copy, count)


cdef void gfns_bound(uint64_t *copy, size_t count, uint64_t pages) noexcept nogil:
    """Gfns outside the map, which were inside when they were checked, become the last page: which legal page an array
    names that another thread changes meanwhile is nobody's promise, that it is legal is ours."""
    cdef size_t i
    for i in range(count):
        copy[i] = copy[i] if copy[i] < pages else pages - 1


cdef size_t take_pages(const Map *map, const uint64_t *given, uint8_t *out, size_t count, bint checked,
                       uint64_t *wrong) noexcept nogil:
    """The attributes of pages, a cacheful at a time. Ends before a gfn outside the map, which goes to *wrong, unless
    all were checked before; how many are done."""
    cdef uint64_t[KVMATTR_TAKE_GROUP] gfns
    cdef kvmattr_ruler ruler
    cdef kvmattr_small_ruler small
    cdef kvmattr_walk walk = walk_of(map)
    cdef size_t done = 0, some, i
    cdef bint uniform = entry_handle(walk.root) == 0 and entry_first(walk.root) == walk.rest
    cdef bint ruled = not uniform and map_ruler(map, count, &ruler, &small)
    while done < count:
        some = count - done if count - done < KVMATTR_TAKE_GROUP else KVMATTR_TAKE_GROUP
        if gfns_copy(gfns, given + done, some) >= map.pages:
            if not checked:
                i = 0
                while gfns[i] < map.pages:
                    i += 1
                wrong[0] = gfns[i]
                count = done + i
                break
            gfns_bound(gfns, some, map.pages)
        walk.ahead = <intptr_t>(<uintptr_t>(given + done + some) - <uintptr_t>&gfns[0])
        if uniform:
            memset(out + done, walk.rest, some)
        elif ruled:
            kernels.read_off(&ruler, gfns, walk.ahead, out + done, some)
        elif KVMATTR_COUNTING_BUILD:
            for i in range(some):
                out[done + i] = map_get(map, gfns[i])
        else:
            kernels.take(&walk, gfns, out + done, some)
        done += some
    if ruled:
        ruler_end(&ruler, &small)
    return count


# What a batch is given for each operation, or once for all.
cdef struct Column:
    const uint8_t *cells
    size_t step                 # 0: the first cell is for all


# A batch and how far it has come. The caller's arrays may be changed by another thread: a piece of them is copied, and
# checked once more, before it is used. Operations and masks are ours.
cdef struct Batch:
    const uint64_t *given_starts
    const uint64_t *given_stops     # NULL: single pages
    Column attributes
    Column operations
    Column masks
    uint64_t *starts            # the piece: operations [first, copied)
    uint64_t *stops
    uint8_t *k
    uint8_t *x
    size_t step                 # of k and x: 0 if the first of them is for all
    size_t first
    size_t copied
    Change only                 # k and x if they are for all
    size_t done
    uint64_t changed
    int held                    # what has been done in this hold of the mutex, in units of HELD_MOST
    size_t one_by_one           # up to here, single pages go one by one: to locate them in groups did not pay
    size_t stretch              # how many those were the last time
    size_t asked                # up to here, leaves were asked for
    OpenLists *lists            # behind the piece; NULL in a small batch
    size_t unlisted             # up to here, run lists are not opened: it did not pay
    size_t unlisted_stretch     # how many those will be the next time


cdef void blocks_know_firsts(Map *map, const uint64_t *gfns, uint64_t firsts) noexcept nogil:
    """Pages that are the first of their block, in a leaf of fields and with nothing pending above it, may have been
    written: their values into the blocks' entries."""
    cdef Entry *slot
    cdef Entry e
    while firsts:
        slot = <Entry *>way_down(map.family, &map.root, map.level, 2, gfns[kvmattr_first_bit(firsts)], WAY_SURE).slot
        firsts &= firsts - 1
        e = slot[0]
        slot[0] = entry_make(entry_handle(e), entry_k(e), entry_x(e), entry_varying(e),
                             leaf_raw(map.family, entry_handle(e), 0) & entry_k(e) ^ entry_x(e))


cdef inline uint64_t bits_between(int start, int stop) noexcept nogil:
    return 0 if start >= stop else (<uint64_t>-1 << start) & (<uint64_t>-1 >> (64 - stop))


cdef bint batch_open(Batch *batch, size_t count) noexcept nogil:
    """Room for a piece of a batch of so many operations. False when out of memory."""
    cdef size_t room = count if count < KVMATTR_TAKE_GROUP else KVMATTR_TAKE_GROUP
    cdef size_t cells = room if batch.given_stops == NULL else 2 * room
    cdef size_t lists = sizeof(OpenLists) if count > LISTED_PAGES else 0
    cdef uint8_t attributes = 0
    batch.step = batch.attributes.step | batch.operations.step | batch.masks.step
    batch.stretch = KVMATTR_LOCATED // 2
    batch.unlisted_stretch = LISTED_PAGES
    batch.starts = <uint64_t *>malloc(cells * sizeof(uint64_t) + lists + 2 * room * batch.step)
    if batch.starts == NULL:
        return False
    batch.stops = NULL if batch.given_stops == NULL else batch.starts + room
    batch.lists = <OpenLists *>(batch.starts + cells) if lists else NULL
    if batch.step:
        batch.k = <uint8_t *>(batch.starts + cells) + lists
        batch.x = batch.k + room
    else:
        kvmattr_read_once(&attributes, batch.attributes.cells, 1)
        batch.only = change_of(attributes, batch.operations.cells[0], batch.masks.cells[0])
        batch.k = &batch.only.k
        batch.x = &batch.only.x
    return True


cdef void batch_changes(Batch *batch, size_t first, size_t count) noexcept nogil:
    """k and x of a piece. The attributes may be another thread's, and k and x must come of one reading of them."""
    cdef const uint8_t *operations = batch.operations.cells + first * batch.operations.step
    cdef const uint8_t *masks = batch.masks.cells + first * batch.masks.step
    cdef uint8_t *k = batch.k
    cdef uint8_t *x = batch.x
    cdef int operation = operations[0]
    cdef uint8_t mask = masks[0]
    cdef Change change
    cdef size_t i
    if batch.attributes.step:
        kvmattr_read_once(x, batch.attributes.cells + first, count)
    else:
        kvmattr_read_once(x, batch.attributes.cells, 1)
        memset(x, x[0], count)
    if batch.operations.step == 0 and batch.masks.step == 0:
        # The compiler makes vectors of this loop, which for single pages is a sixth of the time of put.
        for i in range(count):
            change = change_of(x[i], operation, mask)
            k[i] = change.k
            x[i] = change.x
        return
    for i in range(count):
        change = change_of(x[i], operations[i * batch.operations.step], masks[i * batch.masks.step])
        k[i] = change.k
        x[i] = change.x


cdef void batch_copy(const Map *map, Batch *batch, size_t upto) noexcept nogil:
    """The next piece. What is not legal any more becomes legal: it was when all was checked."""
    cdef size_t some = upto - batch.copied, i
    cdef uint64_t pages = map.pages
    some = some if some < KVMATTR_TAKE_GROUP else KVMATTR_TAKE_GROUP
    batch.first = batch.copied
    batch.copied += some
    if batch.step:
        batch_changes(batch, batch.first, some)
    if batch.given_stops == NULL:
        if gfns_copy(batch.starts, batch.given_starts + batch.first, some) >= pages:
            gfns_bound(batch.starts, some, pages)
        return
    kvmattr_read_once(batch.starts, batch.given_starts + batch.first, some * sizeof(uint64_t))
    kvmattr_read_once(batch.stops, batch.given_stops + batch.first, some * sizeof(uint64_t))
    for i in range(some):
        batch.stops[i] = batch.stops[i] if batch.stops[i] < pages else pages
        batch.starts[i] = batch.starts[i] if batch.starts[i] < batch.stops[i] else batch.stops[i]


cdef bint children_shared(const Family *family, const Entry *entries, int level) noexcept nogil:
    """Whether another node has something that lies below a node of a level, as far as its children tell."""
    cdef uint32_t handle
    cdef int i
    for i in range(512):
        handle = entry_handle(entries[i])
        if handle and level > 3 and is_node(handle) and page_info(family, handle >> 9).shares:
            return True
        if handle and reference_count(family, handle)[0] != 1:
            return True
    return False


cdef bint look_for_shares(const Family *family, uint32_t handle, int level, uint64_t gfn) noexcept nogil:
    """Whether the nodes above a page, from one of `level` on, still share what lies below them: looked at from the
    lowest one up to one that does."""
    cdef const Entry *entries = node_at(family, handle)
    cdef PageInfo *info = page_info(family, handle >> 9)
    if level > 3 and look_for_shares(family, entry_handle(entries[index_of(gfn, level)]), level - 1, gfn):
        return True
    info.shares = children_shared(family, entries, level)
    return info.shares


cdef void located_shared(const Map *map, const uint64_t *gfns, int n, kvmattr_located *located) noexcept nogil:
    """Pages whose leaf, or a node above it, another map may hold too are away: it has to be copied first. What was
    copied already is found by two look-ups, of the page's node and of its leaf's count; the second ends when all leaves
    below the node are found to be ours, and both when that was found of all nodes."""
    cdef const Family *family = map.family
    cdef PageInfo *info
    cdef uint64_t left = ~located.away & bits_between(0, n)
    cdef uint32_t handle = entry_handle(map.root)
    cdef Way way
    cdef bint ours
    cdef int i
    if map.level > 2 and leads_to_node(map.root):
        info = page_info(family, handle >> 9)
        if info.references == 1 and not info.shares:
            return
    while left:
        i = kvmattr_first_bit(left)
        left &= left - 1
        way = way_down(family, &map.root, map.level, 2, gfns[i], WAY_SURE | WAY_SHARES)
        info = way.node
        ours = way_owns_leaf(family, &way)
        if ours and info != NULL:
            info.looked += 1
            if info.looked == LOOKS:
                info.looked = 0
                look_for_shares(family, entry_handle(map.root), map.level, gfns[i])
        located.away |= <uint64_t>(not ours) << i


cdef inline int locate(Map *map, const Batch *batch, size_t at, size_t upto, kvmattr_located *located) noexcept nogil:
    """The next group of single pages, up to `upto`; how many they are."""
    cdef kvmattr_walk walk = walk_of(map)
    cdef size_t cell = (at - batch.first) * batch.step
    cdef int n = KVMATTR_LOCATED if upto - at > KVMATTR_LOCATED else <int>(upto - at)
    if n:
        walk.ahead = <intptr_t>(<uintptr_t>(batch.given_starts + batch.copied) - <uintptr_t>batch.starts)
        kernels.locate(&walk, batch.starts + (at - batch.first), n, batch.k + cell, batch.x + cell, batch.step,
                       map.pages - 1, located)
        if map.family.maps.next != NULL:
            located_shared(map, batch.starts + (at - batch.first), n, located)
    return n


cdef inline void ask_for_words(const kvmattr_located *located, int n) noexcept nogil:
    """Have the words of a group come nearer that no other group is written before, or not as many pages."""
    cdef int i
    for i in range(n):
        kvmattr_prefetch_soon(located.where[i])


cdef inline UpdateResult put_one(Map *map, Batch *batch, size_t i) noexcept nogil:
    cdef uint64_t rearranged = map.family.rearranged
    cdef size_t at = i - batch.first, cell = at * batch.step
    cdef UpdateResult result = page_update(map, batch.starts[at], batch.k[cell], batch.x[cell])
    batch.held += HELD_PAGE if map.family.rearranged == rearranged else HELD_RANGE
    if result > 0:
        batch.changed += 1
    return result


cdef uint64_t locate_block_again(const Map *map, const Batch *batch, uint64_t gfn, size_t first, int n,
                                 kvmattr_located *located) noexcept nogil:
    """Of n pages from number `first` on that were located before the leaf or the entry of one block changed, those in
    it anew; which they are. What leads to the block is ours, and nothing is pending there."""
    cdef const uint64_t *gfns = batch.starts + (first - batch.first)
    cdef uint64_t which = kernels.in_block(gfns, n, gfn)
    cdef size_t cell = (first - batch.first) * batch.step
    cdef Way way
    if which:
        way = way_down(map.family, &map.root, map.level, 2, gfn, 0)
        kvmattr_assert(map.family.maps.next == NULL or way.shift > level_shift(2) or entry_handle(way.entry) == 0
                       or leaf_references(map.family, entry_handle(way.entry))[0] == 1)
        kvmattr_locate_again(map.family.bias, way.entry, which, gfns, batch.k + cell, batch.x + cell, batch.step,
                             map.pages - 1, located)
    return which


cdef UpdateResult put_located(Map *map, Batch *batch, size_t upto) noexcept nogil:
    """Single pages up to number `upto`, in order. They are located in groups, one group ahead: while one is written,
    the leaves of the next come nearer. What is not the plain write of a field goes the way of one page, after which
    the others may have to be located again: those of its block, where nothing else changed. Whether a bit varies no
    longer in some leaf is looked at after the fields that follow each other in a group: a page that comes and goes
    there costs two fields. Ends early if locating does not pay, if the mutex was held long enough, or if memory is
    refused."""
    cdef kvmattr_located[2] groups
    cdef kvmattr_located *now = &groups[0]
    cdef kvmattr_located *ahead = &groups[1]
    cdef const uint64_t *gfns
    cdef uint64_t rearranged = map.family.rearranged, blocks, changed, agree, gfn
    cdef int n = locate(map, batch, batch.done, upto, now), following, at, done, flips, again
    cdef UpdateResult result
    ask_for_words(now, n)
    while n:
        following = locate(map, batch, batch.done + n, upto, ahead)
        if following < KVMATTR_LOCATED:
            ask_for_words(ahead, following)
        gfns = batch.starts + (batch.done - batch.first)
        at = flips = again = 0
        while True:
            changed = 0
            done = kvmattr_write_located(now, ahead if following == KVMATTR_LOCATED else now, at, n, &changed)
            if now.firsts:
                blocks_know_firsts(map, gfns, now.firsts & bits_between(at, done))
            agree = kernels.agree(now, at, done)
            while agree:
                gfn = gfns[kvmattr_first_bit(agree)]
                agree &= agree - 1
                blocks = map.family.blocks_changed
                leaf_collapse(map, gfn)
                if map.family.blocks_changed != blocks:
                    again += 1
                    agree &= ~locate_block_again(map, batch, gfn, batch.done, n, now)
                    locate_block_again(map, batch, gfn, batch.done + n, following, ahead)
            batch.changed += changed
            kvmattr_raise_version(&map.version, changed)
            flips += done - at
            at = done
            if at == n:
                break
            blocks = map.family.blocks_changed
            result = put_one(map, batch, batch.done + at)
            if result < 0:
                batch.done += at
                return result
            if map.family.blocks_changed != blocks:
                again += 1
                locate_block_again(map, batch, gfns[at], batch.done, n, now)
                locate_block_again(map, batch, gfns[at], batch.done + n, following, ahead)
            at += 1
            if map.family.rearranged != rearranged or again > FEW_AGAIN and FLIPS_FOR_AGAIN * again > flips:
                break
        batch.done += at
        batch.held += HELD_FLIP * flips
        if flips < KVMATTR_LOCATED // 8 or FLIPS_FOR_AGAIN * again > flips:
            batch.stretch = longer(batch.stretch)
            batch.one_by_one = batch.done + batch.stretch
            break
        batch.stretch = KVMATTR_LOCATED // 2
        if batch.held >= HELD_MOST:
            break
        if map.family.rearranged != rearranged:
            rearranged = map.family.rearranged
            n = locate(map, batch, batch.done, upto, now)
        else:
            now, ahead = ahead, now
            n = following
    return UPDATE_CHANGED


cdef inline bint leaves_far(const Map *map) noexcept nogil:
    """Whether it is worth it to ask for the leaves of what comes later: the caches do not have all by themselves."""
    return not KVMATTR_COUNTING_BUILD and map.family.counters.live_bytes > NEAR_BYTES


cdef inline void ask_for_leaf(const kvmattr_located *located, int i) noexcept nogil:
    """Have the word of a page come nearer, and the count of the references to its leaf, unless that lies elsewhere (see
    leaf_references)."""
    cdef uintptr_t where = <uintptr_t>located.where[i], in_page = where & (PAGE_BYTES - 1)
    cdef uintptr_t place = in_page >> (6 + located.wide[i])
    kvmattr_prefetch_soon(located.where[i])
    kvmattr_prefetch_soon(<void *>(where - in_page + sizeof(uint32_t) * place))


cdef void ask_for_leaves(Map *map, Batch *batch, size_t upto) noexcept nogil:
    """Have the leaves of the next group of single pages come nearer, and the counts of references before them, for
    updates one by one, which cannot wait for several at once."""
    cdef kvmattr_located located
    cdef size_t start = batch.asked if batch.asked > batch.done else batch.done
    cdef int n = locate(map, batch, start, upto, &located), i
    for i in range(n):
        ask_for_leaf(&located, i)
    batch.asked = start + n


cdef UpdateResult put_listed(Map *map, Batch *batch, size_t upto) noexcept nogil:
    """Single pages up to number `upto`, in order, of which many lie in run lists, which are opened; the others go by
    themselves. Ends early if these are too many, if the mutex was held long enough, or if memory is refused."""
    cdef OpenLists *lists = batch.lists
    cdef UpdateResult result = UPDATE_UNCHANGED
    cdef size_t i, cell
    cdef int64_t balance = 0
    cdef uint64_t rearranged = map.family.rearranged
    cdef bint listed
    lists_none(lists)
    if not lists_reserve(map):
        return UPDATE_NO_MEMORY
    while batch.done < upto and batch.held < HELD_MOST:
        i = batch.done - batch.first
        cell = i * batch.step
        if batch.stops != NULL and batch.stops[i] - batch.starts[i] != 1 or not lists_pay(balance):
            break
        result = listed_update(map, lists, batch.starts[i], batch.k[cell], batch.x[cell], &listed)
        if result < 0:
            break
        batch.done += 1
        batch.changed += result
        if listed:
            balance += 1
            batch.held += HELD_LISTED
        else:
            balance -= 1
            batch.held += HELD_PAGE if map.family.rearranged == rearranged else HELD_RANGE
            rearranged = map.family.rearranged
    lists_close(map, lists)
    batch.held += HELD_PAGE * lists.count
    batch.unlisted_stretch = LISTED_PAGES
    return result


cdef bint may_be_listed(const Map *map, Batch *batch, size_t upto) noexcept nogil:
    """Whether it is worth it to open run lists: there are some pages still, and the next one lies in one. Else this is
    not asked for a while, the longer the more often it was not."""
    cdef uint64_t gfn = batch.starts[batch.done - batch.first]
    cdef Entry e
    if batch.lists == NULL or batch.done < batch.unlisted or upto - batch.done <= LISTED_PAGES:
        return False
    if not known_above(map, gfn) and list_level(map, gfn, &e):
        return True
    batch.unlisted = batch.done + batch.unlisted_stretch
    batch.unlisted_stretch = longer(batch.unlisted_stretch)
    return False


cdef UpdateResult put_pages(Map *map, Batch *batch, size_t upto) noexcept nogil:
    """Single pages up to number `upto`, in order; ends early if the mutex was held long enough or memory is refused."""
    cdef UpdateResult result = UPDATE_UNCHANGED
    while batch.done < upto and batch.held < HELD_MOST and result >= 0:
        # Where hardly any page is the plain write of a field, looking ahead does not pay for a while.
        if may_be_listed(map, batch, upto):
            result = put_listed(map, batch, upto)
        elif not KVMATTR_COUNTING_BUILD and batch.done >= batch.one_by_one:
            result = put_located(map, batch, upto)
        else:
            if batch.asked < upto and batch.done + KVMATTR_LOCATED // 2 >= batch.asked and leaves_far(map):
                ask_for_leaves(map, batch, upto)
            result = put_one(map, batch, batch.done)
            batch.done += result >= 0
    return result


cdef void ask_for_ends(Map *map, Batch *batch, size_t upto) noexcept nogil:
    """The same for the leaves in which the next group of ranges begin and end."""
    cdef kvmattr_located located
    cdef kvmattr_walk walk = walk_of(map)
    cdef uint64_t[2][KVMATTR_LOCATED] ends
    cdef size_t start = batch.asked if batch.asked > batch.done else batch.done
    cdef size_t cell = (start - batch.first) * batch.step
    cdef int n = KVMATTR_LOCATED if upto - start > KVMATTR_LOCATED else <int>(upto - start), i, end
    cdef bint ranges = False
    for i in range(n):
        ends[0][i] = batch.starts[start - batch.first + i]
        ends[1][i] = batch.stops[start - batch.first + i] - 1
        if ends[0][i] > ends[1][i]:         # an empty range, perhaps at the end of the map
            ends[0][i] = ends[1][i] = 0
        ranges |= ends[0][i] != ends[1][i]
    for end in range(1 + ranges):             # of single pages both ends are one
        kernels.locate(&walk, ends[end], n, batch.k + cell, batch.x + cell, batch.step, map.pages - 1, &located)
        for i in range(n):
            ask_for_leaf(&located, i)
    batch.asked = start + n


cdef UpdateResult update_ranges(Map *map, Batch *batch, size_t upto) noexcept nogil:
    """The same for ranges."""
    cdef UpdateResult result = UPDATE_UNCHANGED
    cdef size_t i, cell
    while batch.done < upto and batch.held < HELD_MOST:
        if batch.asked < upto and batch.done + KVMATTR_LOCATED // 2 >= batch.asked and leaves_far(map):
            ask_for_ends(map, batch, upto)
        i = batch.done - batch.first
        cell = i * batch.step
        if batch.stops[i] - batch.starts[i] == 1 and may_be_listed(map, batch, upto):
            result = put_listed(map, batch, upto)
            if result < 0:
                break
            continue
        result = map_update(map, batch.starts[i], batch.stops[i], batch.k[cell], batch.x[cell])
        if result < 0:
            break
        batch.changed += result
        batch.held += HELD_RANGE
        batch.done += 1
    return result


cdef UpdateResult batch_group(Map *map, Batch *batch) noexcept nogil:
    """Apply operations of the piece, in order, until there is none left or the mutex was held long enough; with it."""
    cdef UpdateResult result
    batch.held = 0
    if batch.stops == NULL:
        result = put_pages(map, batch, batch.copied)
    else:
        result = update_ranges(map, batch, batch.copied)
    if map.family.untidy:
        family_settle(map.family)
    return result


cdef bint batch_run(Map *map, Batch *batch, size_t upto) noexcept nogil:
    """Apply operations up to number `upto`, in order. False when out of memory at operation `done`."""
    cdef UpdateResult result = UPDATE_UNCHANGED
    while batch.done < upto and result >= 0:
        if batch.done == batch.copied:
            batch_copy(map, batch, upto)
        family_lock_group(map.family)
        result = batch_group(map, batch)
        family_unlock(map.family)
        family_filled(map.family)
    return result >= 0


cdef bint batch_run_short(Map *map, Batch *batch, size_t count) noexcept nogil:
    """The same for a whole batch of SHORT_BATCH at most, as one update: with the GIL, and with the mutex where others
    may write meanwhile."""
    cdef UpdateResult result = UPDATE_UNCHANGED
    cdef bint entered = family_enter(map.family)
    batch_copy(map, batch, count)
    while batch.done < count and result >= 0:
        result = batch_group(map, batch)
    family_leave(map.family, entered)
    family_filled(map.family)
    return result >= 0
