// Operations on huge pages and their counters. Lengths and offsets count pages of the size that a
// word or a file names.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "player.h"

#define MAX_MAPPINGS 1024

struct mapping {
	char name[64];
	char *start;
	size_t length, page;
};

static struct mapping mappings[MAX_MAPPINGS];
static int nr_mappings;
static sigjmp_buf no_page;

static void on_sigbus(int signum)
{
	siglongjmp(no_page, signum);
}

void huge_set_up(void)
{
	signal(SIGBUS, on_sigbus);
}

static size_t page_size(int at) { return strcmp(words[at], "1G") ? 2ul << 20 : 1ul << 30; }

static size_t page_size_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_blksize;  // of a file on huge pages: theirs
}

// A file of all nodes, or of the one that the word at a position names.
static const char *sysfs(const char *what, size_t page, int node_at)
{
	static char path[128];
	char folder[64] = "/sys/kernel/mm";

	if (node_at < nr_words)
		snprintf(folder, sizeof(folder), "/sys/devices/system/node/node%u",
			 (unsigned int)number(node_at));
	snprintf(path, sizeof(path), "%s/hugepages/hugepages-%zukB/%s", folder, page / 1024, what);
	return path;
}

static int write_pool(const char *what)
{
	char text[32];
	int length = snprintf(text, sizeof(text), "%llu", (unsigned long long)number(2));
	int fd = open(sysfs(what, page_size(1), 3), O_WRONLY);
	int done, why;

	if (fd < 0)
		return -1;
	done = write(fd, text, length);
	why = errno;
	close(fd);
	errno = why;
	return done < 0 ? -1 : 0;
}

static int op_pool(void) { return write_pool("nr_hugepages"); }
static int op_overcommit(void) { return write_pool("nr_overcommit_hugepages"); }

static int op_hstat(void)
{
	static const char *const files[][2] = {
		{ "total", "nr_hugepages" },	  { "free", "free_hugepages" },
		{ "rsvd", "resv_hugepages" },	  { "surp", "surplus_hugepages" },
		{ "over", "nr_overcommit_hugepages" },
	};
	int used = 0;

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		FILE *file = fopen(sysfs(files[i][1], page_size(1), 2), "r");
		unsigned long value = 0;

		if (!file && i && nr_words > 2)
			continue;  // a node has only some of them
		if (!file)
			return -1;
		if (fscanf(file, "%lu", &value) != 1)
			value = 0;
		fclose(file);
		used += snprintf(extra + used, sizeof(extra) - used, "%s%s=%lu", i ? " " : "",
				 files[i][0], value);
	}
	return 0;
}

static int op_hmem(void)
{
	size_t page = page_size(2);
	int fd = memfd_create("huge", MFD_HUGETLB | (unsigned int)__builtin_ctzl(page) << MAP_HUGE_SHIFT);

	if (bind_to(1, fd) < 0)
		return -1;
	return ftruncate(fd, number(3) * page + number(4));
}

static int op_truncate(void)
{
	return ftruncate(fd_of(1), number(2) * page_size_of(fd_of(1)) + number(3));
}

static int op_fallocate(void)
{
	size_t page = page_size_of(fd_of(1));

	return fallocate(fd_of(1), number(2), number(3) * page, number(4) * page);
}

static int map(int fd, size_t page, size_t offset, size_t length, int flags)
{
	char *start = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, fd, offset);
	struct mapping *mapping;

	if (start == MAP_FAILED)
		return -1;
	if (nr_mappings == MAX_MAPPINGS)
		die("more than %d mappings", MAX_MAPPINGS);
	mapping = &mappings[nr_mappings++];
	*mapping = (struct mapping){ .start = start, .length = length, .page = page };
	snprintf(mapping->name, sizeof(mapping->name), "%s", words[1]);
	return 0;
}

static int op_map(void)
{
	size_t page = page_size_of(fd_of(2));

	return map(fd_of(2), page, number(3) * page, number(4) * page,
		   MAP_SHARED | (has(5, 'n') ? MAP_NORESERVE : 0));
}

static int op_pmap(void)
{
	size_t page = page_size(2);

	return map(-1, page, 0, number(3) * page,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | __builtin_ctzl(page) << MAP_HUGE_SHIFT |
			   (has(4, 'n') ? MAP_NORESERVE : 0));
}

static struct mapping *mapping(int at)
{
	for (int i = nr_mappings - 1; i >= 0; i--)
		if (!strcmp(mappings[i].name, words[at])) {
			if (mappings[i].start)
				return &mappings[i];
			break;  // a name is the last mapping's, as it is the last descriptor's
		}
	errno = EFAULT;
	return NULL;
}

static int op_touch(void)
{
	struct mapping *m = mapping(1);
	uint64_t count = number(3);
	volatile uint64_t done = 0;
	int stopped;

	if (!m)
		return -1;
	stopped = sigsetjmp(no_page, 1);
	if (!stopped)
		for (; done < count; done++)
			((volatile char *)m->start)[(number(2) + done) * m->page] = 1;
	snprintf(extra, sizeof(extra), "pages=%llu%s", (unsigned long long)done,
		 stopped ? " SIGBUS" : "");
	return 0;
}

static int op_unmap(void)
{
	struct mapping *m = mapping(1);
	char *start;

	if (!m)
		return -1;
	start = m->start;
	m->start = NULL;
	return munmap(start, m->length);
}

const struct operation huge_operations[] = {
	{ "pool", op_pool, 2 },
	{ "overcommit", op_overcommit, 2 },
	{ "hstat", op_hstat, 1 },
	{ "hmem", op_hmem, 3 },
	{ "truncate", op_truncate, 2 },
	{ "fallocate", op_fallocate, 4 },
	{ "map", op_map, 4 },
	{ "pmap", op_pmap, 3 },
	{ "touch", op_touch, 3 },
	{ "unmap", op_unmap, 1 },
};

const size_t nr_huge_operations = ARRAY_SIZE(huge_operations);
