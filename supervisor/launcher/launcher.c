/* The launcher: the program that each child of the supervisor starts as, and that becomes the command.
 *
 *     launcher ORDERS_FD ANSWER_FD [CGROUP_DIRECTORY...]
 *     launcher 0 0 [CGROUP_DIRECTORY...]
 *
 * The guarantee. Either the command runs, with every order carried out, or it never runs at all, and the answer says which
 * order failed and why. No order is skipped, and none gives way to something weaker.
 *
 *  - End of file on ANSWER_FD without a byte: exec has happened. (Or the process was killed in that instant; the kernel kills
 *    it in exec when a limit leaves no room for the program. The exit status then is a signal's.)
 *  - ECONNRESET instead, where ORDERS_FD and ANSWER_FD are one socket: it was killed before. The last byte of the orders is
 *    read right before exec, and a socket that is closed while there is something to read resets the other end (unix(7)).
 *  - Eight bytes on ANSWER_FD: {u32 stage, i32 errno}, written at once. The launcher then exits: 127 when there is no such
 *    command, 126 when it cannot be executed, 125 for all other stages.
 *  - Killed by signal 64 (SIGRTMAX), without an answer: ORDERS_FD ended before the first byte, or nobody read the answer.
 *    Whoever was to give orders gave up, or is dead; and whoever comes after it can tell by this signal, which no command
 *    uses, that the command never ran. So a *parked* launcher ends, one that was started ahead of need and waits for orders.
 *  - Exit 125, without an answer: the command line names no ANSWER_FD.
 *
 * The descriptors are blocking ones. ORDERS_FD is a pipe or a stream socket; if a socket, it may be ANSWER_FD too. In the
 * second form both are a Unix socket on descriptor 0, on which one more byte comes before the orders, and with it the
 * descriptor that is to be 0 (SCM_RIGHTS, unix(7)). So whoever starts many launchers need pass them nothing but descriptors 0
 * to 2, and need close no others between fork and exec, which with thousands open takes milliseconds.
 *
 * What the command gets beside its orders: all signals at their default and none blocked, no descriptor above 2, and, when it
 * is to be another user than root, no capability. Otherwise it inherits from whoever started the launcher.
 *
 * Theory of operation. What needs no orders comes first, so that a parked launcher has done it when they come: close all other
 * descriptors (in the first form, which may be given some for its orders, mark them close-on-exec), make and join the cgroups
 * of the command line (a directory that is there already is fine), reset the signals. Marking so early is enough: the launcher
 * opens nothing that it keeps, and ORDERS_FD and ANSWER_FD stay usable until exec. The cgroups are made here because mkdir
 * takes the kernel 0.1 ms, for which a supervisor's loop would stand still. In the second form descriptor 0 comes next, with the
 * orders at the latest: what it is need not be known before. Then the orders are read into one mapping, and
 * checked to their end before any is carried out. That mapping is the only memory ever asked for, so that no limit that they
 * set can fail the launcher itself. The strings that exec needs are used where they lie.
 *
 * Orders, all little endian: {u32 magic, u32 size}, then `size` bytes of records, then one more byte, of any value, which is
 * left unread until all is done. A record is {u16 tag, u16 zero, u32 length} and `length` bytes, padded to a multiple of 8. The
 * tag is the stage, and the order of the tags is the order of the deeds, so records come in ascending order of tag; the
 * launcher walks along them and does what they say. The order is chosen so that
 *
 *  - the cgroups come first, so that everything else is accounted there;
 *  - what opens files or needs privilege comes before the limits (RLIMIT_NOFILE could forbid the first) and before the user;
 *  - limits come before the user, because raising one needs privilege, and because RLIMIT_NPROC then counts for the user from
 *    the start: exec gives EAGAIN if that user has more processes already (setresuid(2), execve(2));
 *  - groups, gid, uid in that order, because each needs the privilege that the next takes away;
 *  - the directory comes after the user, so that this user's permissions decide.
 *
 * Stages with an order. "+": any number of such records. A string is any bytes and a NUL.
 *
 *      1 JOIN                + u32 descriptor of a cgroup.procs, open for writing; closed afterwards (also for CGROUP_DIRECTORY)
 *      2 NULL_STREAM         + u32 0, 1 or 2: /dev/null becomes this descriptor
 *      3 STDERR_TO_STDOUT      nothing: descriptor 2 becomes a copy of 1
 *      4 NEW_SESSION           nothing: setsid; a process that leads a session already, is content
 *      5 CONTROLLING_TTY       nothing: the terminal on descriptor 0 becomes that of the session
 *      6 OOM_SCORE_ADJ         string: decimal, for /proc/self/oom_score_adj
 *      7 NICE                  i32
 *      8 UMASK                 u32
 *      9 LIMIT               + {u32 resource, u32 zero, u64 soft, u64 hard} for prlimit
 *     10 GROUPS                u32 each: exactly these supplementary groups; without this record, setgroups is not called
 *     11 GID                   u32, real, effective and saved
 *     12 UID                   u32, real, effective and saved; if not 0, all capabilities are dropped
 *     13 NO_NEW_PRIVS          nothing
 *     14 DIRECTORY             string
 *     15 COMMAND               string, required; sought in PATH if it has no '/'. errno of exec, or EISDIR
 *     16 ARGUMENT            + string, required: argv, beginning with argv[0]
 *     17 ENVIRONMENT         + string, "NAME=value"
 *
 * Stages without one:
 *
 *     32 ORDERS                not readable (errno of read), larger than 8 MiB (EMSGSIZE), cut short or malformed (EBADMSG)
 *     33 MEMORY                no memory for the orders
 *     34 SIGNALS               signals could not be reset
 *     35 DESCRIPTORS           descriptors could not be closed, or marked close-on-exec; or the one that is to be 0 did not come
 *     36 INTERPRETER           the command exists, but what it names to run it (`#!`, or the ELF loader) does not
 *
 * The starter may use vfork: from the exec of the launcher on it is free, and waits for nothing that is done here.
 */
