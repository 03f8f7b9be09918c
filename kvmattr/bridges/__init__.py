"""Bridges to other machines: real /dev/kvm, Unicorn."""
