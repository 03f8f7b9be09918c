"""Traces: formats in and out, and their replay through backends."""
