"""Images of physical memory: `.kho` files, raw dumps, ELF dumps."""
