/* The keeper: holds descriptors for a supervisor, and outlives it.
 *
 *     keeper [ANYTHING]           descriptor 0: a connection to the supervisor that starts it; 1: a listening, non-blocking
 *                                 socket for those that come after; both AF_UNIX and SOCK_SEQPACKET. ANYTHING is for ps(1).
 *
 * The guarantee. What a PUT has brought into the connection is held until a DROP of its key, a later PUT of its key, or END:
 * whenever and however the supervisor dies, and also if the keeper had not read it yet by then. Whoever connects afterwards
 * gets it all by TAKE, as often as it likes. What cannot be held is REFUSED, at once and by name; nothing is dropped silently.
 *
 *  - It never reads, writes or changes what it holds. It is for the supervisor never to put the *write* end of an output pipe:
 *    its reader would wait for an end of file that no longer comes.
 *  - One supervisor at a time: while a connection lives, further ones are told BUSY and are closed. One whose other end is
 *    closed is read to its end before the next is served, so none overtakes what a dead one has said.
 *  - Only its own user is served; others are told FORBIDDEN.
 *  - It ends by END; by itself, when its connection ends while it holds nothing; and by SIGKILL, with all that it holds. It
 *    ignores all signals that anybody but itself sends: a terminal's, a shutdown's, a process group's.
 *  - A message that it does not understand ends the connection, and costs nothing that is held.
 *  - It does not block: not for a supervisor that is stopped, nor for one that does not read. It reads nothing while it owes an
 *    answer, so that it need remember only one.
 *
 * Messages, all in the byte order of the machine. Each kind has the magic in it, whose highest byte is the version:
 *
 *     PUT    {u32 kind, u32 count, u64 key, u32 tag[4]}, and count (1 to 4) descriptors: held as `key`, in place of what was.
 *            Each descriptor has the tag of its place; what tags mean is the supervisor's business.
 *     DROP   {u32 kind, u32 count, u64 key[count]}, count 1 to 256: held no longer. Keys that are not held do no harm.
 *     TAKE   {u32 kind, u32 zero}: answered by a HELD or a WITHHELD for each key, in no order, then TAKEN.
 *     END    {u32 kind, u32 zero}: exit now.
 *
 * Answers, all {u32 kind, u32 count, u64 key, u32 tag[4]}, with zeros where nothing is said:
 *
 *     WELCOME    unasked, the first on a connection; key: how many are held, tag[0]: the keeper's pid
 *     BUSY       instead of it; FORBIDDEN likewise
 *     REFUSED    key is not held, because of errno `count`: EMFILE, or ENOMEM for the table
 *     HELD       like PUT; the keeper keeps its own
 *     WITHHELD   key is held, but could not be sent now, because of errno `count` (ETOOMANYREFS, in unix(7))
 *     TAKEN      the end of what is held
 *
 * Theory of operation. The process that was started forks and exits, 0 when all is well, so that the keeper is nobody's child.
 * The keys are in a hash table with linear probing, in the program itself up to 48 of them and in one mapping beyond, which
 * grows and shrinks with their number; there is no other memory. Descriptors are numbered from below, so one that has a number
 * near the limit says that few are left: it is refused while there still is one for another connection.
 *
 * To wake a process costs whoever sends it something several times the sending. So when there is nothing more to read, the
 * keeper rests for 20 milliseconds before it reads on, unless the other end is closed or somebody else connects: a busy
 * supervisor does not have to wake it each time, and what it sends is held in the connection until then.
 *
 * Closing one end of a connection in whose queue something was unread gives the other ECONNRESET, once, *before* what it has
 * yet to read (unix_release_sock and sock_error in the kernel's net/). That is not the end; end of file is.
 */
#define START "keep"
#include "kernel.h"

enum {
    MAGIC = 0x014b4300, /* "\0CK\1" */
    PUT = MAGIC + 1, DROP, TAKE, END,
    WELCOME = MAGIC + 16, BUSY, FORBIDDEN, REFUSED, HELD, WITHHELD, TAKEN
};
enum { FDS_MAX = 4, KEYS_MAX = 256, LISTENER = 3, FIRST_CONNECTION = 4, RESERVED_FDS = 4, SMALLEST_TABLE = 64 };
enum { STATUS_FAILED = 125, REST_NANOSECONDS = 20000000, RETRY_NANOSECONDS = 100000000 };

