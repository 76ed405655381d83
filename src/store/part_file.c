#include "store/part_file.h"

#include "base/json.h"
#include "model/gguf.h"
#include "store/files.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    HASH_STEP_BYTES = 16 << 20, /* of one job: others wait for the same threads */
    BUFFER_BYTES = 256 << 10,
    SAVE_MS = 2000, /* what a killed process has to fetch again */
    STATE_BYTES_MAX = 64 << 10,
    OPEN_TRIES = 16,
};

struct part_chunk {
    struct part_chunk *next;
    uint64_t offset;
    size_t len;
    char data[];
};

enum job { JOB_OPEN, JOB_WORK, JOB_FINISH, JOB_CLOSE };

struct part_file {
    uv_loop_t *loop;
    uv_work_t work;
    struct part_events events;
    char path[4096], part_path[4096 + 8], state_path[4096 + 16];
    bool has_sha256, checks_gguf;
    uint8_t sha256[PART_SHA256_BYTES];

    /* of the loop */
    struct part_source source;
    struct ranges written;
    struct error error;
    struct part_chunk *first, **last; /* to be written */
    uint64_t pending_bytes, saved_ms;
    bool is_working, is_truncate_due, is_space_due, is_save_due, is_finishing, is_finished;
    bool is_closing, is_removed;
    void (*closed)(void *arg);
    void *closed_arg;

    /* of the job under way; the loop looks at it when it is over */
    enum job job;
    struct {
        struct part_chunk *chunks;
        struct part_source source; /* to be saved, or what was found */
        struct ranges written;
        uint64_t hash_end;
        bool is_truncate, is_save, is_space;
        struct error error;
    } now;
    int fd;
    EVP_MD_CTX *hash;
    uint64_t hashed; /* bytes from the front */
    uint8_t digest[PART_SHA256_BYTES];
};

/* ---- jobs: in the thread pool ---- */

static int fail(struct part_file *p, const char *what, const char *path)
{
    int code = errno;
    if (code == ENOSPC || code == EDQUOT || code == EFBIG)
        return error_set(
            &p->now.error, E_IO,
            "%s: %s. What has been fetched of it is kept: make room and try again", path,
            code == EFBIG ? "no more may be written to a file here" : "the disk is full");
    return error_set(&p->now.error, E_IO, "cannot %s %s: %s", what, path, strerror(code));
}

/* The lock must be on the file that has the name: another process may just have finished it. */
static int open_locked(struct part_file *p)
{
    for (int i = 0; i < OPEN_TRIES; i++) {
        struct stat here, named;
        int fd = open(p->part_path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0)
            return fail(p, "make", p->part_path);
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            close(fd);
            return error_set(&p->now.error, E_AGAIN, "another process is fetching %s", p->path);
        }
        if (fstat(fd, &here) == 0 && stat(p->part_path, &named) == 0 &&
            here.st_ino == named.st_ino && here.st_dev == named.st_dev) {
            p->fd = fd;
            return 0;
        }
        close(fd);
    }
    return error_set(&p->now.error, E_AGAIN, "others keep fetching %s", p->path);
}

static void copy_text(const json_t *doc, const char *key, char *ret, size_t size)
{
    const char *text = json_string_value(json_object_get(doc, key));
    snprintf(ret, size, "%s", text != NULL && strlen(text) < size ? text : "");
}

/* What the state says, as far as the part file has it. A state that cannot be read is none. */
static void take_state(struct part_file *p, const json_t *doc, uint64_t size_bytes)
{
    struct part_source *s = &p->now.source;
    const json_t *list = json_object_get(doc, "written"), *item;
    size_t i;
    copy_text(doc, "url", s->url, sizeof(s->url));
    copy_text(doc, "etag", s->etag, sizeof(s->etag));
    copy_text(doc, "modified", s->modified, sizeof(s->modified));
    const json_t *total = json_object_get(doc, "total");
    s->total = json_is_integer(total) && json_integer_value(total) >= 0
                   ? (uint64_t)json_integer_value(total)
                   : PART_TOTAL_UNKNOWN;
    json_array_foreach(list, i, item)
    {
        json_int_t begin = json_integer_value(json_array_get(item, 0));
        json_int_t end = json_integer_value(json_array_get(item, 1));
        if ((uint64_t)end > size_bytes)
            end = (json_int_t)size_bytes;
        if (begin >= 0 && end > begin && (uint64_t)end <= s->total)
            ranges_add(&p->now.written, (uint64_t)begin, (uint64_t)end);
    }
    if (s->url[0] == '\0')
        p->now.written.n = 0;
}

