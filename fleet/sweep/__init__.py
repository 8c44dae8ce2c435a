"""Sweeps: one scenario over parameters and seeds, run in parallel and kept in one file."""