/* Those of the program's own doing (ILL TRAP ABRT BUS FPE SEGV SYS), and those that cannot be ignored (KILL STOP). */
static const uint64_t deadly_signals = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 30;

struct note { uint32_t kind, count; uint64_t key; uint32_t tags[FDS_MAX]; };
union message { struct note note; struct { uint32_t kind, count; uint64_t keys[KEYS_MAX]; } drop; };
struct rights { size_t size; int32_t level, type, fds[FDS_MAX]; }; /* a cmsghdr and what it carries (cmsg(3)) */
struct holding { uint64_t key; uint32_t count, tags[FDS_MAX]; int32_t fds[FDS_MAX]; }; /* count 0: a free slot */

static struct holding first_table[SMALLEST_TABLE], *table = first_table;
static size_t slots = SMALLEST_TABLE, held; /* slots: a power of two */
static uint64_t limit_of_fds;

static int connection = FIRST_CONNECTION; /* or -1 */
static struct note owed;                  /* kind 0: nothing; HELD: all from slot `next` on */
static size_t next;

static void close_fds(const int32_t *fds, size_t count)
{
    while (count)
        sys_close(fds[--count]);
}

/* --- The table */

static size_t home_of(uint64_t key)
{
    return (key * 0x9e3779b97f4a7c15 >> 32) & (slots - 1); /* Fibonacci hashing: neighbours among keys are none here */
}

/* The key's slot, or the free one where it belongs. There always is a free one. */
static struct holding *slot_of(uint64_t key)
{
    size_t slot = home_of(key);
    while (table[slot].count && table[slot].key != key)
        slot = (slot + 1) & (slots - 1);
    return &table[slot];
}

static void copy(struct holding *to, const struct holding *from)
{
    to->key = from->key;
    to->count = from->count;
    for (int i = 0; i < FDS_MAX; i++) {
        to->tags[i] = from->tags[i];
        to->fds[i] = from->fds[i];
    }
}

/* Move everything into a table of another size; whether there was memory for it. */
static int resize(size_t size)
{
    struct holding *old = table;
    size_t old_slots = slots;
    if (size > SMALLEST_TABLE) {
        long mapping = sys_allocate(size * sizeof *table);
        if (mapping < 0 && mapping > -4096)
            return 0;
        table = (struct holding *)mapping;
    } else {
        table = first_table;
        for (size_t slot = 0; slot < SMALLEST_TABLE; slot++)
            table[slot].count = 0;
    }
    slots = size;
    for (size_t slot = 0; slot < old_slots; slot++)
        if (old[slot].count)
            copy(slot_of(old[slot].key), &old[slot]);
    if (old != first_table)
        sys_free(old, old_slots * sizeof *old);
    return 1;
}

static void drop(uint64_t key)
{
    struct holding *holding = slot_of(key);
    if (!holding->count)
        return;
    close_fds(holding->fds, holding->count);
    /* Those behind it that are not at home move up, so that no search ends too early at the hole. */
    size_t hole = (size_t)(holding - table), slot = hole, mask = slots - 1;
    while (table[slot = (slot + 1) & mask].count)
        if (((slot - home_of(table[slot].key)) & mask) >= ((slot - hole) & mask)) {
            copy(&table[hole], &table[slot]);
            hole = slot;
        }
    table[hole].count = 0;
    held--;
    if (slots > SMALLEST_TABLE && held < slots / 8)
        resize(slots / 2); /* if there is no memory for it, it remains as large as it was */
}

/* --- The connection */

static void hang_up(void)
{
    sys_close(connection);
    connection = -1;
    owed.kind = 0;
    if (!held)
        sys_exit(0);
}

