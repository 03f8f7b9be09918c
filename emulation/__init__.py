"""A kernel of one's own under emulation, with kvmattr inside: `python3 dev.py kernel`."""
