"""Which VM a file descriptor is: what KVM_CREATE_VM returned, to which process, and what was closed since.

Processes that the log has seen to share their files (threads) are one table; of a process that it has not
seen being made, a descriptor is looked for in all tables. A descriptor that no line of the log has made is
a VM of its own: the log begins in the middle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kvmattr.trace.native import Mismatch
from kvmattr.trace.operations import UNKNOWN, Record
from kvmattr.trace.owners import NewGuest, Owners
from kvmattr.trace.session import Guest
from kvmattr.trace.sources import Source

#: Numbers for guest_memfds whose descriptor's number was another file's before.
_SECOND_NUMBERS = 1 << 20


class GuestMemfd:
    """One guest_memfd file; `number` stands for it in the trace, and is its descriptor's wherever it can be."""

    def __init__(self, number: int, guest: Guest | None = None) -> None:
        self.number = number
        #: The VM that it was made of, if a line tells.
        self.guest = guest


Entry = Guest | GuestMemfd


class Files:
    """The files that a process, or all its threads, have by descriptor; `index` is told of each change."""

    def __init__(self, index: Index, entries: dict[int, Entry] | None = None) -> None:
        self._index = index
        self._entries: dict[int, Entry] = {}
        for file, entry in (entries or {}).items():
            self.put(file, entry)

    def get(self, file: int) -> Entry | None:
        """The file of a descriptor."""
        return self._entries.get(file)

    def put(self, file: int, entry: Entry) -> None:
        """Make the descriptor this file."""
        self.pop(file)
        self._entries[file] = entry
        self._index.setdefault(file, Counter())[entry] += 1

    def pop(self, file: int) -> bool:
        """Close a descriptor; whether it was one of ours."""
        entry = self._entries.pop(file, None)
        if entry is None:
            return False
        holders = self._index[file]
        holders[entry] -= 1
        if not holders[entry]:
            del holders[entry]
        return True

    def between(self, first: int, last: int) -> list[int]:
        """Our descriptors from first to last."""
        return [file for file in self._entries if first <= file <= last]

    def guests(self) -> list[Guest]:
        """The VMs among the files."""
        return [entry for entry in self._entries.values() if isinstance(entry, Guest)]

    def copy(self) -> Files:
        """What a new process without its parent's table has."""
        return Files(self._index, self._entries)


#: By descriptor: what it is, and in how many tables.
Index = dict[int, Counter[Entry]]


class Process:
    """A process or thread of the log, and the table of the files that it has."""

    def __init__(self, owner: Descriptors, pid: int | None, files: Files) -> None:
        self.pid = pid
        self.files = files
        self._owner = owner

    def create_guest(self, file: int, line: int) -> None:
        """KVM_CREATE_VM returned this descriptor."""
        self.files.put(file, self._owner.new_guest(self.pid, file, line))

    def create_guest_memfd(self, file: int, guest: Guest) -> int:
        """KVM_CREATE_GUEST_MEMFD of a VM returned this descriptor; the number that stands for the file."""
        made = self._owner.new_guest_memfd(file, guest)
        self.files.put(file, made)
        return made.number

    def known_file(self, file: int) -> GuestMemfd | None:
        """The guest_memfd of a descriptor, if a line has made it one."""
        found = self.files.get(file) or self._owner.elsewhere(file)
        return found if isinstance(found, GuestMemfd) else None

    def file_of_guest(self, file: int, line: int) -> tuple[int, Guest | None]:
        """The number of a guest_memfd and the VM that it is of; one of its own where no line has made it."""
        found = self.files.get(file) or self._owner.elsewhere(file)
        if isinstance(found, Guest):
            raise Mismatch(f"descriptor {file} is a VM, not a guest_memfd")
        if found is None:
            found = self._owner.new_guest_memfd(file)
            self.files.put(file, found)
        if found.guest is None:
            found.guest = self._owner.only_guest() or self._owner.unmade(self.pid, file, None, UNKNOWN, line)
        return found.number, found.guest

    def takes(self, file: int, *, of_vm: bool) -> bool:
        """Whether a line has made or used this descriptor as a VM or, not `of_vm`, as a guest_memfd."""
        found = self.files.get(file) or self._owner.elsewhere(file)
        if found is None:
            return of_vm and self._owner.is_unmade(file)
        return isinstance(found, Guest if of_vm else GuestMemfd)

    def close(self, file: int) -> bool:
        """Whether the closed descriptor was one of ours."""
        return self.files.pop(file) or self._owner.forget_unmade(self.pid, file)

    def close_range(self, first: int, last: int) -> None:
        """Close the descriptors from first to last."""
        for file in self.files.between(first, last):
            self.files.pop(file)

    def duplicate(self, file: int, copy: int) -> bool:
        """Whether what was duplicated is ours; what the copy's number was before is closed."""
        self.files.pop(copy)
        found = self.files.get(file) or self._owner.elsewhere(file)
        if found is not None:
            self.files.put(copy, found)
        return found is not None

    def guest(self, file: int, record: Record | None, answer: int, line: int) -> Guest | None:
        """The VM of a descriptor; one of its own where no line has made it, None where `Owners` has none to give."""
        found, owner = self.files.get(file), self._owner
        if found is None and not owner.is_unmade(file, self.pid):
            found = owner.elsewhere(file, f"process {self.pid}")
            if isinstance(found, Guest) and found.contradicts(record, answer) is not None and not owner.gaps:
                found = None    # what another process has by this descriptor is another VM
        if isinstance(found, GuestMemfd):
            raise Mismatch(f"descriptor {file} is a guest_memfd, not a VM")
        return found if found is not None else owner.unmade(self.pid, file, record, answer, line)

    def guest_memfd(self, file: int) -> int:
        """The number that stands for the file of a descriptor in REGION2."""
        if file < 0:
            return file
        found = self.files.get(file) or self._owner.elsewhere(file)
        if not isinstance(found, GuestMemfd):
            found = self._owner.new_guest_memfd(file)
            self.files.put(file, found)
        return found.number


