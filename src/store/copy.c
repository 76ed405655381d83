#include "store/copy.h"

#include "store/meter.h"
#include "store/part_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TICK_MS = 250 };

struct piece { /* a read under way */
    struct copy *copy;
    struct part_chunk *chunk; /* NULL: idle */
    uint64_t offset;
    size_t n;
};

struct copy {
    uv_loop_t *loop;
    struct copy_reader reader;
    struct fetch_events events;
    struct part_file *part;
    struct part_source source;
    struct ranges claimed;
    struct piece piece[COPY_READS_MAX];
    uint32_t n_reads;
    uint64_t received;
    bool is_open, is_finishing, is_ending;
    struct meter meter;
    uint8_t sha256[32];
    struct error error;
    uv_timer_t tick;
};

static void on_tick_closed(uv_handle_t *handle)
{
    struct copy *c = handle->data;
    c->reader.close(c->reader.self);
    c->events.done(c->events.arg, c->sha256, &c->error);
    free(c);
}

static void on_part_closed(void *arg)
{
    struct copy *c = arg;
    uv_close((uv_handle_t *)&c->tick, on_tick_closed);
}

static void check_end(struct copy *c)
{
    if (c->is_ending && c->n_reads == 0 && c->part != NULL) {
        struct part_file *part = c->part;
        c->part = NULL;
        part_close(part, false, on_part_closed, c);
    }
}

static void end(struct copy *c, const struct error *err)
{
    if (c->is_ending)
        return;
    c->is_ending = true;
    c->error = *err;
    uv_timer_stop(&c->tick);
    check_end(c);
}

void copy_cancel(struct copy *c)
{
    struct error err;
    error_set(&err, E_CANCELLED, "copying %s was cancelled", c->source.url);
    end(c, &err);
}

static void fill(struct copy *c);

static void on_read(void *arg, const struct error *err)
{
    struct piece *p = arg;
    struct copy *c = p->copy;
    struct part_chunk *chunk = p->chunk;
    p->chunk = NULL;
    c->n_reads--;
    if (err->code != 0 || c->is_ending) {
        part_chunk_free(chunk);
        if (err->code != 0)
            end(c, err);
        check_end(c);
        return;
    }
    c->received += p->n;
    part_write(c->part, chunk, p->offset, p->n);
    fill(c);
}

static bool claim(struct copy *c, struct range *ret)
{
    if (!ranges_first_hole(&c->claimed, c->source.total, ret))
        return false;
    if (ret->end - ret->begin > COPY_READ_BYTES)
        ret->end = ret->begin + COPY_READ_BYTES;
    return ranges_add(&c->claimed, ret->begin, ret->end);
}

static void fill(struct copy *c)
{
    struct range r;
    struct error err = {0};
    for (uint32_t i = 0; i < COPY_READS_MAX && !c->is_ending; i++) {
        struct piece *p = &c->piece[i];
        if (p->chunk != NULL || part_bytes_pending(c->part) >= PART_PENDING_BYTES_MAX ||
            !claim(c, &r))
            continue;
        p->copy = c;
        p->offset = r.begin;
        p->n = (size_t)(r.end - r.begin);
        p->chunk = part_chunk_new(p->n);
        int rc = p->chunk == NULL
                     ? error_set(&err, E_NOMEM, "out of memory for a copy")
                     : c->reader.read(c->reader.self, p->offset, part_chunk_data(p->chunk), p->n,
                                      on_read, p, &err);
        if (rc != 0) {
            part_chunk_free(p->chunk);
            p->chunk = NULL;
            end(c, &err);
            return;
        }
        c->n_reads++;
    }
}

static void on_opened(void *arg, const struct error *err)
{
    struct copy *c = arg;
    if (err->code != 0) {
        end(c, err);
        return;
    }
    const struct part_source *found = part_source(c->part);
    bool is_same = found->total == c->source.total && strcmp(found->url, c->source.url) == 0 &&
                   strcmp(found->etag, c->source.etag) == 0;
    if (is_same)
        c->claimed = *part_written(c->part);
    c->received = ranges_bytes(&c->claimed);
    c->is_open = true;
    meter_start(&c->meter, uv_now(c->loop), c->received);
    part_set_source(c->part, &c->source, !is_same);
    fill(c);
}

static void on_worked(void *arg)
{
    struct copy *c = arg;
    if (part_error(c->part)->code != 0) {
        struct error err = *part_error(c->part);
        end(c, &err);
        return;
    }
    fill(c);
    if (c->is_ending || c->is_finishing || part_bytes_pending(c->part) > 0 || c->n_reads > 0 ||
        ranges_bytes(part_written(c->part)) != c->source.total)
        return;
    c->is_finishing = true;
    part_finish(c->part);
}

