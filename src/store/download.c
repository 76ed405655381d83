/*
 *   OPENING   the part file is opened, and what is there looked at
 *   ASKING    one connection, whose answer says which file it is, how long, and whether in ranges
 *   RUNNING   connections fetch pieces; each piece is claimed before, and given back if it fails
 *   FINISHING the part file is hashed to its end, checked, and gets its name
 *   CLOSING   the part file, then our timers
 */
#include "store/download.h"

#include "base/log.h"
#include "base/rng.h"
#include "store/meter.h"
#include "store/part_file.h"
#include "store/response.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHUNK_BYTES = 256 << 10,
    TICK_MS = 250,
    PAUSE_MS_MAX = 30000,
    RETRY_AFTER_S_MAX = 120, /* who wants us to wait longer is not there for now */
    RESTARTS_MAX = 3,        /* of a file that changes while it is fetched */
    PIECES = 64,             /* of a file of middle size */
};

enum outcome { OUTCOME_NONE, OUTCOME_PASSES, OUTCOME_FATAL, OUTCOME_CHANGED };

struct connection {
    struct download *download;
    CURL *easy; /* NULL: idle */
    struct http_transfer transfer;
    struct response response;
    uint64_t begin, next, end; /* claimed; end may be PART_TOTAL_UNKNOWN */
    bool is_accepted;          /* its answer's headers are all right */
    bool is_paused;
    enum outcome outcome; /* why we broke it off */
    struct error error;
    struct part_chunk *chunk;
    size_t chunk_bytes;
    char cause[CURL_ERROR_SIZE];
};

struct download {
    struct http_multi *multi;
    uv_loop_t *loop;
    struct download_options options; /* its texts are below */
    char url[PART_SOURCE_BYTES], path[4096], bearer[512];
    uint8_t sha256[32];
    struct fetch_events events;
    struct part_file *part;
    enum { OPENING, ASKING, RUNNING, FINISHING, CLOSING } phase;
    struct connection connection[DOWNLOAD_CONNECTIONS_MAX];
    uint32_t n_connections; /* that may run at a time */
    struct ranges claimed;
    uint64_t total, received, best; /* best: the most that was ever there */
    bool has_ranges, was_resumed, is_cancelled, is_again;
    uint32_t n_failures, n_restarts;
    uint64_t not_before_ms;
    struct meter meter;
    struct error error;
    uv_timer_t tick, soon;
    uint32_t n_handles;
};

bool download_status_passes(long status)
{
    return status == 408 || status == 425 || status == 429 || status >= 500;
}

uint64_t download_pause_ms(uint32_t n, uint32_t chance)
{
    uint64_t ms = n >= 6 ? PAUSE_MS_MAX : (uint64_t)500 << n;
    return ms / 2 + ms / 2 * (chance % 1024) / 1023;
}

/* ---- the end ---- */

static void on_timer_closed(uv_handle_t *handle)
{
    struct download *d = handle->data;
    if (--d->n_handles > 0)
        return;
    d->events.done(d->events.arg, d->sha256, &d->error);
    free(d);
}

static void open_part(struct download *d);

static void on_part_closed(void *arg)
{
    struct download *d = arg;
    d->part = NULL;
    if (d->is_again && !d->is_cancelled) {
        open_part(d);
        return;
    }
    uv_close((uv_handle_t *)&d->tick, on_timer_closed);
    uv_close((uv_handle_t *)&d->soon, on_timer_closed);
}

/* What a connection has read goes to the disk, also when it broke. */
static void flush(struct connection *c)
{
    if (c->chunk == NULL)
        return;
    if (c->chunk_bytes > 0)
        part_write(c->download->part, c->chunk, c->next - c->chunk_bytes, c->chunk_bytes);
    else
        part_chunk_free(c->chunk);
    c->chunk = NULL;
    c->chunk_bytes = 0;
}

/* Gives back what it had claimed and not read. */
static void release(struct connection *c)
{
    flush(c);
    if (c->end != PART_TOTAL_UNKNOWN && c->next < c->end)
        ranges_remove(&c->download->claimed, c->next, c->end);
    curl_easy_cleanup(c->easy);
    c->easy = NULL;
}

static void stop_connections(struct download *d)
{
    for (uint32_t i = 0; i < DOWNLOAD_CONNECTIONS_MAX; i++)
        if (d->connection[i].easy != NULL) {
            http_multi_remove(d->multi, d->connection[i].easy);
            release(&d->connection[i]);
        }
}