#include "kernel.h"

enum stage {
    JOIN = 1, NULL_STREAM, STDERR_TO_STDOUT, NEW_SESSION, CONTROLLING_TTY, OOM_SCORE_ADJ, NICE, UMASK, LIMIT, GROUPS, GID, UID,
    NO_NEW_PRIVS, DIRECTORY, COMMAND, ARGUMENT, ENVIRONMENT, TAGS_END,
    ORDERS = 32, MEMORY, SIGNALS, DESCRIPTORS, INTERPRETER
};

enum { MAGIC = 0x31524c43 /* "CLR1" */, MAX_SIZE = 8 << 20, ALIGNMENT = 8, MIN_DESCRIPTOR = 3 };
enum { STATUS_FAILED = 125, NEVER_EXECUTED = 64 };

struct header { uint32_t magic, size; };
struct record { uint16_t tag, zero; uint32_t length, value[]; };
struct program { char *command, **arguments, **environment; };
struct rights { size_t size; int32_t level, type, fd, padding; }; /* a cmsghdr and the descriptor that it carries (cmsg(3)) */

static int answer_fd, orders_fd;

static _Noreturn void end_unread(void)
{
    static const struct action defaults;
    sys_sigaction(NEVER_EXECUTED, &defaults); /* it may be ignored or blocked, since signals are reset only later */
    sys_set_signal_mask(&defaults.mask);
    sys_kill(sys_getpid(), NEVER_EXECUTED);
    sys_exit(STATUS_FAILED);
}

static _Noreturn void fail(enum stage stage, long error)
{
    static const struct action ignore = { .handler = 1 };
    struct { uint32_t stage; int32_t error; } answer = { stage, (int32_t)error };
    sys_sigaction(SIGPIPE, &ignore); /* so that we learn whether anyone reads the answer */
    if (sys_write(answer_fd, &answer, sizeof answer) < 0)
        end_unread();
    if (stage != COMMAND && stage != INTERPRETER)
        sys_exit(STATUS_FAILED);
    sys_exit(error == ENOENT || error == ENOTDIR ? 127 : 126);
}

static long must(enum stage stage, long result)
{
    if (result < 0)
        fail(stage, -result);
    return result;
}

/* Takes a decimal descriptor off the text, and the comma behind it. 0 to 2 are the command's: they, and all else, give -1. */
static int take_descriptor(char **text)
{
    int fd = 0;
    char *c = *text;
    while (*c >= '0' && *c <= '9' && fd < 100000000)
        fd = fd * 10 + (*c++ - '0');
    if (*c && *c != ',')
        return -1;
    *text = *c ? c + 1 : c;
    return fd < MIN_DESCRIPTOR ? -1 : fd;
}