static long send_note(int to, struct note *note, const int32_t *fds, uint32_t count)
{
    struct rights rights = { offsetof(struct rights, fds) + count * sizeof *fds, SOL_SOCKET, SCM_RIGHTS, { 0 } };
    struct piece piece = { note, sizeof *note };
    struct packet packet = { .pieces = &piece, .piece_count = 1 };
    for (uint32_t i = 0; i < count; i++)
        rights.fds[i] = fds[i];
    if (count) {
        packet.control = &rights;
        packet.control_size = rights.size;
    }
    return sys_send(to, &packet);
}

static void owe(uint32_t kind, uint32_t count, uint64_t key)
{
    owed.kind = kind;
    owed.count = count;
    owed.key = key;
    owed.tags[0] = kind == WELCOME ? (uint32_t)sys_getpid() : 0;
    next = 0;
}

/* Send the next thing that is owed. A supervisor that has died gets nothing, but is still read to its end. */
static void answer(void)
{
    if (owed.kind == HELD) {
        while (next < slots && !table[next].count)
            next++;
        if (next == slots) {
            owe(TAKEN, 0, 0);
        } else {
            const struct holding *holding = &table[next];
            struct note note = { .kind = HELD, .count = holding->count, .key = holding->key };
            for (int i = 0; i < FDS_MAX; i++)
                note.tags[i] = holding->tags[i];
            long result = send_note(connection, &note, holding->fds, holding->count);
            if (result < 0 && result != -EAGAIN) {
                struct note excuse = { .kind = WITHHELD, .count = (uint32_t)-result, .key = holding->key };
                result = send_note(connection, &excuse, 0, 0);
            }
            if (result >= 0)
                next++;
            else if (result != -EAGAIN)
                owed.kind = 0;
            return;
        }
    }
    if (send_note(connection, &owed, 0, 0) != -EAGAIN)
        owed.kind = 0;
}

static void put(const struct note *note, const int32_t *fds)
{
    drop(note->key);
    for (uint32_t i = 0; i < note->count; i++)
        if ((uint64_t)fds[i] + RESERVED_FDS >= limit_of_fds) {
            close_fds(fds, note->count);
            owe(REFUSED, EMFILE, note->key);
            return;
        }
    if (held >= slots / 4 * 3 && !resize(slots * 2)) {
        close_fds(fds, note->count);
        owe(REFUSED, ENOMEM, note->key);
        return;
    }
    struct holding *holding = slot_of(note->key);
    holding->key = note->key;
    holding->count = note->count;
    for (uint32_t i = 0; i < note->count; i++) {
        holding->tags[i] = note->tags[i];
        holding->fds[i] = fds[i];
    }
    for (uint32_t i = note->count; i < FDS_MAX; i++)
        holding->tags[i] = 0;
    held++;
}

/* Receive one message and do what it says; or find the end. */
static void serve(void)
{
    union message message;
    struct rights rights = { 0 };
    struct piece piece = { &message, sizeof message };
    struct packet packet = { .pieces = &piece, .piece_count = 1, .control = &rights, .control_size = sizeof rights };
    long size = sys_receive(connection, &packet, MSG_DONTWAIT);
    if (size == -EAGAIN || size == -EINTR || size == -ENOMEM || size == -ECONNRESET)
        return;
    uint32_t received = 0;
    if (rights.type == SCM_RIGHTS)
        received = (uint32_t)((rights.size - offsetof(struct rights, fds)) / sizeof *rights.fds);

    size_t length = size > 0 && !(packet.flags & MSG_TRUNC) ? (size_t)size : 0;
    uint32_t kind = length >= 8 ? message.note.kind : 0, count = length >= 8 ? message.note.count : 0;
    if (kind == PUT && length == sizeof message.note && count >= 1 && count <= FDS_MAX) {
        if (received == count && !(packet.flags & MSG_CTRUNC)) {
            put(&message.note, rights.fds);
            return;
        }
        if (packet.flags & MSG_CTRUNC) {
            close_fds(rights.fds, received);
            drop(message.note.key);
            owe(REFUSED, EMFILE, message.note.key);
            return;
        }
    }
    close_fds(rights.fds, received);
    if (received)
        hang_up();
    else if (kind == DROP && count >= 1 && count <= KEYS_MAX && length == 8 + count * sizeof *message.drop.keys)
        while (count)
            drop(message.drop.keys[--count]);
    else if (kind == TAKE && length == 8 && !count)
        owe(HELD, 0, 0);
    else if (kind == END && length == 8 && !count)
        sys_exit(0);
    else
        hang_up();
}

