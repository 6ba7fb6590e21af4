/*
 * A library to preload into user-mode Linux, which otherwise panics on a processor with a large register file (AMX: Sapphire
 * Rapids and newer): "ptrace set fp regs failed, errno = 14".
 *
 * User-mode Linux up to 6.12 sets the vector registers of its processes by PTRACE_SETREGSET with NT_X86_XSTATE and a buffer of
 * 2,696 bytes, which ends with the protection keys. The host's kernel reads a buffer of that size but takes only one of the
 * whole XSAVE area, 11,008 bytes with AMX. This ptrace completes a short buffer. A buffer of the whole area, and any other
 * request, goes to the C library unchanged.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

/* The header of the XSAVE area begins with XSTATE_BV: which components are not in their initial state. */
#define XSTATE_BV 512

/* The components of AMX, XTILECFG and XTILEDATA. A process that did not ask for AMX must not have them. */
#define TILES (UINT64_C(1) << 17 | UINT64_C(1) << 18)

/* The C library's prototype is variadic, but it passes on four arguments whatever the request. */
typedef long ptrace_func(enum __ptrace_request, pid_t, void *, void *);

/*
 * Static, since the stacks of user-mode Linux are 16 KiB. One thread traces all of its processes, and no signal handler does.
 * The size is larger than that of any processor's area.
 */
static unsigned char area[65536];

/* Reads the area and returns its size in bytes, which is the same for every process; -1 and errno if that failed. */
static ssize_t read_area(ptrace_func *libc_ptrace, pid_t pid, void *type)
{
	struct iovec whole = { .iov_base = area, .iov_len = sizeof(area) };

	return libc_ptrace(PTRACE_GETREGSET, pid, type, &whole) < 0 ? -1 : (ssize_t)whole.iov_len;
}

long ptrace(enum __ptrace_request request, ...)
{
	static ptrace_func *libc_ptrace;
	static ssize_t size; /* of the host's area; 0 or less while it is not known */
	va_list arguments;
	pid_t pid;
	void *addr, *data;
	const struct iovec *part;
	uint64_t in_use;

	va_start(arguments, request);
	pid = va_arg(arguments, pid_t);
	addr = va_arg(arguments, void *);
	data = va_arg(arguments, void *);
	va_end(arguments);

	if (libc_ptrace == NULL)
		libc_ptrace = (ptrace_func *)dlsym(RTLD_NEXT, "ptrace");
	if (request != PTRACE_SETREGSET || (uintptr_t)addr != NT_X86_XSTATE)
		return libc_ptrace(request, pid, addr, data);
	part = data;
	if (size <= 0)
		size = read_area(libc_ptrace, pid, addr);
	if (part->iov_len < XSTATE_BV + sizeof(in_use) || (ssize_t)part->iov_len >= size)
		return libc_ptrace(request, pid, addr, data);

	/* A short buffer is the beginning of the area: the offsets of components do not depend on the size. */
	if (read_area(libc_ptrace, pid, addr) < 0)
		return -1;
	memcpy(area, part->iov_base, part->iov_len);
	memcpy(&in_use, area + XSTATE_BV, sizeof(in_use));
	in_use &= ~TILES;
	memcpy(area + XSTATE_BV, &in_use, sizeof(in_use));
	return libc_ptrace(request, pid, addr, &(struct iovec){ .iov_base = area, .iov_len = size });
}
