"""A model of one Linux host's live-update machinery: LUO, KHO, hugetlb, and the memory under them."""
