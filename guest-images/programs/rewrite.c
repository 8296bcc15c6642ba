/*
 * Programs that change their own code all the time, in three ways. Each prints a checksum of what the changed code
 * computed, which is the same on every processor: a store to code is seen by the next execution of that code.
 *
 *   rewrite mappings N   code is written through one mapping of a page and executed through another
 *   rewrite crossing N   code that crosses pages: parts on either side are rewritten, by itself too, or the page
 *                        beneath is exchanged
 *   rewrite mprotect N   pages are writable and executable in turn, or neither, when execution faults
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096

typedef uint64_t (*function)(uint64_t);

static uint64_t state = 88172645463325252u;
static uint64_t sum = 14695981039346656037u;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void add(uint64_t value)
{
	sum = (sum ^ value) * 1099511628211u;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void *map(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
	void *address = mmap(at, size, protection, flags, file, offset);
	if (address == MAP_FAILED)
		fail("mmap");
	return address;
}

static int memory(size_t size)
{
	int file = memfd_create("rewrite", 0);
	if (file < 0 || ftruncate(file, (off_t)size) != 0)
		fail("memfd_create");
	return file;
}

static void protect(void *at, size_t size, int protection)
{
	if (mprotect(at, size, protection) != 0)
		fail("mprotect");
}

/* A function of a few operations on RAX, which `choice` says three bits at a time; its length. */
static size_t emit(uint8_t *code, uint64_t choice, unsigned length)
{
	size_t at = 0;
	code[at++] = 0x48; /* mov rax, rdi */
	code[at++] = 0x89;
	code[at++] = 0xf8;
	for (unsigned i = 0; i < length; i++, choice = choice >> 3 | choice << 61) {
		static const uint8_t with_immediate[4] = { 0x05, 0x2d, 0x35, 0x0d }; /* add, sub, xor, or */
		uint32_t number = (uint32_t)(choice * 2654435761u);
		switch (choice & 7) {
		case 0: /* rol rax, number */
			memcpy(code + at, (uint8_t[]){ 0x48, 0xc1, 0xc0, number & 63 }, 4);
			at += 4;
			break;
		case 1: /* lea rax, [rax + rax * 4 + 7] */
			memcpy(code + at, (uint8_t[]){ 0x48, 0x8d, 0x44, 0x80, 7 }, 5);
			at += 5;
			break;
		case 2: /* test al, 1; jz over the next; inc rax */
			memcpy(code + at, (uint8_t[]){ 0xa8, 1, 0x74, 3, 0x48, 0xff, 0xc0 }, 7);
			at += 7;
			break;
		case 3: /* bswap rax */
			memcpy(code + at, (uint8_t[]){ 0x48, 0x0f, 0xc8 }, 3);
			at += 3;
			break;
		default:
			code[at++] = 0x48;
			code[at++] = with_immediate[choice & 3];
			memcpy(code + at, &number, 4);
			at += 4;
		}
	}
	code[at++] = 0xc3;
	return at;
}

