"""Thin Prefect tasks: open, call, write, return a small reference."""
