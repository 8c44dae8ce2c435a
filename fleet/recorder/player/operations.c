// Operations on /dev/liveupdate, sessions and memfds.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include "player.h"

#ifndef MFD_EXEC
#define MFD_NOEXEC_SEAL 8u
#define MFD_EXEC 16u
#endif
#define PIECE 4096u
#define RAW_BYTES 4096u

// The requests of /dev/liveupdate and of session descriptors, and what they take.
#define CREATE_SESSION _IO(0xBA, 0x00)
#define RETRIEVE_SESSION _IO(0xBA, 0x01)
#define PRESERVE_FD _IO(0xBA, 0x40)
#define RETRIEVE_FD _IO(0xBA, 0x41)
#define FINISH _IO(0xBA, 0x42)
#define GET_NAME _IO(0xBA, 0x43)

struct named {
	uint32_t size;
	int32_t fd;
	char name[64];
};

struct tokened {
	uint32_t size;
	int32_t fd;
	uint64_t token;
};

struct reserved {
	uint32_t size;
	uint32_t reserved;
};

static void session_name(char *out, const char *word)
{
	memset(out, 0, 64);
	if (!strcmp(word, "@full"))
		memset(out, 'A', 64);
	else if (!strcmp(word, "@max"))
		memset(out, 'B', 63);
	else if (strcmp(word, "@empty"))
		memcpy(out, word, strnlen(word, 64));
}

static int op_open(void) { return bind_to(1, open("/dev/liveupdate", O_RDWR)); }
static int op_null(void) { return bind_to(1, open("/dev/null", O_RDWR)); }

static int op_tmpfile(void)
{
	static int count;
	char path[64];

	if (has(2, 'u'))
		return bind_to(1, open("/tmp", O_RDWR | O_TMPFILE, 0600));
	snprintf(path, sizeof(path), "/tmp/%d", count++);
	return bind_to(1, open(path, O_RDWR | O_CREAT, 0600));
}

static int op_close(void) { return close(unbind(1)); }

static int op_dup(void) { return bind_to(2, dup(fd_of(1))); }

static int named(unsigned long request)
{
	struct named arg = { .size = sizeof(arg), .fd = -1 };

	session_name(arg.name, words[3]);
	if (ioctl(fd_of(1), request, &arg))
		return -1;
	return bind_to(2, arg.fd);
}

static int op_create(void) { return named(CREATE_SESSION); }
static int op_retrieve(void) { return named(RETRIEVE_SESSION); }

static int op_memfd(void)
{
	unsigned int flags = (has(3, 's') ? MFD_ALLOW_SEALING : 0) | (has(3, 'h') ? MFD_HUGETLB : 0) |
			     (has(3, 'n') ? MFD_NOEXEC_SEAL : 0) | (has(3, 'x') ? MFD_EXEC : 0);
	int fd = bind_to(1, memfd_create("memfd", flags));

	return fd < 0 ? -1 : ftruncate(fd, number(2));
}

static int op_fill(void)
{
	uint64_t offset = number(2), left = number(3);
	uint64_t x = number(4) * 2654435761u + 88172645463325252u;
	uint64_t piece[PIECE / sizeof(uint64_t)];

	while (left) {
		size_t length = left < PIECE ? left : PIECE;

		for (size_t i = 0; i < ARRAY_SIZE(piece); i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			piece[i] = x;
		}
		if (pwrite(fd_of(1), piece, length, offset) < 0)
			return -1;
		offset += length;
		left -= length;
	}
	return 0;
}

static int op_seek(void) { return lseek(fd_of(1), number(2), SEEK_SET) < 0 ? -1 : 0; }
static int op_truncate(void) { return ftruncate(fd_of(1), number(2)); }
static int op_fallocate(void) { return fallocate(fd_of(1), number(2), number(3), number(4)); }
static int op_seal(void) { return fcntl(fd_of(1), F_ADD_SEALS, (unsigned int)number(2)); }

static int op_stat(void)
{
	static unsigned char buffer[16 * PIECE];
	uint64_t hash = 1469598103934665603u;
	off_t at = 0;
	ssize_t got;
	struct stat st;
	int fd = fd_of(1);

	if (fstat(fd, &st))
		return -1;
	while ((got = pread(fd, buffer, sizeof(buffer), at)) > 0) {
		for (ssize_t i = 0; i < got; i++)
			hash = (hash ^ buffer[i]) * 1099511628211u;
		at += got;
	}
	snprintf(extra, sizeof(extra), "size=%lld pos=%lld seals=%d hash=%016llx",
		 (long long)st.st_size, (long long)lseek(fd, 0, SEEK_CUR), fcntl(fd, F_GET_SEALS),
		 (unsigned long long)hash);
	return 0;
}

static int op_preserve(void)
{
	struct tokened arg = { sizeof(arg), fd_of(2), number(3) };

	return ioctl(fd_of(1), PRESERVE_FD, &arg);
}

static int op_fetch(void)
{
	struct tokened arg = { sizeof(arg), -1, number(3) };

	return ioctl(fd_of(1), RETRIEVE_FD, &arg) ? -1 : bind_to(2, arg.fd);
}