static int is_zero(const char *text) { return text[0] == '0' && !text[1]; }

/* Closes all descriptors above 2, at once or on exec. */
static void close_descriptors(int on_exec)
{
    if (sys_close_range(MIN_DESCRIPTOR, ~0U, on_exec ? CLOSE_RANGE_CLOEXEC : 0) == 0)
        return;
    /* Linux before 5.11, or a seccomp filter that does not know the call. Not a loop up to the limit: that may be 2^30. */
    _Alignas(struct entry) char entries[1024];
    int directory = (int)must(DESCRIPTORS, sys_open("/proc/self/fd", O_RDONLY));
    long size;
    while ((size = must(DESCRIPTORS, sys_getdents(directory, entries, sizeof entries))) > 0)
        for (long at = 0; at < size; at += ((struct entry *)(entries + at))->size) {
            char *name = ((struct entry *)(entries + at))->name;
            int fd = take_descriptor(&name); /* -1 for "." and ".." too */
            if (fd >= 0 && fd != directory)
                must(DESCRIPTORS, on_exec ? sys_set_cloexec(fd) : sys_close(fd));
        }
    sys_close(directory);
}

/* Takes what is to be descriptor 0 from the socket that is there now, and the socket away from there. */
static void take_stdin(void)
{
    char byte;
    struct rights rights = { 0 };
    struct piece piece = { &byte, 1 };
    struct packet packet = { .pieces = &piece, .piece_count = 1, .control = &rights, .control_size = sizeof rights };
    orders_fd = answer_fd = (int)must(DESCRIPTORS, sys_dup_from(0, MIN_DESCRIPTOR));
    long size;
    while ((size = sys_receive(orders_fd, &packet, 0)) == -EINTR) {}
    if (must(DESCRIPTORS, size) == 0)
        end_unread();
    if (packet.control_size < sizeof rights - sizeof rights.padding || rights.type != SCM_RIGHTS)
        fail(DESCRIPTORS, packet.flags & MSG_CTRUNC ? EMFILE : EBADMSG); /* no room for it, or there was none */
    must(DESCRIPTORS, sys_dup(rights.fd, 0));
    sys_close(rights.fd);
}

static void join(int fd)
{
    if (fd < MIN_DESCRIPTOR || fd == orders_fd || fd == answer_fd)
        fail(JOIN, EBADF);
    must(JOIN, sys_write(fd, "0", 1)); /* 0 is the writer itself, in whatever pid namespace (cgroups(7)) */
    sys_close(fd);
}

static void make_and_join(const char *directory)
{
    static const char file[] = "/cgroup.procs";
    char path[PATH_MAX];
    size_t length = 0;
    for (; directory[length]; length++) {
        if (length == PATH_MAX - sizeof file)
            fail(JOIN, ENAMETOOLONG);
        path[length] = directory[length];
    }
    for (size_t i = 0; i < sizeof file; i++)
        path[length + i] = file[i];
    long result = sys_mkdir(directory, 0777);
    if (result != -EEXIST)
        must(JOIN, result);
    join((int)must(JOIN, sys_open(path, O_WRONLY)));
}

static void reset_signals(void)
{
    static const struct action defaults;
    for (int number = 1; number < SIGNALS_END; number++)
        if (number != SIGKILL && number != SIGSTOP)
            must(SIGNALS, sys_sigaction(number, &defaults));
    must(SIGNALS, sys_set_signal_mask(&defaults.mask));
}

/* Reads until there are `size` bytes or the other side has closed; a pipe may give them in any pieces. */
static size_t receive(void *into, size_t size)
{
    size_t received = 0;
    while (received < size) {
        long n = sys_read(orders_fd, (char *)into + received, size - received);
        if (n == -EINTR)
            continue;
        if (must(ORDERS, n) == 0)
            break;
        received += (size_t)n;
    }
    return received;
}

static size_t padded(uint32_t length) { return ((size_t)length + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1); }

static int is_well_formed(const struct record *record)
{
    switch (record->tag) {
    case STDERR_TO_STDOUT: case NEW_SESSION: case CONTROLLING_TTY: case NO_NEW_PRIVS:
        return record->length == 0;
    case JOIN: case NULL_STREAM: case NICE: case UMASK: case GID: case UID:
        return record->length == 4;
    case LIMIT:
        return record->length == 24;
    case GROUPS:
        return record->length % 4 == 0;
    case OOM_SCORE_ADJ: case DIRECTORY: case COMMAND: case ARGUMENT: case ENVIRONMENT:
        return record->length > 0 && ((const char *)record->value)[record->length - 1] == 0;
    default:
        return 0;
    }
}

