/*
 * The C side of the Rust library in this folder: it compiles and renders chat templates and owns
 * nothing of the caller's. No panic crosses this border: it becomes SHOAL_RUST_INTERNAL. Memory
 * that one call may ask for is bounded (src/budget.rs); when the system refuses even that, Rust's
 * allocator ends the process. Thread: a template is immutable; any thread may render.
 */
#ifndef SHOAL_TEXT_RUST_H
#define SHOAL_TEXT_RUST_H

#include <stddef.h>
#include <stdint.h>

enum shoal_rust_status {
    SHOAL_RUST_OK = 0,
    SHOAL_RUST_FORMAT =
        1, /* the template or the context is malformed, or they do not fit each other */
    SHOAL_RUST_LIMIT = 2,    /* too large, too many steps, too deep */
    SHOAL_RUST_REFUSED = 3,  /* the template called raise_exception; the message is its own */
    SHOAL_RUST_INTERNAL = 4, /* a panic, or no thread could be started */
};

struct shoal_rust_template; /* opaque */

/* Compiles a template of len bytes of UTF-8, at most SHOAL_RUST_SOURCE_BYTES. On failure message
 * (NUL-terminated, cut to message_bytes, which must not be 0) says why, and *ret_template is
 * untouched. Returns an enum shoal_rust_status. */
int32_t shoal_rust_template_new(const char *source, size_t len,
                                struct shoal_rust_template **ret_template, char *message,
                                size_t message_bytes);
void shoal_rust_template_free(struct shoal_rust_template *t);

/* Renders with a JSON object as the context; now_s is Unix time for strftime_now (UTC). On success
 * write(arg, text, len) is called exactly once, on the calling thread, with at most max_bytes of
 * UTF-8. */
int32_t shoal_rust_template_render(const struct shoal_rust_template *t, const char *context,
                                   size_t len, uint64_t now_s, size_t max_bytes,
                                   void (*write)(void *arg, const char *text, size_t len),
                                   void *arg, char *message, size_t message_bytes);

enum { SHOAL_RUST_SOURCE_BYTES = 256 * 1024 }; /* the largest real template has about 100 KB */

#endif