static void on_finished(void *arg, const uint8_t sha256[32], const struct error *err)
{
    struct copy *c = arg;
    memcpy(c->sha256, sha256, sizeof(c->sha256));
    end(c, err);
}

static void on_tick(uv_timer_t *timer)
{
    struct copy *c = timer->data;
    struct fetch_progress p;
    meter_read(&c->meter, uv_now(c->loop), c->received, c->source.total, &p);
    if (c->is_open)
        c->events.progress(c->events.arg, &p);
}

int copy_start(uv_loop_t *loop, const struct copy_options *options,
               const struct copy_reader *reader, const struct fetch_events *events,
               struct copy **ret_copy, struct error *err)
{
    struct copy *c = calloc(1, sizeof(*c));
    int rc = 0;
    if (c == NULL)
        rc = error_set(err, E_NOMEM, "out of memory for a copy");
    else if (strlen(options->origin) >= sizeof(c->source.url) ||
             strlen(options->tag) >= sizeof(c->source.etag))
        rc = error_set(err, E_LIMIT, "the name of what is to be copied is too long");
    if (rc == 0) {
        struct part_events part_events = {
            .arg = c, .opened = on_opened, .worked = on_worked, .finished = on_finished};
        struct part_options part = {
            .path = options->path, .sha256 = options->sha256, .checks_gguf = options->checks_gguf};
        c->loop = loop;
        c->reader = *reader;
        c->events = *events;
        c->source.total = options->size_bytes;
        memcpy(c->source.url, options->origin, strlen(options->origin) + 1);
        memcpy(c->source.etag, options->tag, strlen(options->tag) + 1);
        rc = part_open(loop, &part, &part_events, &c->part, err);
    }
    if (rc != 0) {
        free(c);
        reader->close(reader->self);
        return rc;
    }
    uv_timer_init(loop, &c->tick);
    c->tick.data = c;
    uv_timer_start(&c->tick, on_tick, TICK_MS, TICK_MS);
    *ret_copy = c;
    return 0;
}

/* ---- files of this computer ---- */

struct file_reader {
    uv_loop_t *loop;
    int fd;
    char path[4096];
};

struct file_read {
    uv_work_t work;
    struct file_reader *reader;
    uint64_t offset;
    char *data;
    size_t n;
    copy_read_done *done;
    void *arg;
    struct error error;
};

static void do_read(uv_work_t *work)
{
    struct file_read *r = work->data;
    for (size_t have = 0; have < r->n;) {
        ssize_t n = pread(r->reader->fd, r->data + have, r->n - have, (off_t)(r->offset + have));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            error_set(&r->error, E_IO, "cannot read %s: %s", r->reader->path,
                      n < 0 ? strerror(errno) : "it has become shorter");
            return;
        }
        have += (size_t)n;
    }
}

static void after_read(uv_work_t *work, int status)
{
    struct file_read *r = work->data;
    (void)status; /* never cancelled */
    r->done(r->arg, &r->error);
    free(r);
}

static int read_file(void *self, uint64_t offset, char *data, size_t n, copy_read_done *done,
                     void *arg, struct error *err)
{
    struct file_reader *f = self;
    struct file_read *r = calloc(1, sizeof(*r));
    if (r == NULL)
        return error_set(err, E_NOMEM, "out of memory to read %s", f->path);
    *r = (struct file_read){
        .reader = f, .offset = offset, .data = data, .n = n, .done = done, .arg = arg};
    r->work.data = r;
    return uv_queue_work(f->loop, &r->work, do_read, after_read);
}

static void close_file(void *self)
{
    struct file_reader *f = self;
    close(f->fd);
    free(f);
}

int copy_open_file(uv_loop_t *loop, const char *path, struct copy_reader *ret_reader,
                   uint64_t *ret_size_bytes, char ret_tag[64], struct error *err)
{
    struct stat info;
    struct file_reader *f = calloc(1, sizeof(*f));
    if (f == NULL)
        return error_set(err, E_NOMEM, "out of memory to read %s", path);
    f->loop = loop;
    snprintf(f->path, sizeof(f->path), "%s", path);
    f->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (f->fd < 0 || fstat(f->fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        int rc =
            error_set(err, f->fd < 0 && errno == ENOENT ? E_NOTFOUND : E_IO, "cannot read %s: %s",
                      path, f->fd < 0 ? strerror(errno) : "it is no file");
        if (f->fd >= 0)
            close(f->fd);
        free(f);
        return rc;
    }
    *ret_size_bytes = (uint64_t)info.st_size;
    snprintf(ret_tag, 64, "%lld.%09ld", (long long)info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
    *ret_reader = (struct copy_reader){.self = f, .read = read_file, .close = close_file};
    return 0;
}
