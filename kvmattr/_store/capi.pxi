# The table behind the capsule kvmattr._core.C_API, in the order of kvmattr.h.

from cpython.pycapsule cimport PyCapsule_New

cdef kvmattr_api api

api.abi_version = KVMATTR_ABI_VERSION
api.struct_size = sizeof(kvmattr_api)
api.error_text = api_error_text
api.map_of = api_map_of
api.view_of = api_view_of
api.object_of = api_object_of
api.create = api_create
api.copy = api_copy
api.destroy = api_destroy
api.share = api_share
api.unshare = api_unshare
api.pages = api_pages
api.version = api_version
api.get = api_get
api.take = api_take
api.all = api_all
api.run = api_run
api.runs = api_runs
api.diff = api_diff
api.update = api_update
api.update_changes = api_update_changes
api.snapshot = api_snapshot
api.release = api_release
api.restore = api_restore
api.cursor_open = api_cursor_open
api.cursor_seek = api_cursor_seek
api.cursor_close = api_cursor_close

# The same functions, counting where there is something to count.
cdef kvmattr_api counting_api = api

counting_api.copy = counted_copy
counting_api.get = counted_get
counting_api.take = counted_take
counting_api.all = counted_all
counting_api.run = counted_run_at
counting_api.runs = counted_runs
counting_api.diff = counted_diff
counting_api.update = counted_update
counting_api.update_changes = counted_update_changes
counting_api.snapshot = counted_snapshot
counting_api.restore = counted_restore
counting_api.cursor_seek = counted_seek


cdef void count_c_calls() noexcept:
    """Clients read an entry at each call: from the next one on they are counted. Calls under way are not."""
    kvmattr_replace_words(&api.error_text, &counting_api.error_text,
                          sizeof(api) - <size_t>(<char *>&api.error_text - <char *>&api))

set_begin_counting(count_c_calls)

C_API = PyCapsule_New(&api, "kvmattr._core.C_API", NULL)
