"""The designs for preserving hugetlb's shared state, each run through updates of one host."""