static void do_open(struct part_file *p)
{
    struct buf text;
    struct stat info;
    json_t *doc = NULL;
    struct error ignored = {0};
    p->now.source = (struct part_source){.total = PART_TOTAL_UNKNOWN};
    p->now.written.n = 0;
    if (files_make_folder_of(p->path, &p->now.error) != 0 || open_locked(p) != 0)
        return;
    buf_init(&text, STATE_BYTES_MAX);
    if (fstat(p->fd, &info) == 0 && files_read(p->state_path, &text, &ignored) == 0 &&
        json_parse(buf_str(&text), text.len, &doc, &ignored) == 0)
        take_state(p, doc, (uint64_t)info.st_size);
    json_decref(doc);
    buf_done(&text);
}

static int write_chunk(struct part_file *p, const struct part_chunk *c)
{
    for (size_t done = 0; done < c->len;) {
        ssize_t n = pwrite(p->fd, c->data + done, c->len - done, (off_t)(c->offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return fail(p, "write to", p->part_path);
        done += (size_t)n;
    }
    return 0;
}

static int hash_to(struct part_file *p, uint64_t end)
{
    char *buffer = malloc(BUFFER_BYTES);
    int rc = buffer != NULL ? 0 : error_set(&p->now.error, E_NOMEM, "out of memory");
    while (rc == 0 && p->hashed < end) {
        size_t want = end - p->hashed < BUFFER_BYTES ? (size_t)(end - p->hashed) : BUFFER_BYTES;
        ssize_t n = pread(p->fd, buffer, want, (off_t)p->hashed);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            rc = n < 0 ? fail(p, "read", p->part_path)
                       : error_set(&p->now.error, E_IO, "%s was cut short", p->part_path);
        } else {
            EVP_DigestUpdate(p->hash, buffer, (size_t)n);
            p->hashed += (uint64_t)n;
        }
    }
    free(buffer);
    return rc;
}

/* The bytes first, then what says that they are there. */
static int save_state(struct part_file *p)
{
    struct buf b;
    const struct part_source *s = &p->now.source;
    if (fdatasync(p->fd) != 0)
        return fail(p, "write to", p->part_path);
    buf_init(&b, STATE_BYTES_MAX);
    buf_append_str(&b, "{\"url\":");
    json_append_string(&b, s->url, strlen(s->url));
    buf_append_str(&b, ",\"etag\":");
    json_append_string(&b, s->etag, strlen(s->etag));
    buf_append_str(&b, ",\"modified\":");
    json_append_string(&b, s->modified, strlen(s->modified));
    if (s->total != PART_TOTAL_UNKNOWN)
        buf_printf(&b, ",\"total\":%llu", (unsigned long long)s->total);
    buf_append_str(&b, ",\"written\":[");
    for (uint32_t i = 0; i < p->now.written.n; i++)
        buf_printf(&b, "%s[%llu,%llu]", i > 0 ? "," : "",
                   (unsigned long long)p->now.written.item[i].begin,
                   (unsigned long long)p->now.written.item[i].end);
    buf_append_str(&b, "]}\n");
    int rc = b.error != 0 ? error_set(&p->now.error, b.error, "out of memory")
                          : files_write(p->state_path, b.data, b.len, &p->now.error);
    buf_done(&b);
    return rc;
}

/* The state goes first: it must not speak of bytes that are not there any more. */
static int truncate_part(struct part_file *p)
{
    unlink(p->state_path);
    if (ftruncate(p->fd, 0) != 0)
        return fail(p, "shorten", p->part_path);
    p->hashed = 0;
    EVP_DigestInit_ex(p->hash, EVP_sha256(), NULL);
    return 0;
}

static int check_space(struct part_file *p)
{
    struct statvfs fs;
    if (p->now.source.total == PART_TOTAL_UNKNOWN || fstatvfs(p->fd, &fs) != 0)
        return 0;
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    uint64_t have = ranges_bytes(&p->now.written), need = p->now.source.total;
    need = need > have ? need - have : 0;
    if (need <= free_bytes)
        return 0;
    return error_set(&p->now.error, E_IO,
                     "the disk is too full for %s: %.1f MiB are still to come, and %.1f MiB are "
                     "free. What has been fetched of it is kept: make room and try again",
                     p->path, (double)need / 1048576, (double)free_bytes / 1048576);
}

static void do_work(struct part_file *p)
{
    int rc = p->now.is_truncate ? truncate_part(p) : 0;
    if (rc == 0 && p->now.is_space)
        rc = check_space(p);
    for (struct part_chunk *c = p->now.chunks; c != NULL && rc == 0; c = c->next) {
        rc = write_chunk(p, c);
        if (rc == 0)
            ranges_add(&p->now.written, c->offset, c->offset + c->len);
    }
    if (rc == 0 && p->now.hash_end > p->hashed)
        rc =
            hash_to(p, p->now.hash_end - p->hashed < HASH_STEP_BYTES ? p->now.hash_end
                                                                     : p->hashed + HASH_STEP_BYTES);
    if (rc == 0 && p->now.is_save)
        save_state(p);
}

static int check_hash(struct part_file *p)
{
    char want[2 * PART_SHA256_BYTES + 1], have[2 * PART_SHA256_BYTES + 1];
    EVP_DigestFinal_ex(p->hash, p->digest, NULL);
    if (!p->has_sha256 || memcmp(p->digest, p->sha256, sizeof(p->digest)) == 0)
        return 0;
    files_hex(p->sha256, PART_SHA256_BYTES, want);
    files_hex(p->digest, PART_SHA256_BYTES, have);
    return error_set(&p->now.error, E_FORMAT,
                     "%s: what was fetched is damaged, or not the file that was meant: its SHA-256 "
                     "is %s, not %s",
                     p->path, have, want);
}

static int check_gguf(struct part_file *p)
{
    struct gguf_file *file = NULL;
    if (!p->checks_gguf)
        return 0;
    int rc = gguf_file_open(p->part_path, &file, &p->now.error);
    gguf_file_close(file);
    return rc == 0 ? 0
                   : error_wrap(&p->now.error, E_FORMAT, "what was fetched is no whole GGUF file");
}

static void do_finish(struct part_file *p)
{
    if (check_hash(p) != 0 || check_gguf(p) != 0) {
        unlink(p->state_path);
        unlink(p->part_path);
        return;
    }
    if (fsync(p->fd) != 0)
        fail(p, "write to", p->part_path);
    else if (rename(p->part_path, p->path) != 0)
        fail(p, "rename", p->part_path);
    else if (files_sync_folder_of(p->path) != 0)
        fail(p, "write to the folder of", p->path);
    if (p->now.error.code == 0)
        unlink(p->state_path);
}

static void do_close(struct part_file *p)
{
    if (p->fd < 0)
        return;
    if (p->is_removed) {
        unlink(p->state_path);
        unlink(p->part_path);
    } else if (!p->is_finished && p->now.source.url[0] != '\0') {
        save_state(p); /* as far as that is possible: there is nobody to tell any more */
    } else if (!p->is_finished && ranges_bytes(&p->now.written) == 0) {
        unlink(p->part_path);
    }
    close(p->fd);
    p->fd = -1;
}

static void do_job(uv_work_t *work)
{
    struct part_file *p = work->data;
    switch (p->job) {
    case JOB_OPEN:
        do_open(p);
        break;
    case JOB_WORK:
        do_work(p);
        break;
    case JOB_FINISH:
        do_finish(p);
        break;
    case JOB_CLOSE:
        do_close(p);
        break;
    }
}

/* ---- the loop's side ---- */

static void free_chunks(struct part_chunk *c)
{
    while (c != NULL) {
        struct part_chunk *next = c->next;
        free(c);
        c = next;
    }
}

static void free_part(struct part_file *p)
{
    void (*closed)(void *) = p->closed;
    void *arg = p->closed_arg;
    free_chunks(p->first);
    EVP_MD_CTX_free(p->hash);
    free(p);
    if (closed != NULL)
        closed(arg);
}

static void pump(struct part_file *p);

static void after_work(struct part_file *p)
{
    for (const struct part_chunk *c = p->now.chunks; c != NULL; c = c->next)
        p->pending_bytes -= c->len;
    free_chunks(p->now.chunks);
    p->now.chunks = NULL;
    if (p->is_truncate_due)
        p->written.n = 0; /* void before it was written */
    else
        p->written = p->now.written;
    if (p->now.is_save)
        p->saved_ms = uv_now(p->loop);
}

static void after_job(uv_work_t *work, int status)
{
    struct part_file *p = work->data;
    (void)status; /* never cancelled */
    enum job job = p->job;
    p->is_working = false;
    if (p->now.error.code != 0 && p->error.code == 0)
        p->error = p->now.error;
    if (job == JOB_CLOSE) {
        free_part(p);
        return;
    }
    if (job == JOB_OPEN) {
        p->source = p->now.source;
        p->written = p->now.written;
    } else if (job == JOB_WORK) {
        after_work(p);
    } else {
        p->is_finishing = false;
        p->is_finished = true;
    }
    if (!p->is_closing) {
        struct error error = p->error; /* the receiver may close, which may free */
        if (job == JOB_OPEN)
            p->events.opened(p->events.arg, &error);
        else if (job == JOB_WORK)
            p->events.worked(p->events.arg);
        else
            p->events.finished(p->events.arg, p->digest, &error);
    }
    pump(p);
}

static void begin(struct part_file *p, enum job job)
{
    p->job = job;
    p->is_working = true;
    p->now.source = p->source;
    p->now.written = p->written;
    p->now.hash_end = p->is_truncate_due ? 0 : ranges_prefix(&p->written);
    p->now.is_truncate = p->is_truncate_due;
    p->now.is_space = p->is_space_due;
    p->now.is_save = p->is_save_due;
    error_clear(&p->now.error);
    if (job == JOB_WORK) {
        p->now.chunks = p->first;
        p->first = NULL;
        p->last = &p->first;
        p->is_truncate_due = p->is_space_due = p->is_save_due = false;
    }
    uv_queue_work(p->loop, &p->work, do_job, after_job);
}

/* The next job, if there is something to do and none is under way. */
static void pump(struct part_file *p)
{
    if (p->is_working)
        return;
    if (p->is_closing) {
        begin(p, JOB_CLOSE);
        return;
    }
    if (p->error.code != 0 || p->is_finished || p->fd < 0)
        return;
    if (p->first != NULL && uv_now(p->loop) - p->saved_ms >= SAVE_MS)
        p->is_save_due = true;
    bool is_behind = ranges_prefix(&p->written) > p->hashed;
    if (p->first != NULL || p->is_truncate_due || p->is_space_due || p->is_save_due || is_behind)
        begin(p, JOB_WORK);
    else if (p->is_finishing)
        begin(p, JOB_FINISH);
}

int part_open(uv_loop_t *loop, const struct part_options *options, const struct part_events *events,
              struct part_file **ret_part, struct error *err)
{
    struct part_file *p = calloc(1, sizeof(*p));
    if (p == NULL || strlen(options->path) >= sizeof(p->path)) {
        free(p);
        return error_set(err, p == NULL ? E_NOMEM : E_LIMIT,
                         "no memory for %.200s, or its path is too long", options->path);
    }
    p->hash = EVP_MD_CTX_new();
    if (p->hash == NULL || EVP_DigestInit_ex(p->hash, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(p->hash);
        free(p);
        return error_set(err, E_NOMEM, "out of memory for the hash of %.200s", options->path);
    }
    p->loop = loop;
    p->events = *events;
    p->fd = -1;
    p->last = &p->first;
    p->work.data = p;
    p->source.total = PART_TOTAL_UNKNOWN;
    p->saved_ms = uv_now(loop);
    p->checks_gguf = options->checks_gguf;
    p->has_sha256 = options->sha256 != NULL;
    if (p->has_sha256)
        memcpy(p->sha256, options->sha256, sizeof(p->sha256));
    snprintf(p->path, sizeof(p->path), "%s", options->path);
    snprintf(p->part_path, sizeof(p->part_path), "%s.part", p->path);
    snprintf(p->state_path, sizeof(p->state_path), "%s.part.json", p->path);
    begin(p, JOB_OPEN);
    *ret_part = p;
    return 0;
}

const struct part_source *part_source(const struct part_file *p)
{
    return &p->source;
}

const struct ranges *part_written(const struct part_file *p)
{
    return &p->written;
}

const struct error *part_error(const struct part_file *p)
{
    return &p->error;
}

void part_set_source(struct part_file *p, const struct part_source *source, bool is_new)
{
    /* A stream of unknown length that has ended takes no more room. */
    p->is_space_due |= is_new || p->source.total == source->total;
    p->source = *source;
    if (is_new) {
        for (const struct part_chunk *c = p->first; c != NULL; c = c->next)
            p->pending_bytes -= c->len;
        free_chunks(p->first);
        p->first = NULL;
        p->last = &p->first;
        p->written.n = 0;
        p->is_truncate_due = true;
    }
    p->is_save_due = true;
    pump(p);
}

struct part_chunk *part_chunk_new(size_t n)
{
    return malloc(sizeof(struct part_chunk) + n);
}

char *part_chunk_data(struct part_chunk *c)
{
    return c->data;
}

void part_chunk_free(struct part_chunk *c)
{
    free(c);
}

void part_write(struct part_file *p, struct part_chunk *c, uint64_t offset, size_t n)
{
    c->next = NULL;
    c->offset = offset;
    c->len = n;
    *p->last = c;
    p->last = &c->next;
    p->pending_bytes += n;
    pump(p);
}

uint64_t part_bytes_pending(const struct part_file *p)
{
    return p->pending_bytes;
}

void part_finish(struct part_file *p)
{
    p->is_finishing = true;
    pump(p);
}

void part_close(struct part_file *p, bool is_removed, void (*closed)(void *arg), void *arg)
{
    p->is_closing = true;
    p->is_removed = is_removed;
    p->closed = closed;
    p->closed_arg = arg;
    pump(p);
}
