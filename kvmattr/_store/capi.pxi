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

C_API = PyCapsule_New(&api, "kvmattr._core.C_API", NULL)