/* Written through one mapping, executed through another. */
static void mappings(unsigned count)
{
	enum { PAGES = 4 };
	int file = memory(PAGES * PAGE);
	uint8_t *writable = map(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	uint8_t *code = map(NULL, PAGES * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
	uint8_t *other = map(NULL, PAGES * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
	for (unsigned i = 0; i < count; i++) {
		size_t at = next() % (PAGES * PAGE - 512);
		uint64_t choice = next();
		emit(writable + at, choice, 16);
		add(((function)(code + at))(i));
		add(((function)(other + at))(i));
		/* Another one in its place, whose instructions begin elsewhere. */
		for (unsigned round = 0; round < 4; round++) {
			choice = choice >> 3 | choice << 61;
			emit(writable + at, choice, 16);
			add(((function)((round & 1 ? code : other) + at))(i));
		}
		/* Behind its first instruction it ends. */
		writable[at + 3] = 0xc3;
		add(((function)(code + at))(i));
	}
}

/* mov dword [rip + to the constant], edi; then mov eax, constant: the next instruction changes itself. */
static size_t emit_own_constant(uint8_t *code, unsigned padding)
{
	size_t at = 0;
	int32_t distance = (int32_t)padding + 1;
	code[at++] = 0x89; /* mov [rip + distance], edi */
	code[at++] = 0x3d;
	memcpy(code + at, &distance, 4);
	at += 4;
	memset(code + at, 0x90, padding);
	at += padding;
	code[at++] = 0xb8; /* mov eax, constant */
	memcpy(code + at, "\1\2\3\4", 4);
	at += 4;
	code[at++] = 0xc3;
	return at;
}

/* Code across the ends of pages. */
static void crossing(unsigned count)
{
	const int all = PROT_READ | PROT_WRITE | PROT_EXEC;
	int file = memory(4 * PAGE);
	uint8_t *code = map(NULL, 3 * PAGE, all, MAP_SHARED, file, 0);
	uint8_t bytes[512];
	for (unsigned i = 0; i < count; i++) {
		/* Each byte of a function comes to be the first of the second page. */
		uint64_t choice = next();
		size_t size = emit(bytes, choice, 12);
		uint8_t *start = code + PAGE - 1 - next() % (size - 1);
		memcpy(start, bytes, size);
		add(((function)start)(i));
		/* What is in the first page alone, then what is in the second alone. */
		size_t first = (size_t)(code + PAGE - start);
		size_t other = emit(bytes, choice ^ 7, 12);
		if (other == size) {
			memcpy(start, bytes, first);
			memcpy(code + PAGE, bytes + first, size - first);
			add(((function)start)(i));
		}
		start[size - 1] = 0x90;
		start[size] = 0xc3;
		add(((function)start)(i + 1));

		/* A constant that its own function writes, with each part of it in either page. */
		unsigned padding = (unsigned)(next() % 8);
		start = code + PAGE - 1 - next() % (11 + padding);
		size = emit_own_constant(start, padding);
		for (uint64_t number = 0; number < 4; number++)
			add(((function)start)(sum >> 32 ^ number));

		/* Another page in the place of the second: the fourth of the file, and the second again. */
		start = code + PAGE - 4;
		memcpy(start, "\x48\x8d\x47\x01", 4); /* lea rax, [rdi + 1] */
		code[PAGE] = 0xc3;
		add(((function)start)(i));
		uint8_t *fourth = map(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 3 * PAGE);
		emit(fourth, next(), 8);
		fourth[0] = 0x48; /* not rax, in the place of mov rax, rdi */
		fourth[1] = 0xf7;
		fourth[2] = 0xd0;
		map(code + PAGE, PAGE, all, MAP_SHARED | MAP_FIXED, file, 3 * PAGE);
		add(((function)start)(i));
		fourth[2] = 0xd8; /* neg rax, by the other mapping */
		add(((function)start)(i));
		munmap(fourth, PAGE);
		map(code + PAGE, PAGE, all, MAP_SHARED | MAP_FIXED, file, PAGE);
		add(((function)start)(i));
	}
}

static sigjmp_buf faulted;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	(void)info;
	siglongjmp(faulted, 1);
}

/* Calls code that may be forbidden: the fault is part of the checksum. */
static void call_or_fault(uint8_t *code, uint64_t argument)
{
	if (sigsetjmp(faulted, 1) == 0)
		add(((function)code)(argument));
	else
		add(0xdead);
}

/* Code of zeros, add [rax], al, with RAX zero: nothing is mapped there. */
static void call_zeros(uint8_t *code)
{
	if (sigsetjmp(faulted, 1) == 0)
		__asm__ volatile("xor %%eax, %%eax\n\tcall *%0" : : "D"(code) : "rax", "memory", "cc");
	else
		add(0xbeef);
}

/* Writable, executable, or neither. */
static void by_mprotect(unsigned count)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	sigaction(SIGSEGV, &action, NULL);
	uint8_t *code = map(NULL, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (unsigned i = 0; i < count; i++) {
		uint8_t *start = code + next() % (PAGE + PAGE / 2);
		call_or_fault(start, i); /* forbidden */
		protect(code, 2 * PAGE, PROT_READ | PROT_WRITE);
		emit(start, next(), 16);
		protect(code, 2 * PAGE, PROT_READ | PROT_EXEC);
		call_or_fault(start, i);
		protect(code, 2 * PAGE, PROT_READ | PROT_WRITE);
		if (i % 4 == 0)
			call_or_fault(start, i); /* forbidden */
		emit(start, next(), 16);
		protect(code, 2 * PAGE, PROT_READ | PROT_EXEC);
		call_or_fault(start, i);
		call_or_fault(start, sum);
		if (i % 8 == 0) {
			/* Pages of zeros in the place of the code. */
			if (madvise(code, 2 * PAGE, MADV_DONTNEED) != 0)
				fail("madvise");
			call_zeros(start);
		}
		protect(code, 2 * PAGE, PROT_NONE);
	}
}

int main(int count, char **words)
{
	if (count != 3)
		return 2;
	unsigned rounds = (unsigned)strtoul(words[2], NULL, 10);
	if (strcmp(words[1], "mappings") == 0)
		mappings(rounds);
	else if (strcmp(words[1], "crossing") == 0)
		crossing(rounds);
	else if (strcmp(words[1], "mprotect") == 0)
		by_mprotect(rounds);
	else
		return 2;
	printf("%s %016llx\n", words[1], (unsigned long long)sum);
	return 0;
}