/* Serve who has connected, or tell why not; whether that could be done. */
static int admit(void)
{
    struct peer peer = { 0, ~0U, 0 };
    int fd = (int)sys_accept(LISTENER);
    if (fd < 0)
        return 0;
    sys_get_peer(fd, &peer);
    if (peer.uid == (uint32_t)sys_geteuid() && connection < 0) {
        connection = fd;
        owe(WELCOME, 0, held);
    } else {
        struct note note = { .kind = peer.uid == (uint32_t)sys_geteuid() ? BUSY : FORBIDDEN };
        send_note(fd, &note, 0, 0);
        sys_close(fd);
    }
    return 1;
}

/* --- The process */

static void must(long result)
{
    if (result < 0)
        sys_exit(STATUS_FAILED);
}

/* Only the two sockets are left, and nothing of a terminal, a file system or a service that somebody may want to end. */
static void detach(void)
{
    struct limits limits;
    int fd;
    must(sys_dup(1, LISTENER));
    must(sys_dup(0, FIRST_CONNECTION));
    sys_close_range(FIRST_CONNECTION + 1, ~0U, 0); /* not before Linux 5.9, but then there is only what the starter has left open */
    must(fd = (int)sys_open("/dev/null", O_RDWR));
    for (int stream = 0; stream < LISTENER; stream++)
        must(sys_dup(fd, stream));
    sys_close(fd);
    must(sys_chdir("/"));
    must(sys_get_limit(RLIMIT_NOFILE, &limits));
    limits.soft = limits.hard;
    must(sys_set_limit(RLIMIT_NOFILE, &limits));
    limit_of_fds = limits.hard;
    fd = (int)sys_open("/proc/self/oom_score_adj", O_WRONLY); /* only where it is allowed; before the process is not dumpable */
    if (fd >= 0) {
        sys_write(fd, "-1000", 5);
        sys_close(fd);
    }
}

/* Called by the entry point with the stack as the kernel made it, which says nothing of interest here. */
_Noreturn void keep(long *stack)
{
    static const struct action ignore = { .handler = 1 };
    (void)stack;
    detach();
    long child = sys_fork();
    must(child);
    if (child)
        sys_exit(0);
    sys_setsid();
    sys_set_name("creche-keeper");
    sys_set_dumpable(0); /* no other process of this user can take what is held by pidfd_getfd(2) or /proc */
    for (int number = 1; number < SIGNALS_END; number++)
        if (number > 31 || !(deadly_signals >> (number - 1) & 1))
            sys_sigaction(number, &ignore);

    owe(WELCOME, 0, 0);
    int is_accepting = 1, has_served = 0;
    for (;;) {
        /* The listener is looked at first. So if somebody waits there and nothing happens on the connection, then it lived
         * after they came. */
        struct poll polls[] = {
            { is_accepting ? LISTENER : -1, POLLIN, 0 }, { connection, owed.kind ? POLLOUT : POLLIN, 0 },
        };
        struct time now = { 0, 0 }, rest = { 0, REST_NANOSECONDS }, retry = { 0, RETRY_NANOSECONDS };
        sys_poll(polls, 2, has_served ? &now : is_accepting ? 0 : &retry);
        if (polls[1].happened && owed.kind) {
            answer();
        } else if (polls[1].happened) {
            serve();
            has_served = 1;
        } else if (polls[0].happened) {
            is_accepting = admit();
        } else if (has_served) {
            polls[1].events = 0;
            sys_poll(polls, 2, &rest);
            has_served = 0;
        } else {
            is_accepting = 1; /* the system had no descriptor or memory for a connection; nothing tells when it has */
        }
    }
}
