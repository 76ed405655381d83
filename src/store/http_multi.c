#include "store/http_multi.h"

#include <stdlib.h>
#include <string.h>

enum { GET_MS_MAX = 60000 };

struct http_multi {
    uv_loop_t *loop;
    CURLM *curl;
    uv_timer_t timer;
    uint32_t n_handles; /* of libuv, that are not closed yet */
    bool is_closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

struct watch { /* of one socket of curl's */
    uv_poll_t poll;
    struct http_multi *multi;
    curl_socket_t socket;
};

static void check_closed(struct http_multi *m)
{
    if (!m->is_closing || m->n_handles > 0)
        return;
    void (*closed)(void *) = m->closed;
    void *arg = m->closed_arg;
    free(m);
    if (closed != NULL)
        closed(arg);
}

/* Hands out what has ended. The receiver may add and remove transfers: the list is curl's. */
static void take_ended(struct http_multi *m)
{
    CURLMsg *message;
    int left;
    while (!m->is_closing && (message = curl_multi_info_read(m->curl, &left)) != NULL) {
        struct http_transfer *t = NULL;
        if (message->msg != CURLMSG_DONE)
            continue;
        CURLcode code = message->data.result;
        CURL *easy = message->easy_handle;
        curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&t);
        curl_multi_remove_handle(m->curl, easy); /* message is void from here on */
        t->ended(t->arg, code);
    }
}

static void on_socket(uv_poll_t *poll, int status, int events)
{
    struct watch *w = poll->data;
    struct http_multi *m = w->multi;
    int flags = 0, running;
    if (status < 0)
        flags = CURL_CSELECT_ERR;
    flags |= events & UV_READABLE ? CURL_CSELECT_IN : 0;
    flags |= events & UV_WRITABLE ? CURL_CSELECT_OUT : 0;
    curl_multi_socket_action(m->curl, w->socket, flags, &running);
    take_ended(m);
}

static void on_timer(uv_timer_t *timer)
{
    struct http_multi *m = timer->data;
    int running;
    curl_multi_socket_action(m->curl, CURL_SOCKET_TIMEOUT, 0, &running);
    take_ended(m);
}

static int set_timer(CURLM *curl, long ms, void *arg)
{
    struct http_multi *m = arg;
    (void)curl;
    if (m->is_closing)
        return 0;
    if (ms < 0)
        uv_timer_stop(&m->timer);
    else
        uv_timer_start(&m->timer, on_timer, (uint64_t)ms, 0);
    return 0;
}

static void on_watch_closed(uv_handle_t *handle)
{
    struct watch *w = handle->data;
    struct http_multi *m = w->multi;
    free(w);
    m->n_handles--;
    check_closed(m);
}

static struct watch *add_watch(struct http_multi *m, curl_socket_t socket)
{
    struct watch *w = calloc(1, sizeof(*w));
    if (w == NULL || uv_poll_init_socket(m->loop, &w->poll, socket) != 0) {
        free(w);
        return NULL;
    }
    w->poll.data = w;
    w->multi = m;
    w->socket = socket;
    m->n_handles++;
    return w;
}

static int set_socket(CURL *easy, curl_socket_t socket, int what, void *arg, void *socket_arg)
{
    struct http_multi *m = arg;
    struct watch *w = socket_arg;
    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (w != NULL) {
            uv_poll_stop(&w->poll); /* at once: curl closes the socket when this returns */
            uv_close((uv_handle_t *)&w->poll, on_watch_closed);
            curl_multi_assign(m->curl, socket, NULL);
        }
        return 0;
    }
    if (w == NULL) {
        w = add_watch(m, socket);
        if (w == NULL)
            return -1; /* fails the transfers */
        curl_multi_assign(m->curl, socket, w);
    }
    int events = (what & CURL_POLL_IN ? UV_READABLE : 0) | (what & CURL_POLL_OUT ? UV_WRITABLE : 0);
    return uv_poll_start(&w->poll, events, on_socket) == 0 ? 0 : -1;
}

int http_multi_new(uv_loop_t *loop, struct http_multi **ret_multi, struct error *err)
{
    struct http_multi *m = calloc(1, sizeof(*m));
    if (m != NULL && curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK)
        m->curl = curl_multi_init();
    if (m == NULL || m->curl == NULL) {
        free(m);
        return error_set(err, E_NOMEM, "out of memory for transfers");
    }
    m->loop = loop;
    uv_timer_init(loop, &m->timer);
    m->timer.data = m;
    m->n_handles = 1;
    curl_multi_setopt(m->curl, CURLMOPT_SOCKETFUNCTION, set_socket);
    curl_multi_setopt(m->curl, CURLMOPT_SOCKETDATA, m);
    curl_multi_setopt(m->curl, CURLMOPT_TIMERFUNCTION, set_timer);
    curl_multi_setopt(m->curl, CURLMOPT_TIMERDATA, m);
    *ret_multi = m;
    return 0;
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct http_multi *m = handle->data;
    m->n_handles--;
    check_closed(m);
}