static int op_finish(void)
{
	struct reserved arg = { sizeof(arg), number(2) };

	return ioctl(fd_of(1), FINISH, &arg);
}

static int op_name(void)
{
	struct named arg = { .size = sizeof(arg) };

	if (ioctl(fd_of(1), GET_NAME, &arg))
		return -1;
	snprintf(extra, sizeof(extra), "name=%.64s", arg.name);
	return 0;
}

static int op_same(void)
{
	struct stat one, other;

	if (fstat(fd_of(1), &one) || fstat(fd_of(2), &other))
		return -1;
	snprintf(extra, sizeof(extra), "%d", one.st_dev == other.st_dev && one.st_ino == other.st_ino);
	return 0;
}

// Memory of a page, and behind it nothing: a request that reads on faults. Low, so that no size takes
// it beyond all addresses.
static unsigned char *page_before_nothing(int protection)
{
	static unsigned char *page;

	if (!page) {
		page = mmap((void *)0x20000000, 2 * RAW_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		if (page == MAP_FAILED || munmap(page + RAW_BYTES, RAW_BYTES))
			die("no memory for raw requests: %m");
	}
	if (mprotect(page, RAW_BYTES, protection))
		die("mprotect: %m");
	return page;
}

// Words from `at` on: the request, the size, and what bytes are to be where.
static int raw(size_t room, int read_only, int at)
{
	unsigned char *arg = page_before_nothing(PROT_READ | PROT_WRITE) + RAW_BYTES - room;
	uint32_t size = number(at + 1);
	int result;

	memset(arg, 0, room);
	memcpy(arg, &size, room < sizeof(size) ? room : sizeof(size));
	for (int i = at + 2; i + 1 < nr_words; i += 2)
		if (number(i) < room)
			arg[number(i)] = number(i + 1);
	if (read_only)
		page_before_nothing(PROT_READ);
	result = ioctl(fd_of(1), number(at), arg);
	return result < 0 ? -1 : 0;
}

static int op_raw(void) { return raw(RAW_BYTES, 0, 2); }
static int op_rawin(void) { return raw(number(2), has(2, 'r'), 3); }

static int op_read(void)
{
	FILE *file = fopen(words[1], "r");
	size_t length;

	if (!file)
		return -1;
	length = fread(extra, 1, sizeof(extra) - 1, file);
	fclose(file);
	while (length && extra[length - 1] == '\n')
		length--;
	extra[length] = 0;
	for (char *c = extra; *c; c++)
		if (*c == '\n')
			*c = ' ';
	return 0;
}

// In place: \s, \t and \n of a word are a space, a tab and the end of a line.
static size_t unescape(char *word)
{
	char *to = word;

	for (const char *from = word; *from; from++) {
		if (*from == '\\' && from[1])
			from++, *to++ = *from == 's' ? ' ' : *from == 't' ? '\t' : '\n';
		else
			*to++ = *from;
	}
	return to - word;
}

static int op_write(void)
{
	size_t length = nr_words > 2 ? unescape(words[2]) : 0;
	int fd = open(words[1], O_WRONLY);
	ssize_t done;
	int why;

	if (fd < 0)
		return -1;
	done = write(fd, nr_words > 2 ? words[2] : "", length);
	why = errno;
	close(fd);
	errno = why;
	if (done < 0)
		return -1;
	snprintf(extra, sizeof(extra), "%zd", done);
	return 0;
}

static int op_fail(void)
{
	char request[128];

	snprintf(request, sizeof(request), "fail %s %s %s", words[1], words[2], words[3]);
	// Its page has to be there: a machine that stops, and faults then, stops a second time.
	(void)*(volatile const char *)ask_recorder;
	ask_recorder(request);
	return 0;
}

static int op_tryreboot(void)
{
	flush_trace();
	return reboot(RB_KEXEC);
}

static int op_load(void)
{
	return load_next_kernel(number(1), nr_words > 2 ? (long)number(2) : -1);
}

const struct operation operations[] = {
	{ "open", op_open, 1 },
	{ "null", op_null, 1 },
	{ "tmpfile", op_tmpfile, 1 },
	{ "close", op_close, 1 },
	{ "dup", op_dup, 2 },
	{ "create", op_create, 3 },
	{ "retrieve", op_retrieve, 3 },
	{ "memfd", op_memfd, 2 },
	{ "fill", op_fill, 4 },
	{ "seek", op_seek, 2 },
	{ "truncate", op_truncate, 2 },
	{ "fallocate", op_fallocate, 4 },
	{ "seal", op_seal, 2 },
	{ "stat", op_stat, 1 },
	{ "preserve", op_preserve, 3 },
	{ "fetch", op_fetch, 3 },
	{ "finish", op_finish, 1 },
	{ "name", op_name, 1 },
	{ "same", op_same, 2 },
	{ "raw", op_raw, 3 },
	{ "rawin", op_rawin, 4 },
	{ "read", op_read, 1 },
	{ "write", op_write, 1 },
	{ "fail", op_fail, 3 },
	{ "tryreboot", op_tryreboot, 0 },
	{ "load", op_load, 1 },
};

const size_t nr_operations = ARRAY_SIZE(operations);
