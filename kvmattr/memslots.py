"""Memslots: KVM's table of them, and the baseline that converts pages by splitting them."""

from kvmattr._memslots import GuestMemfd, Memslot, MemslotTable, SplittingBaseline

__all__ = ["GuestMemfd", "Memslot", "MemslotTable", "SplittingBaseline"]
