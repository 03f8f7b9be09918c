import numpy as np
from numpy.typing import NDArray

def ioctl_many(
    descriptor: int, request: int, records: NDArray[np.uint8]
) -> tuple[int, int]:
    """Issue ``request`` once for each row of ``records``, in order, and stop at the first that fails.

    ``records``: uint8[n, size of the structure], C-contiguous. Returns ``(done, error)``: how many calls
    succeeded and the errno of the one after them, 0 when all did. The GIL is released.
    """
def read_private(
    vcpu: int, request: int, shared: memoryview, gfns: NDArray[np.uint64], out: NDArray[np.uint8]
) -> tuple[int, int]:
    """Ask KVM for each page whether it is private: ``request`` is KVM_PRE_FAULT_MEMORY.

    ``vcpu``: its file descriptor; ``shared``: the vCPU's struct kvm_run. ``out[i]`` becomes 1 where ``gfns[i]``
    is private. Returns ``(done, error)`` as ``ioctl_many`` does; a signal ends it with EINTR. The GIL is
    released.

    A page that is private and has no guest_memfd behind it cannot be mapped: EFAULT, and the exit says that the
    access was a private one. Every other outcome is that of a shared access: done, no memslot (ENOENT), or memory
    that user space itself may not read (EFAULT without such an exit).
    """
