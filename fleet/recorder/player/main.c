// Plays a script of live-update operations on a real kernel, as its first process.
//
// Boot k finds in its root directory: /script, /boot-number (k), and, if another boot follows,
// /kernel, /initrd and /cmdline of that boot. The trace goes to /dev/ttyS1, complaints to the
// console. At a `kexec` line this program makes the reboot(2) call itself and so is alive, with
// every descriptor open, when the kernel jumps.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include "player.h"

#define MAX_VARIABLES 4096
#define MAX_DESCRIPTORS 1024  // what the script may open
#define CONSOLE_FD 1100       // out of the script's way
#define TRACE_FD 1101

struct variable {
	char name[64];
	int fd;
};

int nr_words;
char *words[MAX_WORDS];
char extra[EXTRA_SIZE];

static FILE *trace;
static struct variable variables[MAX_VARIABLES];
static int nr_variables;

static void __attribute__((noreturn)) end_of_machine(void)
{
	tcdrain(TRACE_FD);
	tcdrain(CONSOLE_FD);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

void flush_trace(void)
{
	fflush(trace);
	tcdrain(TRACE_FD);
}

void die(const char *format, ...)
{
	va_list args;

	dprintf(CONSOLE_FD, "player: ");
	va_start(args, format);
	vdprintf(CONSOLE_FD, format, args);
	va_end(args);
	dprintf(CONSOLE_FD, "\n");
	end_of_machine();
}

uint64_t number(int at)
{
	return at < nr_words ? strtoull(words[at], NULL, strncasecmp(words[at], "0x", 2) ? 10 : 16) : 0;
}

int has(int at, char flag)
{
	return at < nr_words && strchr(words[at], flag);
}

static struct variable *variable(int at)
{
	for (int i = 0; i < nr_variables; i++)
		if (!strcmp(variables[i].name, words[at]))
			return &variables[i];
	if (nr_variables == MAX_VARIABLES)
		die("more than %d variables", MAX_VARIABLES);
	struct variable *fresh = &variables[nr_variables++];
	snprintf(fresh->name, sizeof(fresh->name), "%s", words[at]);
	fresh->fd = -1;
	return fresh;
}

int fd_of(int at)
{
	return variable(at)->fd;
}

int bind_to(int at, int fd)
{
	if (fd >= 0)
		variable(at)->fd = fd;
	return fd;
}

int unbind(int at)
{
	int fd = fd_of(at);

	variable(at)->fd = -1;
	return fd;
}

// The recorder stops the machine here if the script needs it, and reads the request: see
// fleet/recorder/stops.py, which knows the address that the linker gives this section.
void __attribute__((noinline, section(".recorder"))) ask_recorder(const char *request)
{
	asm volatile("" : : "r"(request) : "memory");
}

static const struct operation *find(const struct operation *op, size_t count)
{
	for (; count--; op++)
		if (!strcmp(op->name, words[0]) && nr_words > op->nr_args)
			return op;
	return NULL;
}

static int run_operation(int huge)
{
	// Of two operations of the same name, a script about huge pages means the one on those.
	const struct operation *op = huge ? find(huge_operations, nr_huge_operations) : NULL;

	if (!op)
		op = find(operations, nr_operations);
	if (!op)
		op = find(huge_operations, nr_huge_operations);
	if (!op)
		die("%s: no such operation, or too few arguments", words[0]);
	return op->run();
}

static char *slurp(const char *path)
{
	size_t capacity = 1 << 20, length;
	char *text = malloc(capacity);
	FILE *file = fopen(path, "r");

	if (!file || !text)
		die("%s: %m", path);
	length = fread(text, 1, capacity - 1, file);
	text[length] = 0;
	fclose(file);
	return text;
}

int load_next_kernel(unsigned long flags, long cmdline_length)
{
	int kernel = open("/kernel", O_RDONLY), initrd = open("/initrd", O_RDONLY);
	char *cmdline = kernel < 0 ? strdup("") : slurp("/cmdline");
	size_t length = strlen(cmdline);
	int result, error;

	if (cmdline_length >= 0) {
		cmdline = realloc(cmdline, cmdline_length + 1);
		if ((size_t)cmdline_length > length)
			memset(cmdline + length, ' ', cmdline_length - length);
		length = cmdline_length;
		cmdline[length] = 0;
	}
	result = syscall(SYS_kexec_file_load, kernel, initrd, length + 1, cmdline, flags);
	error = errno;
	close(kernel);
	close(initrd);
	free(cmdline);
	errno = error;
	return result;
}

static void set_up(void)
{
	struct rlimit high = { TRACE_FD + 1, TRACE_FD + 1 };
	struct rlimit low = { MAX_DESCRIPTORS, MAX_DESCRIPTORS };
	struct termios raw;

	mount("none", "/dev", "devtmpfs", 0, NULL);
	setrlimit(RLIMIT_NOFILE, &high);
	dup2(open("/dev/console", O_RDWR | O_NOCTTY), CONSOLE_FD);
	dup2(open("/dev/ttyS1", O_RDWR | O_NOCTTY), TRACE_FD);
	for (int fd = 0; fd < 16; fd++)
		close(fd);
	setrlimit(RLIMIT_NOFILE, &low);
	if (tcgetattr(TRACE_FD, &raw))
		die("/dev/ttyS1: %m");
	cfmakeraw(&raw);
	tcsetattr(TRACE_FD, TCSANOW, &raw);
	trace = fdopen(TRACE_FD, "w");
	mount("none", "/proc", "proc", 0, NULL);
	mount("none", "/sys", "sysfs", 0, NULL);
	mount("none", "/sys/kernel/debug", "debugfs", 0, NULL);
	if (mount("none", "/tmp", "tmpfs", 0, NULL))
		die("tmpfs: %m");
	huge_set_up();
}

int main(void)
{
	char *script, *line;
	int wanted, boot = 1, line_number = 0, huge;

	set_up();
	wanted = atoi(slurp("/boot-number"));
	script = slurp("/script");
	huge = !strncmp(script, "#!", 2) && strncmp(script + 2 + strspn(script + 2, " "), "plain ", 6);
	if (!access("/kernel", F_OK) && load_next_kernel(0, -1))
		die("kexec_file_load: %m");
	while ((line = strsep(&script, "\n"))) {
		line_number++;
		if (*line == '#')
			continue;
		nr_words = 0;
		for (char *word = strtok(line, " \t\r"); word; word = strtok(NULL, " \t\r"))
			if (nr_words < MAX_WORDS)
				words[nr_words++] = word;
		if (!nr_words)
			continue;
		if (!strcmp(words[0], "kexec")) {
			if (boot++ == wanted)
				break;
			continue;
		}
		if (boot != wanted || !strcmp(words[0], "boot"))
			continue;
		*extra = 0;
		if (run_operation(huge) < 0)
			fprintf(trace, "T %d %s %s\n", line_number, words[0], strerrorname_np(errno));
		else
			fprintf(trace, "T %d %s ok%s%s\n", line_number, words[0], *extra ? " " : "", extra);
		fflush(trace);
	}
	fprintf(trace, "T end %d\n", wanted);
	flush_trace();
	if (line) {
		reboot(RB_KEXEC);
		fprintf(trace, "# reboot refused: %s\n", strerrorname_np(errno));
		flush_trace();
	}
	end_of_machine();
}