static void end(struct download *d, const struct error *err)
{
    if (d->phase == CLOSING)
        return;
    d->error = *err;
    stop_connections(d);
    d->phase = CLOSING;
    uv_timer_stop(&d->tick);
    uv_timer_stop(&d->soon);
    part_close(d->part, false, on_part_closed, d);
}

void download_cancel(struct download *d)
{
    struct error err;
    error_set(&err, E_CANCELLED, "fetching %s was cancelled", d->path);
    d->is_cancelled = true;
    if (d->phase == CLOSING && d->is_again)
        d->error = err;
    end(d, &err);
}

/* ---- failures ---- */

static void fill(struct download *d);

static void on_soon(uv_timer_t *timer)
{
    fill(timer->data);
}

static void fill_soon(struct download *d, uint64_t ms)
{
    if (d->phase == ASKING || d->phase == RUNNING)
        uv_timer_start(&d->soon, on_soon, ms, 0);
}

/* Something that may pass by itself has failed: pauses, or gives up. */
static void fail_for_now(struct download *d, const struct error *err, uint32_t retry_after_s)
{
    uint64_t now = uv_now(d->loop),
             have = ranges_bytes(part_written(d->part)) + part_bytes_pending(d->part);
    if (have > d->best) {
        d->best = have;
        d->n_failures = 0;
    }
    if (now >= d->not_before_ms) { /* connections that fail together have failed once */
        if (++d->n_failures >= d->options.attempts || retry_after_s > RETRY_AFTER_S_MAX) {
            struct error last = *err;
            if (d->n_failures > 1)
                error_wrap(&last, last.code, "given up after %u attempts", d->n_failures);
            end(d, &last);
            return;
        }
        uint32_t chance = 0;
        rng_system(&chance, sizeof(chance));
        uint64_t pause = download_pause_ms(d->n_failures, chance);
        if (pause < retry_after_s * 1000u)
            pause = retry_after_s * 1000u;
        d->not_before_ms = now + pause;
        log_info("store", "%s -> tried again in %llu ms", err->message, (unsigned long long)pause);
    }
    fill_soon(d, d->not_before_ms - now);
}

/* The server has another file now, or none of what we know fits. */
static void begin_anew(struct download *d, const char *why)
{
    struct error err;
    stop_connections(d);
    d->claimed.n = 0;
    d->received = 0;
    d->was_resumed = false;
    d->total = PART_TOTAL_UNKNOWN;
    d->phase = ASKING;
    struct part_source none = {.total = PART_TOTAL_UNKNOWN};
    part_set_source(d->part, &none, true);
    if (++d->n_restarts > RESTARTS_MAX) {
        error_set(&err, E_PROTOCOL, "%s: %s, again and again", d->url, why);
        end(d, &err);
        return;
    }
    log_info("store", "%s: %s -> begins anew", d->url, why);
    fill_soon(d, 0);
}

static int fail_status(struct connection *c, long status)
{
    const struct download *d = c->download;
    switch (status) {
    case 401:
    case 403:
        return error_set(
            &c->error, E_UNAVAILABLE,
            "%s: the server refuses (%ld). If the model is behind a licence, accept it "
            "there and set HF_TOKEN",
            d->url, status);
    case 404:
    case 410:
        return error_set(&c->error, E_NOTFOUND, "%s: there is no such file (%ld)", d->url, status);
    default:
        return error_set(&c->error, status == 429 ? E_BUSY : E_UNAVAILABLE,
                         "%s: the server answered with status %ld", d->url, status);
    }
}

static enum outcome judge_code(struct connection *c, CURLcode code)
{
    const struct download *d = c->download;
    const char *cause = c->cause[0] != '\0' ? c->cause : curl_easy_strerror(code);
    switch (code) {
    case CURLE_TOO_MANY_REDIRECTS:
        error_set(&c->error, E_PROTOCOL, "%s: over %d redirects", d->url, HTTP_REDIRECTS_MAX);
        return OUTCOME_FATAL;
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
        error_set(&c->error, E_INVALID, "%s: %s", d->url, cause);
        return OUTCOME_FATAL;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
        error_set(&c->error, E_UNAVAILABLE, "%s: %s", d->url, cause);
        return OUTCOME_FATAL;
    case CURLE_OPERATION_TIMEDOUT:
        error_set(&c->error, E_TIMEOUT, "%s: nothing came for a while: %s", d->url, cause);
        return OUTCOME_PASSES;
    default:
        error_set(&c->error, E_UNAVAILABLE, "%s: %s", d->url, cause);
        return OUTCOME_PASSES;
    }
}

