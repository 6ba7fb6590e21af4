/*
 * Sets a vector register of a traced child with PTRACE_SETREGSET and a buffer of SIZE bytes, as user-mode Linux does, with the
 * components of AMX marked as in use. It prints "size N", the size of this processor's area, then "set" if the child has the
 * register, or why not.
 *
 * Usage: setxstate SIZE
 */
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define XMM0 160      /* where the area has the first vector register */
#define XSTATE_BV 512 /* which components are in use: bit 1 is that of XMM0, bits 17 and 18 are those of AMX */

static unsigned char area[65536], before[65536];

static size_t get(pid_t child)
{
	struct iovec v = { .iov_base = area, .iov_len = sizeof(area) };

	/* Not by ptrace(), so that nothing preloaded has a say in what is read. */
	if (syscall(SYS_ptrace, PTRACE_GETREGSET, child, NT_X86_XSTATE, &v) < 0) {
		perror("PTRACE_GETREGSET");
		exit(1);
	}
	return v.iov_len;
}

int main(int argc, char **argv)
{
	size_t part = argc > 1 ? strtoul(argv[1], NULL, 0) : 0, size;
	struct iovec v = { .iov_base = area, .iov_len = part };
	uint64_t in_use;
	pid_t child = fork();

	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	if (child < 0 || waitpid(child, NULL, 0) != child) {
		perror("child");
		return 1;
	}
	size = get(child);
	memcpy(before, area, size);
	printf("size %zu\n", size);
	memcpy(area + XMM0, "sixteen letters.", 16);
	memcpy(&in_use, area + XSTATE_BV, sizeof(in_use));
	in_use |= 1 << 1;
	if (part < size)
		in_use |= 1 << 17 | 1 << 18;
	memcpy(area + XSTATE_BV, &in_use, sizeof(in_use));
	/* The rest of the child's area must be as it was, whatever lies behind the caller's buffer. */
	memset(area + part, 0xff, sizeof(area) - part);
	if (ptrace(PTRACE_SETREGSET, child, (void *)NT_X86_XSTATE, &v) < 0) {
		printf("errno %d\n", errno);
	} else {
		get(child);
		if (memcmp(area + XMM0, "sixteen letters.", 16) != 0)
			printf("the register has another value\n");
		else if (part < size && memcmp(area + part, before + part, size - part) != 0)
			printf("what lies behind the buffer has changed\n");
		else
			printf("set\n");
	}
	kill(child, SIGKILL);
	return 0;
}
