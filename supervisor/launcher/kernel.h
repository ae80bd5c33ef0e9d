/* The Linux kernel as the launcher and the keeper see it: the entry point, the raw system calls, their numbers and constants.
 *
 * Written out here so that any compiler can build them for either machine with no header but its own: neither libc nor
 * kernel headers need be installed, least of all those of the other machine. Every call returns what the kernel returns: a
 * result, or a negative errno. Both machines are 64-bit and little endian; numbers are those of their asm/unistd.h.
 */
#include <stddef.h>
#include <stdint.h>

#ifndef START
#define START "launch" /* the function that the entry point calls */
#endif

#if defined __x86_64__

enum {
    SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_mmap = 9, SYS_munmap = 11, SYS_rt_sigaction = 13, SYS_rt_sigprocmask = 14,
    SYS_ioctl = 16, SYS_getpid = 39, SYS_sendmsg = 46, SYS_recvmsg = 47, SYS_getsockopt = 55, SYS_clone = 56, SYS_execve = 59,
    SYS_fcntl = 72, SYS_chdir = 80, SYS_umask = 95, SYS_geteuid = 107, SYS_setsid = 112, SYS_setgroups = 116,
    SYS_setresuid = 117, SYS_setresgid = 119, SYS_getsid = 124, SYS_capset = 126, SYS_setpriority = 141, SYS_prctl = 157,
    SYS_kill = 62, SYS_getdents64 = 217, SYS_exit_group = 231, SYS_openat = 257, SYS_mkdirat = 258, SYS_ppoll = 271, SYS_accept4 = 288, SYS_dup3 = 292,
    SYS_prlimit64 = 302, SYS_statx = 332, SYS_close_range = 436,
};

static inline long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = 0; /* the sixth argument: only mmap has one, its offset */
    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* At entry the stack pointer is at argc, then argv; a call must leave from a 16-byte boundary, as compiled code expects. */
#define ENTRY "xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call " START "\n hlt\n"

#elif defined __aarch64__ && !defined __AARCH64EB__

enum {
    SYS_dup3 = 24, SYS_fcntl = 25, SYS_ioctl = 29, SYS_mkdirat = 34, SYS_chdir = 49, SYS_openat = 56, SYS_close = 57, SYS_getdents64 = 61,
    SYS_read = 63, SYS_write = 64, SYS_ppoll = 73, SYS_capset = 91, SYS_exit_group = 94, SYS_kill = 129, SYS_rt_sigaction = 134,
    SYS_rt_sigprocmask = 135, SYS_setpriority = 140, SYS_setresuid = 147, SYS_setresgid = 149, SYS_getsid = 156,
    SYS_setsid = 157, SYS_setgroups = 159, SYS_umask = 166, SYS_prctl = 167, SYS_getpid = 172, SYS_geteuid = 175,
    SYS_getsockopt = 209, SYS_sendmsg = 211, SYS_recvmsg = 212, SYS_munmap = 215, SYS_clone = 220, SYS_execve = 221,
    SYS_mmap = 222, SYS_accept4 = 242, SYS_prlimit64 = 261, SYS_statx = 291, SYS_close_range = 436,
};