static int may_repeat(unsigned tag)
{
    return tag == JOIN || tag == NULL_STREAM || tag == LIMIT || tag == ARGUMENT || tag == ENVIRONMENT;
}

/* Checks all records and finds the program in them; does nothing else. The program's arrays must be zero and large enough. */
static int understand(char *body, size_t size, struct program *program)
{
    size_t argument_count = 0, environment_count = 0;
    unsigned last = 0;
    if (size % ALIGNMENT)
        return 0;
    for (size_t at = 0; at < size;) {
        struct record *record = (struct record *)(body + at);
        at += sizeof *record;
        if (record->length > size - at || record->zero || !is_well_formed(record))
            return 0;
        if (record->tag < last || (record->tag == last && !may_repeat(last)))
            return 0;
        if (record->tag == COMMAND)
            program->command = (char *)record->value;
        if (record->tag == ARGUMENT)
            program->arguments[argument_count++] = (char *)record->value;
        if (record->tag == ENVIRONMENT)
            program->environment[environment_count++] = (char *)record->value;
        last = record->tag;
        at += padded(record->length); /* size is a multiple of the alignment: this too ends within it */
    }
    return program->command && argument_count;
}

static void open_null(uint32_t stream)
{
    if (stream >= MIN_DESCRIPTOR)
        fail(NULL_STREAM, EBADF);
    int fd = (int)must(NULL_STREAM, sys_open("/dev/null", O_RDWR)); /* not close-on-exec: it may be the stream itself */
    if (fd == (int)stream)
        return;
    must(NULL_STREAM, sys_dup(fd, (int)stream));
    sys_close(fd);
}

static void start_session(void)
{
    long result = sys_setsid();
    if (result == -EPERM && sys_getsid() == sys_getpid()) /* and not merely the leader of a group in another's session */
        return;
    must(NEW_SESSION, result);
}

static void set_oom_score_adj(const char *decimal, size_t length)
{
    int fd = (int)must(OOM_SCORE_ADJ, sys_open("/proc/self/oom_score_adj", O_WRONLY));
    must(OOM_SCORE_ADJ, sys_write(fd, decimal, length)); /* with its NUL, so that "" too is written, and refused */
    sys_close(fd);
}

/* To the kernel, an id of -1 means "leave it": the child would remain who the supervisor is. */
static uint32_t valid_id(enum stage stage, uint32_t id)
{
    if (id == ~0U)
        fail(stage, EINVAL);
    return id;
}

/* setresuid drops capabilities only on the way from 0 to another uid, only unless securebits say otherwise, and never the
 * inheritable ones. Emptying all sets covers what is left, the ambient set with them. What a setuid program could regain
 * (the bounding set) is for NO_NEW_PRIVS to forbid. */
static void become_user(uint32_t uid)
{
    static const struct { uint32_t version, pid; } header = { CAPABILITY_VERSION_3, 0 };
    static const struct capabilities none[2];
    must(UID, sys_setuid(valid_id(UID, uid)));
    if (uid)
        must(UID, sys_capset(&header, none));
}

static void carry_out(const struct record *record)
{
    const uint32_t *value = record->value;
    switch (record->tag) {
    case JOIN: join((int)value[0]); break;
    case NULL_STREAM: open_null(value[0]); break;
    case STDERR_TO_STDOUT: must(STDERR_TO_STDOUT, sys_dup(1, 2)); break;
    case NEW_SESSION: start_session(); break;
    case CONTROLLING_TTY: must(CONTROLLING_TTY, sys_set_controlling_tty(0)); break;
    case OOM_SCORE_ADJ: set_oom_score_adj((const char *)value, record->length); break;
    case NICE: must(NICE, sys_set_nice((int)value[0])); break;
    case UMASK: must(UMASK, sys_umask(value[0])); break;
    case LIMIT: must(LIMIT, sys_set_limit(value[0], value + 2)); break;
    case GROUPS: must(GROUPS, sys_setgroups(record->length / 4, value)); break;
    case GID: must(GID, sys_setgid(valid_id(GID, value[0]))); break;
    case UID: become_user(value[0]); break;
    case NO_NEW_PRIVS: must(NO_NEW_PRIVS, sys_set_no_new_privs()); break;
    case DIRECTORY: must(DIRECTORY, sys_chdir((const char *)value)); break;
    }
}