/* ---- answers ---- */

static int refuse(struct connection *c, enum outcome outcome, const char *why)
{
    c->outcome = outcome;
    return error_set(&c->error, E_PROTOCOL, "%s: %s", c->download->url, why);
}

static int check_total(struct connection *c, uint64_t total)
{
    const struct download *d = c->download;
    if (d->options.size_bytes == 0 || total == PART_TOTAL_UNKNOWN || total == d->options.size_bytes)
        return 0;
    c->outcome = OUTCOME_FATAL;
    return error_set(&c->error, E_PROTOCOL,
                     "%s: the server's file has %llu bytes, not %llu as it should", d->url,
                     (unsigned long long)total, (unsigned long long)d->options.size_bytes);
}

static void tell_source(struct download *d, const struct response *r, bool is_new)
{
    struct part_source s = {.total = d->total};
    memcpy(s.url, d->url, sizeof(s.url));
    memcpy(s.etag, r->etag, sizeof(s.etag));
    memcpy(s.modified, r->modified, sizeof(s.modified));
    part_set_source(d->part, &s, is_new);
}

/* The first answer has a range of the file: the rest can come over several connections. */
static int accept_first_range(struct connection *c)
{
    struct download *d = c->download;
    const struct response *r = &c->response;
    bool is_same = response_is_same(r, r->range_total, d->url, part_source(d->part),
                                    d->options.sha256 != NULL);
    if (r->range_total == PART_TOTAL_UNKNOWN)
        return refuse(c, OUTCOME_FATAL, "the server does not say how long the file is");
    if (check_total(c, r->range_total) != 0)
        return -1;
    if (part_source(d->part)->url[0] != '\0' && !is_same && c->begin > 0)
        return refuse(c, OUTCOME_CHANGED, "the file has changed since a part of it was fetched");
    if (!is_same) { /* what was found is void; this answer is from the front */
        d->claimed.n = 0;
        ranges_add(&d->claimed, c->begin, c->end);
        d->received = 0;
        d->was_resumed = false;
    }
    d->has_ranges = true;
    d->total = r->range_total;
    tell_source(d, r, !is_same);
    if (d->total < c->end) { /* it is shorter than what we asked for */
        ranges_remove(&d->claimed, d->total, c->end);
        c->end = d->total;
    }
    return 0;
}

/* The whole file from its beginning, whatever was asked for. */
static int accept_stream(struct connection *c)
{
    struct download *d = c->download;
    const struct response *r = &c->response;
    if (d->phase != ASKING)
        return refuse(c, OUTCOME_PASSES, "the server does not serve ranges any more");
    d->total = r->has_length ? r->length : PART_TOTAL_UNKNOWN;
    if (check_total(c, d->total) != 0)
        return -1;
    d->has_ranges = false;
    d->was_resumed = false;
    d->claimed.n = 0;
    d->received = 0;
    c->begin = c->next = 0;
    c->end = d->total;
    if (d->total != PART_TOTAL_UNKNOWN)
        ranges_add(&d->claimed, 0, d->total);
    tell_source(d, r, true);
    return 0;
}

static int accept_answer(struct connection *c)
{
    struct download *d = c->download;
    const struct response *r = &c->response;
    long status = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    int rc = 0;
    if (status == 206) {
        if (!r->has_range || r->range_begin != c->next)
            return refuse(c, OUTCOME_PASSES, "the server sent another range than was asked for");
        if (d->phase == ASKING)
            rc = accept_first_range(c);
        else if (r->range_total != d->total ||
                 (r->etag[0] != '\0' && part_source(d->part)->etag[0] != '\0' &&
                  strcmp(r->etag, part_source(d->part)->etag) != 0))
            rc = refuse(c, OUTCOME_CHANGED, "the file changed while it was fetched");
    } else if (status == 200) {
        rc = accept_stream(c);
    } else {
        rc = refuse(c, OUTCOME_FATAL, "the server's answer is neither a file nor an error");
    }
    if (rc != 0)
        return rc;
    c->is_accepted = true;
    /* Where the length is wrong, nobody knows where the next answer would begin. */
    if (status == 206 && r->has_length && r->length != c->end - c->begin)
        curl_easy_setopt(c->easy, CURLOPT_FORBID_REUSE, 1L);
    if (d->phase == ASKING) {
        d->phase = RUNNING;
        meter_start(&d->meter, uv_now(d->loop), d->received);
        fill_soon(d, 0); /* handles cannot be added from inside curl */
    }
    return 0;
}