static inline long call(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = 0; /* the sixth argument: only mmap has one, its offset */
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

/* At entry the stack pointer is at argc, then argv, and on the 16-byte boundary that the machine demands. */
#define ENTRY "mov x29, #0\n mov x30, #0\n mov x0, sp\n bl " START "\n brk #1\n"

#else
#error "the launcher and the keeper know x86_64 and little-endian aarch64"
#endif

#ifndef HOSTED /* the tests link them into programs of their own */
__asm__(".text\n .globl _start\n .type _start, %function\n _start:\n" ENTRY);
#endif

enum { EPERM = 1, ENOENT = 2, EINTR = 4, EBADF = 9, EAGAIN = 11, ENOMEM = 12, EACCES = 13, EEXIST = 17, ENOTDIR = 20, EISDIR = 21, EINVAL = 22,
       EMFILE = 24, ENAMETOOLONG = 36, EBADMSG = 74, EMSGSIZE = 90, ECONNRESET = 104 };
enum { O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, AT_FDCWD = -100, F_SETFD = 2, FD_CLOEXEC = 1, F_DUPFD_CLOEXEC = 1030 };
enum { CLOSE_RANGE_CLOEXEC = 4, PROT_READ_WRITE = 3, MAP_PRIVATE_ANONYMOUS = 0x22, TIOCSCTTY = 0x540E };
enum { SIGKILL = 9, SIGPIPE = 13, SIGCHLD = 17, SIGSTOP = 19, SIGNALS_END = 65, SIG_SETMASK = 2 };
enum { PR_SET_DUMPABLE = 4, PR_SET_NAME = 15, PR_SET_NO_NEW_PRIVS = 38, RLIMIT_NOFILE = 7, POLLIN = 1, POLLOUT = 4 };
enum { SOL_SOCKET = 1, SO_PEERCRED = 17, SCM_RIGHTS = 1 };
enum { MSG_CTRUNC = 0x8, MSG_TRUNC = 0x20, MSG_DONTWAIT = 0x40, MSG_NOSIGNAL = 0x4000 };
enum { STATX_TYPE = 1, S_IFMT = 0170000, S_IFDIR = 0040000, PATH_MAX = 4096, CAPABILITY_VERSION_3 = 0x20080522 };

struct action { uintptr_t handler, flags, restorer; uint64_t mask; }; /* all zero is SIG_DFL, and a handler of 1 SIG_IGN */
struct statx { uint32_t mask_blksize_attributes_nlink_uid_gid[7]; uint16_t mode; uint8_t rest[226]; };
struct capabilities { uint32_t effective, permitted, inheritable; };
struct limits { uint64_t soft, hard; };
struct poll { int fd; int16_t events, happened; };
struct time { int64_t seconds, nanoseconds; };
struct piece { void *bytes; size_t size; };
struct packet {
    void *name;
    uint32_t name_size;
    struct piece *pieces;
    size_t piece_count;
    void *control;
    size_t control_size;
    int flags;
};
struct peer { uint32_t pid, uid, gid; };
struct entry { uint64_t inode, offset; uint16_t size; uint8_t type; char name[]; };

static inline long sys_read(int fd, void *into, size_t size) { return call(SYS_read, fd, (long)into, (long)size, 0, 0); }
static inline long sys_write(int fd, const void *from, size_t size) { return call(SYS_write, fd, (long)from, (long)size, 0, 0); }
static inline long sys_open(const char *path, int flags) { return call(SYS_openat, AT_FDCWD, (long)path, flags, 0, 0); }
static inline long sys_mkdir(const char *path, int mode) { return call(SYS_mkdirat, AT_FDCWD, (long)path, mode, 0, 0); }
static inline long sys_close(int fd) { return call(SYS_close, fd, 0, 0, 0, 0); }
static inline long sys_dup(int from, int to) { return call(SYS_dup3, from, to, 0, 0, 0); }
static inline long sys_dup_from(int from, int least) { return call(SYS_fcntl, from, F_DUPFD_CLOEXEC, least, 0, 0); }
static inline long sys_set_cloexec(int fd) { return call(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC, 0, 0); }
static inline long sys_getdents(int fd, void *into, size_t size) { return call(SYS_getdents64, fd, (long)into, (long)size, 0, 0); }
static inline long sys_allocate(size_t size)
{
    return call(SYS_mmap, 0, (long)size, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1);
}
static inline long sys_free(void *mapping, size_t size) { return call(SYS_munmap, (long)mapping, (long)size, 0, 0, 0); }
static inline long sys_sigaction(int number, const struct action *action)
{
    return call(SYS_rt_sigaction, number, (long)action, 0, sizeof action->mask, 0);
}
static inline long sys_set_signal_mask(const uint64_t *mask)
{
    return call(SYS_rt_sigprocmask, SIG_SETMASK, (long)mask, 0, sizeof *mask, 0);
}
static inline long sys_getpid(void) { return call(SYS_getpid, 0, 0, 0, 0, 0); }
static inline long sys_fork(void) { return call(SYS_clone, SIGCHLD, 0, 0, 0, 0); }
static inline long sys_getsid(void) { return call(SYS_getsid, 0, 0, 0, 0, 0); }
static inline long sys_setsid(void) { return call(SYS_setsid, 0, 0, 0, 0, 0); }
static inline long sys_set_controlling_tty(int fd) { return call(SYS_ioctl, fd, TIOCSCTTY, 0, 0, 0); }
static inline long sys_set_limit(uint32_t resource, const void *limits)
{
    return call(SYS_prlimit64, 0, resource, (long)limits, 0, 0);
}
static inline long sys_get_limit(uint32_t resource, struct limits *limits)
{
    return call(SYS_prlimit64, 0, resource, 0, (long)limits, 0);
}
static inline long sys_umask(uint32_t mask) { return call(SYS_umask, mask, 0, 0, 0, 0); }
static inline long sys_set_nice(int nice) { return call(SYS_setpriority, 0, 0, nice, 0, 0); }
static inline long sys_geteuid(void) { return call(SYS_geteuid, 0, 0, 0, 0, 0); }
static inline long sys_setgroups(size_t count, const uint32_t *groups)
{
    return call(SYS_setgroups, (long)count, (long)groups, 0, 0, 0);
}
static inline long sys_setgid(uint32_t gid) { return call(SYS_setresgid, gid, gid, gid, 0, 0); }
static inline long sys_setuid(uint32_t uid) { return call(SYS_setresuid, uid, uid, uid, 0, 0); }
static inline long sys_capset(const void *header, const struct capabilities *sets)
{
    return call(SYS_capset, (long)header, (long)sets, 0, 0, 0);
}
static inline long sys_set_no_new_privs(void) { return call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }
static inline long sys_set_name(const char *name) { return call(SYS_prctl, PR_SET_NAME, (long)name, 0, 0, 0); }
static inline long sys_set_dumpable(int dumpable) { return call(SYS_prctl, PR_SET_DUMPABLE, dumpable, 0, 0, 0); }
static inline long sys_chdir(const char *path) { return call(SYS_chdir, (long)path, 0, 0, 0, 0); }
static inline long sys_stat_type(const char *path, struct statx *into)
{
    return call(SYS_statx, AT_FDCWD, (long)path, 0, STATX_TYPE, (long)into);
}
static inline long sys_execve(const char *path, char **arguments, char **environment)
{
    return call(SYS_execve, (long)path, (long)arguments, (long)environment, 0, 0);
}
static inline long sys_close_range(unsigned first, unsigned last, int flags)
{
    return call(SYS_close_range, first, last, flags, 0, 0);
}
static inline long sys_accept(int listener) { return call(SYS_accept4, listener, 0, 0, 0, 0); }
static inline long sys_get_peer(int fd, struct peer *peer)
{
    uint32_t size = sizeof *peer;
    return call(SYS_getsockopt, fd, SOL_SOCKET, SO_PEERCRED, (long)peer, (long)&size);
}
static inline long sys_send(int fd, const struct packet *packet)
{
    return call(SYS_sendmsg, fd, (long)packet, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
}
static inline long sys_receive(int fd, struct packet *packet, int flags)
{
    return call(SYS_recvmsg, fd, (long)packet, flags, 0, 0);
}
static inline long sys_poll(struct poll *polls, size_t count, struct time *patience)
{
    return call(SYS_ppoll, (long)polls, (long)count, (long)patience, 0, 0);
}
static inline long sys_kill(long pid, int signal) { return call(SYS_kill, pid, signal, 0, 0, 0); }
static inline _Noreturn void sys_exit(int status)
{
    for (;;)
        call(SYS_exit_group, status, 0, 0, 0, 0);
}