/* Becomes the file, or returns why it could not be this one; fails for what another file of that name would not mend. */
static long attempt(const char *file, const struct program *program)
{
    struct statx status;
    long result = sys_stat_type(file, &status);
    if (result < 0)
        return -result;
    if ((status.mode & S_IFMT) == S_IFDIR)
        return EISDIR; /* exec would say EACCES */
    result = sys_execve(file, program->arguments, program->environment);
    if (result == -ENOENT || result == -ENOTDIR)
        fail(INTERPRETER, -result);
    if (result != -EACCES)
        fail(COMMAND, -result);
    return EACCES;
}

static const char *path_of(char **environment)
{
    for (; *environment; environment++) {
        const char *name = "PATH=", *c = *environment;
        while (*name && *name == *c)
            name++, c++;
        if (!*name)
            return c;
    }
    return "/usr/local/bin:/usr/bin:/bin";
}

/* As execvp(3) does: an empty element of PATH is the current directory, a file that may not be executed is passed over, but
 * remembered. Unlike it, there is no shell for a file of unknown format. */
static _Noreturn void execute(const struct program *program)
{
    char candidate[PATH_MAX];
    long remembered = ENOENT;
    const char *c = program->command;
    while (*c && *c != '/')
        c++;
    if (*c || c == program->command)
        fail(COMMAND, attempt(program->command, program));
    for (const char *path = path_of(program->environment);; path++) {
        size_t length = 0;
        for (; *path && *path != ':'; path++)
            if (length < PATH_MAX)
                candidate[length++] = *path;
        if (length && length < PATH_MAX)
            candidate[length++] = '/';
        for (c = program->command; length < PATH_MAX && (candidate[length] = *c); c++)
            length++;
        long error = length < PATH_MAX ? attempt(candidate, program) : ENAMETOOLONG;
        if (remembered == ENOENT && error != ENOTDIR)
            remembered = error;
        if (!*path)
            fail(COMMAND, remembered);
    }
}

/* Called by the entry point with the stack as the kernel made it: argc, then argv. */
_Noreturn void launch(long *stack)
{
    char **argv = (char **)(stack + 1);
    if (stack[0] < 3)
        sys_exit(STATUS_FAILED);
    int stdin_comes = is_zero(argv[1]) && is_zero(argv[2]); /* and answer_fd is 0 until it has */
    if (!stdin_comes) {
        if ((answer_fd = take_descriptor(&argv[2])) < 0)
            sys_exit(STATUS_FAILED);
        orders_fd = take_descriptor(&argv[1]);
    }
    sys_set_name("creche-launcher"); /* it may have been executed by a number (/proc/self/fd) */
    close_descriptors(!stdin_comes);
    for (char **directory = argv + 3; *directory; directory++)
        make_and_join(*directory);
    reset_signals();
    if (stdin_comes)
        take_stdin();

    struct header header;
    size_t received = receive(&header, sizeof header);
    if (received == 0)
        end_unread();
    if (received < sizeof header || header.magic != MAGIC)
        fail(ORDERS, EBADMSG);
    if (header.size > MAX_SIZE)
        fail(ORDERS, EMSGSIZE);

    /* Behind the body lie the two arrays. A string's record has 16 bytes or more, so there are no more pointers than this; and
     * one each remains zero, to end them. Pages of them that are never touched cost nothing. */
    size_t pointers = header.size / 16 + 1, body_size = padded(header.size);
    char *body = (char *)must(MEMORY, sys_allocate(body_size + 2 * pointers * sizeof(char *)));
    struct program program = { .arguments = (char **)(body + body_size) };
    program.environment = program.arguments + pointers;
    if (receive(body, header.size) < header.size || !understand(body, header.size, &program))
        fail(ORDERS, EBADMSG);

    for (size_t at = 0; at < header.size;) {
        const struct record *record = (const struct record *)(body + at);
        carry_out(record);
        at += sizeof *record + padded(record->length);
    }
    char last;
    if (!receive(&last, sizeof last))
        fail(ORDERS, EBADMSG);
    execute(&program);
}
