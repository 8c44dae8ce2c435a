// What the parts of the player share.

#ifndef PLAYER_H
#define PLAYER_H

#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof(*(a)))
#define MAX_WORDS 512
#define EXTRA_SIZE 256

// The line that is played: words[0] is the operation.
extern int nr_words;
extern char *words[MAX_WORDS];

// What an operation prints after ok.
extern char extra[EXTRA_SIZE];

// One word of the script: what to call, and how many arguments that takes at least.
struct operation {
	const char *name;
	int (*run)(void);  // -1 with errno set, or something else
	int nr_args;
};

extern const struct operation operations[], huge_operations[];
extern const size_t nr_operations, nr_huge_operations;

// The word at a position as an unsigned number, 0 if there is none.
uint64_t number(int at);

// Whether there is a word at a position, and the flag in it.
int has(int at, char flag);

// The descriptor that the word at a position names, -1 if none.
int fd_of(int at);

// Let the word at a position name a descriptor, unless it is negative; the descriptor.
int bind_to(int at, int fd);

// Let the word at a position name no descriptor; the one that it named.
int unbind(int at);

// Handle faults of mappings whose file has no page for them.
void huge_set_up(void);

// Tell the recorder something, while it has the machine stopped.
void ask_recorder(const char *request);

// kexec_file_load(2) of the next boot's kernel, with its command line cut or filled up to a length,
// or as it is if that is negative.
int load_next_kernel(unsigned long flags, long cmdline_length);

// Wait until everything printed is out of the machine.
void flush_trace(void);

// End the machine with a complaint on the console.
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

#endif