static size_t on_header(char *data, size_t size, size_t n, void *arg)
{
    struct connection *c = arg;
    response_take_line(&c->response, data, size * n);
    return size * n;
}

static size_t on_data(char *data, size_t size, size_t n, void *arg)
{
    struct connection *c = arg;
    struct download *d = c->download;
    size_t len = size * n, left = len;
    if (!c->is_accepted && accept_answer(c) != 0)
        return 0;
    if (part_error(d->part)->code != 0)
        return 0;
    if (part_bytes_pending(d->part) >= PART_PENDING_BYTES_MAX) {
        c->is_paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    if (len > c->end - c->next) {
        refuse(c, OUTCOME_PASSES, "the server sent more than was asked for");
        return 0;
    }
    while (left > 0) {
        if (c->chunk == NULL)
            c->chunk = part_chunk_new(CHUNK_BYTES);
        if (c->chunk == NULL) {
            c->outcome = OUTCOME_PASSES;
            error_set(&c->error, E_NOMEM, "out of memory for a piece of %s", d->path);
            return 0;
        }
        size_t room = CHUNK_BYTES - c->chunk_bytes, take = left < room ? left : room;
        memcpy(part_chunk_data(c->chunk) + c->chunk_bytes, data, take);
        c->chunk_bytes += take;
        c->next += take;
        d->received += take;
        data += take;
        left -= take;
        if (c->chunk_bytes == CHUNK_BYTES)
            flush(c);
    }
    return len;
}

static void check_complete(struct download *d)
{
    struct error err;
    if (d->phase != RUNNING)
        return;
    for (uint32_t i = 0; i < DOWNLOAD_CONNECTIONS_MAX; i++)
        if (d->connection[i].easy != NULL)
            return;
    if (part_bytes_pending(d->part) > 0 || d->total == PART_TOTAL_UNKNOWN ||
        ranges_bytes(part_written(d->part)) != d->total)
        return;
    if (d->total == 0) {
        error_set(&err, E_FORMAT, "%s: the file is empty", d->url);
        end(d, &err);
        return;
    }
    d->phase = FINISHING;
    part_finish(d->part);
}

/* How a connection ended: OUTCOME_NONE when all that it was to fetch is there. */
static enum outcome judge_end(struct connection *c, CURLcode code)
{
    struct download *d = c->download;
    long status = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    if (c->outcome != OUTCOME_NONE)
        return c->outcome;
    if (status == 416 && (part_source(d->part)->url[0] != '\0' || d->phase == RUNNING)) {
        refuse(c, OUTCOME_CHANGED, "the file is shorter than the part of it that was fetched");
        return OUTCOME_CHANGED;
    }
    if (status >= 400) {
        fail_status(c, status);
        return download_status_passes(status) ? OUTCOME_PASSES : OUTCOME_FATAL;
    }
    if (code != CURLE_OK)
        return judge_code(c, code);
    if (!c->is_accepted && accept_answer(c) != 0) /* an answer without a byte */
        return c->outcome;
    if (c->end == PART_TOTAL_UNKNOWN) {
        d->total = c->end = c->next; /* the stream has ended, and so has the file */
        tell_source(d, &c->response, false);
    }
    if (c->next < c->end && c->next == c->begin)
        error_set(&c->error, E_PROTOCOL, "%s: the server sent nothing", d->url);
    else if (c->next < c->end)
        error_set(&c->error, E_PROTOCOL, "%s: the server sent less than it should", d->url);
    return c->next < c->end ? OUTCOME_PASSES : OUTCOME_NONE;
}

static void on_ended(void *arg, CURLcode code)
{
    struct connection *c = arg;
    struct download *d = c->download;
    enum outcome outcome = judge_end(c, code);
    struct error err = c->error;
    uint32_t retry_after_s = c->response.retry_after_s;
    bool is_stream = d->phase == RUNNING && !d->has_ranges;
    release(c);
    if (d->phase == CLOSING)
        return;
    if (part_error(d->part)->code != 0) {
        err = *part_error(d->part);
        end(d, &err);
    } else if (outcome == OUTCOME_CHANGED) {
        begin_anew(d, err.message);
    } else if (outcome == OUTCOME_FATAL) {
        end(d, &err);
    } else if (outcome == OUTCOME_PASSES) {
        /* Without ranges there is no going on: the next answer begins at the front. */
        if (is_stream)
            d->phase = ASKING;
        if (err.code == E_BUSY && d->n_connections > 1)
            d->n_connections /= 2;
        fail_for_now(d, &err, retry_after_s);
    } else {
        fill(d);
        check_complete(d);
    }
}

/* ---- questions ---- */

static uint64_t piece_bytes(const struct download *d)
{
    uint64_t bytes = d->total == PART_TOTAL_UNKNOWN ? 0 : d->total / PIECES;
    if (d->options.piece_bytes != 0)
        return d->options.piece_bytes;
    return bytes < DOWNLOAD_PIECE_BYTES_MIN   ? DOWNLOAD_PIECE_BYTES_MIN
           : bytes > DOWNLOAD_PIECE_BYTES_MAX ? DOWNLOAD_PIECE_BYTES_MAX
                                              : bytes;
}

/* The next piece that nobody has, if there is one. */
static bool claim(struct connection *c)
{
    struct download *d = c->download;
    struct range hole;
    if (!ranges_first_hole(&d->claimed, d->total, &hole))
        return false;
    if (hole.end - hole.begin > piece_bytes(d))
        hole.end = hole.begin + piece_bytes(d);
    if (!ranges_add(&d->claimed, hole.begin, hole.end))
        return false;
    c->begin = c->next = hole.begin;
    c->end = hole.end;
    return true;
}

static int start(struct connection *c, struct error *err)
{
    struct download *d = c->download;
    char range[64];
    c->easy = http_multi_easy(d->url, d->bearer);
    if (c->easy == NULL)
        return error_set(err, E_NOMEM, "out of memory for a request to %s", d->url);
    c->transfer = (struct http_transfer){.ended = on_ended, .arg = c};
    memset(&c->response, 0, sizeof(c->response));
    error_clear(&c->error);
    c->outcome = OUTCOME_NONE;
    c->is_accepted = c->is_paused = false;
    c->cause[0] = '\0';
    snprintf(range, sizeof(range), "%llu-%llu", (unsigned long long)c->begin,
             (unsigned long long)(c->end - 1));
    curl_easy_setopt(c->easy, CURLOPT_RANGE, range);
    curl_easy_setopt(c->easy, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(c->easy, CURLOPT_ERRORBUFFER, c->cause);
    curl_easy_setopt(c->easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c->easy, CURLOPT_LOW_SPEED_TIME, (long)(d->options.stall_ms + 999) / 1000);
    curl_easy_setopt(c->easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c->easy, CURLOPT_HEADERDATA, c);
    curl_easy_setopt(c->easy, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(c->easy, CURLOPT_WRITEDATA, c);
    return http_multi_add(d->multi, c->easy, &c->transfer, err);
}

/* Starts connections as far as there is something to fetch. */
static void fill(struct download *d)
{
    struct error err = {0};
    uint32_t n_running = 0, n_max = d->phase == RUNNING && d->has_ranges ? d->n_connections : 1;
    if (d->phase != ASKING && d->phase != RUNNING)
        return;
    if (d->phase == RUNNING && !d->has_ranges)
        return; /* the one that runs has all */
    if (uv_now(d->loop) < d->not_before_ms) {
        fill_soon(d, d->not_before_ms - uv_now(d->loop));
        return;
    }
    for (uint32_t i = 0; i < DOWNLOAD_CONNECTIONS_MAX; i++)
        n_running += d->connection[i].easy != NULL;
    for (uint32_t i = 0; i < DOWNLOAD_CONNECTIONS_MAX && n_running < n_max; i++) {
        struct connection *c = &d->connection[i];
        if (c->easy != NULL || !claim(c))
            continue;
        if (start(c, &err) != 0) {
            release(c);
            fail_for_now(d, &err, 0);
            return;
        }
        n_running++;
    }
}

/* ---- the part file ---- */

static void on_opened(void *arg, const struct error *err)
{
    struct download *d = arg;
    if (err->code != 0) {
        end(d, err);
        return;
    }
    d->claimed = *part_written(d->part);
    d->total = part_source(d->part)->total;
    d->received = d->best = ranges_bytes(&d->claimed);
    d->was_resumed = d->received > 0;
    d->phase = ASKING;
    meter_start(&d->meter, uv_now(d->loop), d->received);
    struct range hole;
    /* All is there, but for the last step: ask for one byte, to see that it is still the same. */
    if (d->total != PART_TOTAL_UNKNOWN && d->total > 0 &&
        !ranges_first_hole(&d->claimed, d->total, &hole))
        ranges_remove(&d->claimed, d->total - 1, d->total);
    fill(d);
}

static void on_worked(void *arg)
{
    struct download *d = arg;
    if (part_error(d->part)->code != 0) {
        struct error err = *part_error(d->part);
        end(d, &err);
        return;
    }
    for (uint32_t i = 0; i < DOWNLOAD_CONNECTIONS_MAX; i++) {
        struct connection *c = &d->connection[i];
        if (c->easy != NULL && c->is_paused &&
            part_bytes_pending(d->part) < PART_PENDING_BYTES_MAX) {
            c->is_paused = false;
            curl_easy_pause(c->easy, CURLPAUSE_CONT);
        }
    }
    check_complete(d);
}

static void on_finished(void *arg, const uint8_t sha256[32], const struct error *err)
{
    struct download *d = arg;
    memcpy(d->sha256, sha256, sizeof(d->sha256));
    /* Bytes of an earlier process may have been bad on the disk: those deserve one more try. */
    d->is_again = err->code == E_FORMAT && d->was_resumed;
    if (d->is_again)
        log_warn("store", "%s -> begins anew", err->message);
    end(d, err);
}

static void on_tick(uv_timer_t *timer)
{
    struct download *d = timer->data;
    struct fetch_progress p;
    meter_read(&d->meter, uv_now(d->loop), d->received,
               d->total == PART_TOTAL_UNKNOWN ? 0 : d->total, &p);
    if (d->phase == RUNNING || d->phase == FINISHING)
        d->events.progress(d->events.arg, &p);
}

static void open_part(struct download *d)
{
    struct part_events events = {
        .arg = d, .opened = on_opened, .worked = on_worked, .finished = on_finished};
    struct part_options options = {
        .path = d->path, .sha256 = d->options.sha256, .checks_gguf = d->options.checks_gguf};
    struct error err = {0};
    d->phase = OPENING;
    d->is_again = false;
    d->claimed.n = 0;
    error_clear(&d->error);
    uv_timer_start(&d->tick, on_tick, TICK_MS, TICK_MS);
    if (part_open(d->loop, &options, &events, &d->part, &err) == 0)
        return;
    d->error = err;
    d->phase = CLOSING;
    on_part_closed(d);
}

static int copy_options(struct download *d, const struct download_options *o, struct error *err)
{
    if (strlen(o->url) >= sizeof(d->url) || strlen(o->path) >= sizeof(d->path) - 32 ||
        (o->bearer != NULL && strlen(o->bearer) >= sizeof(d->bearer)))
        return error_set(err, E_LIMIT, "%.200s: the address, path or token is too long", o->url);
    d->options = *o;
    memcpy(d->url, o->url, strlen(o->url) + 1);
    memcpy(d->path, o->path, strlen(o->path) + 1);
    if (o->bearer != NULL)
        memcpy(d->bearer, o->bearer, strlen(o->bearer) + 1);
    if (o->sha256 != NULL) {
        memcpy(d->sha256, o->sha256, sizeof(d->sha256));
        d->options.sha256 = d->sha256;
    }
    if (d->options.n_connections == 0)
        d->options.n_connections = DOWNLOAD_CONNECTIONS_DEFAULT;
    if (d->options.n_connections > DOWNLOAD_CONNECTIONS_MAX)
        d->options.n_connections = DOWNLOAD_CONNECTIONS_MAX;
    if (d->options.stall_ms == 0)
        d->options.stall_ms = DOWNLOAD_STALL_MS_DEFAULT;
    if (d->options.attempts == 0)
        d->options.attempts = DOWNLOAD_ATTEMPTS_DEFAULT;
    return 0;
}

int download_start(struct http_multi *m, const struct download_options *options,
                   const struct fetch_events *events, struct download **ret_download,
                   struct error *err)
{
    struct download *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return error_set(err, E_NOMEM, "out of memory to fetch %.200s", options->url);
    int rc = copy_options(d, options, err);
    if (rc != 0) {
        free(d);
        return rc;
    }
    d->multi = m;
    d->loop = http_multi_loop(m);
    d->events = *events;
    d->n_connections = d->options.n_connections;
    d->total = PART_TOTAL_UNKNOWN;
    for (uint32_t i = 0; i < DOWNLOAD_CONNECTIONS_MAX; i++)
        d->connection[i].download = d;
    uv_timer_init(d->loop, &d->tick);
    uv_timer_init(d->loop, &d->soon);
    d->tick.data = d->soon.data = d;
    d->n_handles = 2;
    open_part(d);
    *ret_download = d;
    return 0;
}
