/*
 * The HTTP API of a node: OpenAI chat completions and models, health, cluster state; over one libuv
 * loop. The process must ignore SIGPIPE: libuv writes to sockets whose reader may be gone. Thread:
 * the loop's.
 */
#ifndef SHOAL_API_API_H
#define SHOAL_API_API_H

#include "api/backend.h"
#include "base/error.h"

#include <stdint.h>
#include <uv.h>

struct api; /* opaque */

struct api_options {
    const char *host;        /* numeric address to listen on */
    uint16_t port;           /* 0: any free one */
    const char *cors_origin; /* NULL: loopback origins only */
    const char *keys_file;   /* api/keys.h; NULL: nobody needs a key */
};

/* Listens. Borrows loop and backend (both outlive the api). Errors: libuv's for bind, with the
 * address in the message. */
int api_open(uv_loop_t *loop, const struct api_options *o, const struct api_backend *backend,
             struct api **ret_api, struct error *err);
uint16_t api_port(const struct api *a);
/* Stops accepting, cancels what runs, closes all connections, then calls closed (on the loop) and
 * frees itself. */
void api_close(struct api *a, void (*closed)(void *arg), void *arg);

#endif
