/* Preloaded into User-Mode Linux, so that it runs on processors with large register sets.
 *
 * UML keeps the registers of its processes in a buffer of fixed size and restores them with PTRACE_SETREGSET. A host
 * whose XSAVE area is larger than that (AMX: 11,008 bytes against 2,696) refuses the short buffer, and each UML process
 * dies at its birth. Here both directions go through the host's full area: what UML knows is copied, the rest is kept.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PEEKTEXT = 1, PEEKUSER = 3, GETREGSET = 0x4204, SETREGSET = 0x4205, XSTATE = 0x202 };

static char area[1 << 16];

static long kernel(long request, long pid, long address, void *data)
{
    return syscall(SYS_ptrace, request, pid, address, data);
}

static long exchange(long request, long pid, struct iovec *known)
{
    struct iovec full = { area, sizeof area };
    long result = kernel(GETREGSET, pid, XSTATE, &full);
    if (result < 0)
        return result;
    size_t size = known->iov_len < full.iov_len ? known->iov_len : full.iov_len;
    if (request == GETREGSET) {
        memcpy(known->iov_base, area, size);
        known->iov_len = size;
        return 0;
    }
    memcpy(area, known->iov_base, size);
    return kernel(SETREGSET, pid, XSTATE, &full);
}

long ptrace(int request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    int pid = va_arg(arguments, int);
    long address = va_arg(arguments, long);
    void *data = va_arg(arguments, void *);
    va_end(arguments);
    if ((request == GETREGSET || request == SETREGSET) && address == XSTATE)
        return exchange(request, pid, data);
    if (request >= PEEKTEXT && request <= PEEKUSER) { /* the system call stores what the C function returns (ptrace(2)) */
        long word, result = kernel(request, pid, address, &word);
        return result < 0 ? result : word;
    }
    return kernel(request, pid, address, data);
}