void http_multi_close(struct http_multi *m, void (*closed)(void *arg), void *arg)
{
    m->closed = closed;
    m->closed_arg = arg;
    curl_multi_cleanup(m->curl); /* closes its idle connections, which ends their watches */
    m->is_closing = true;
    uv_close((uv_handle_t *)&m->timer, on_timer_closed);
}

uv_loop_t *http_multi_loop(const struct http_multi *m)
{
    return m->loop;
}

int http_multi_add(struct http_multi *m, CURL *easy, struct http_transfer *t, struct error *err)
{
    curl_easy_setopt(easy, CURLOPT_PRIVATE, t);
    CURLMcode code = curl_multi_add_handle(m->curl, easy);
    return code == CURLM_OK ? 0
                            : error_set(err, E_INTERNAL, "a transfer cannot start: %s",
                                        curl_multi_strerror(code));
}

void http_multi_remove(struct http_multi *m, CURL *easy)
{
    curl_multi_remove_handle(m->curl, easy);
}

CURL *http_multi_easy(const char *url, const char *bearer)
{
    CURL *easy = curl_easy_init();
    if (easy == NULL)
        return NULL;
    CURLcode rc = curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(easy, CURLOPT_MAXREDIRS, (long)HTTP_REDIRECTS_MAX);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)HTTP_CONNECT_MS);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "shoal");
    if (bearer != NULL && bearer[0] != '\0') {
        curl_easy_setopt(easy, CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER);
        if (rc == CURLE_OK)
            rc = curl_easy_setopt(easy, CURLOPT_XOAUTH2_BEARER, bearer);
    }
    if (rc == CURLE_OK)
        return easy;
    curl_easy_cleanup(easy);
    return NULL;
}

/* ---- small documents ---- */

struct http_get {
    struct http_multi *multi;
    CURL *easy;
    struct http_transfer transfer;
    struct buf body;
    http_get_done *done;
    void *arg;
    char cause[CURL_ERROR_SIZE];
};

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
    struct http_get *g = arg;
    return buf_append(&g->body, data, size * n) == 0 ? size * n : 0;
}

static void free_get(struct http_get *g)
{
    curl_easy_cleanup(g->easy);
    buf_done(&g->body);
    free(g);
}

static void on_get_ended(void *arg, CURLcode code)
{
    struct http_get *g = arg;
    long status = 0;
    curl_easy_getinfo(g->easy, CURLINFO_RESPONSE_CODE, &status);
    const char *cause = g->cause[0] != '\0' ? g->cause : curl_easy_strerror(code);
    if (g->body.error != 0)
        cause = "the answer is too long";
    g->done(g->arg, code == CURLE_OK ? status : 0, &g->body, cause);
    free_get(g);
}

int http_get_start(struct http_multi *m, const char *url, const char *bearer, size_t bytes_max,
                   http_get_done *done, void *arg, struct http_get **ret_get, struct error *err)
{
    struct http_get *g = calloc(1, sizeof(*g));
    if (g != NULL)
        g->easy = http_multi_easy(url, bearer);
    if (g == NULL || g->easy == NULL) {
        free(g);
        return error_set(err, E_NOMEM, "out of memory for a request to %.200s", url);
    }
    g->multi = m;
    g->done = done;
    g->arg = arg;
    g->transfer = (struct http_transfer){.ended = on_get_ended, .arg = g};
    buf_init(&g->body, bytes_max);
    curl_easy_setopt(g->easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(g->easy, CURLOPT_WRITEDATA, g);
    curl_easy_setopt(g->easy, CURLOPT_ERRORBUFFER, g->cause);
    curl_easy_setopt(g->easy, CURLOPT_TIMEOUT_MS, (long)GET_MS_MAX);
    int rc = http_multi_add(m, g->easy, &g->transfer, err);
    if (rc != 0) {
        free_get(g);
        return rc;
    }
    *ret_get = g;
    return 0;
}

void http_get_cancel(struct http_get *g)
{
    if (g == NULL)
        return;
    http_multi_remove(g->multi, g->easy);
    free_get(g);
}