class Descriptors:
    """The tables of all processes of a log. `new_guest(pid, file, line)` makes a VM and numbers it.

    `owners(file)` gives the VMs of a descriptor that no line has made.
    """

    def __init__(self, new_guest: NewGuest, owners: Callable[[int], Owners]) -> None:
        self.new_guest = new_guest
        self._owners = owners
        #: Whether lines of the log are known to be lost.
        self.gaps = False
        self._processes: dict[int | None, Process] = {}
        self._index: Index = {}
        self._unmade: dict[int, Owners] = {}
        self._numbers: set[int] = set()

    def process(self, pid: int | None) -> Process:
        """The process or thread with this number; None where the log names none."""
        if pid not in self._processes:
            self._processes[pid] = Process(self, pid, Files(self._index))
        return self._processes[pid]

    def guest_of(self, pid: int) -> Guest | None:
        """The VM of a process or thread that has exactly one, by its descriptors."""
        found = set(self._processes[pid].files.guests()) if pid in self._processes else set()
        return found.pop() if len(found) == 1 else None

    def child(self, parent: Process, pid: int, *, shared: bool) -> None:
        """A new process, with its parent's files or, if not shared, a copy of its table."""
        self._processes[pid] = Process(self, pid, parent.files if shared else parent.files.copy())

    def elsewhere(self, file: int, who: str = "") -> Guest | GuestMemfd | None:
        """What other processes know by this descriptor. With `who`, Mismatch if that is several things."""
        found = list(self._index.get(file, ()))
        if len(found) > 1 and who:
            raise Mismatch(f"descriptor {file} is another file in each of {len(found)} processes, and no line tells"
                           f" whose {who} has: record with strace -f -e trace=ioctl,close,clone,clone3,fork,"
                           "vfork,dup,dup2,dup3,fcntl")
        return found[0] if len(found) == 1 else None

    def unmade(self, pid: int | None, file: int, record: Record | None, answer: int, line: int) -> Guest | None:
        """The VM of a descriptor that no line has made."""
        if file not in self._unmade:
            self._unmade[file] = self._owners(file)
        return self._unmade[file].guest(Source(thread=pid), record, answer, line, gaps=self.gaps)

    def is_unmade(self, file: int, pid: int | None = None) -> bool:
        """Whether a descriptor is of a VM that no line has made; with `pid`, whether that thread has used it."""
        return file in self._unmade and (pid is None or self._unmade[file].knows(Source(thread=pid)))

    def forget_unmade(self, pid: int | None, file: int) -> bool:
        """Close a descriptor of a VM that no line has made; whether the process is the one that used it."""
        guests = self._unmade[file].guests if file in self._unmade else []
        if guests and guests[-1].pid == pid:
            del self._unmade[file]
            return True
        return False

    def finish(self, tell: Callable[[str], None]) -> None:
        """Tell what could not be decided."""
        for owners in self._unmade.values():
            owners.finish(tell)

    def only_guest(self) -> Guest | None:
        """The VM, if there is one alone."""
        guests = {entry for holders in self._index.values() for entry in holders if isinstance(entry, Guest)}
        guests.update(guest for owners in self._unmade.values() for guest in owners.guests)
        return guests.pop() if len(guests) == 1 else None

    def new_guest_memfd(self, file: int, guest: Guest | None = None) -> GuestMemfd:
        """A new file, with its descriptor's number if no other file has it."""
        number = file
        if number in self._numbers:
            number = _SECOND_NUMBERS + len(self._numbers)
        self._numbers.add(number)
        return GuestMemfd(number, guest)
