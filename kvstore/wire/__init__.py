"""Encodings: what bytes mean between nodes and between clients and nodes. Pure, no I/O."""
