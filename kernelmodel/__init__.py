"""A model of one Linux host: LUO, KHO, hugetlb, and the memory under them."""
