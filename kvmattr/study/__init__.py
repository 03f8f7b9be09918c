"""The study: what a page conversion costs, by attributes and by memslots."""
