"""Corruptions of a handover, each with the outcome that Linux 7.3 has for it."""
